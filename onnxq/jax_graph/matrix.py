"""Matrix products, at full float32 precision on every device."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import lax

from onnxq.jax_graph.registry import Array, namespace, operator

HIGHEST = lax.Precision.HIGHEST


@operator("MatMul")
def matmul(a: Array, b: Array) -> Array:
    """Product over the last axis of a and the last but one of b."""
    return np.matmul(a, b) if namespace(a, b) is np else jnp.matmul(a, b, precision=HIGHEST)


@operator("Gemm")
def gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,
    transB: int = 0,
) -> Array:
    """The sum alpha · A · B + beta · C."""
    made = jnp.matmul(a.T if transA else a, b.T if transB else b, precision=HIGHEST)
    made = made if alpha == 1.0 else made * np.asarray(alpha, made.dtype)
    if c is None:
        return made
    return made + (c if beta == 1.0 else c * np.asarray(beta, c.dtype))


@operator("Einsum")
def einsum(*operands: Array, equation: str) -> Array:
    """Sum of products as the equation states it."""
    return jnp.einsum(equation.replace(" ", ""), *operands, precision=HIGHEST)
