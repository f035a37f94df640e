"""Rounding to a grid as a differentiable function: straight through, with the gradient of learned step sizes.

Reference: Esser et al., "Learned Step Size Quantization", ICLR 2020.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

from onnxq.quant.affine import quantize
from onnxq.quant.spec import QuantParams


class Mixing(NamedTuple):
    """Inputs of layers left unquantized at random (Wei et al., "QDrop", ICLR 2022).

    Attributes:
        key: of the draws.
        share: of the elements that are left as they are, ().
    """

    key: jax.Array
    share: jax.Array


@jax.custom_jvp
def fake_quantize(x: jax.Array, grid: jax.Array) -> jax.Array:
    """Rounded to a grid of (scale, zero point, lowest, highest integer)."""
    return (quantize(x, grid[0], grid[1], grid[2], grid[3]) - grid[1]) * grid[0]


@fake_quantize.defjvp
def _straight_through(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Rounding counts as its operand, clipping as a constant; the scale moves every step of the grid."""
    x, grid = primals
    position = x / grid[0] + grid[1]
    inside = (position >= grid[2]) & (position <= grid[3])
    steps = quantize(x, grid[0], grid[1], grid[2], grid[3]) - grid[1]
    slope = jnp.where(inside, steps - x / grid[0], steps)
    return steps * grid[0], jnp.where(inside, tangents[0], 0.0) + slope * tangents[1][0]


def mixed(x: jax.Array, grid: jax.Array, mixing: Mixing | None, place: int) -> jax.Array:
    """Rounded to a grid but for what is left as it is; the draws hang on the place."""
    quantized = fake_quantize(x, grid)
    if mixing is None:
        return quantized
    return jnp.where(jax.random.bernoulli(jax.random.fold_in(mixing.key, place), mixing.share, x.shape), x, quantized)


def numbers(params: QuantParams | None) -> jax.Array:
    """A grid as scale, zero point, lowest and highest integer, (4,)."""
    assert params is not None
    return jnp.asarray([params.scale, params.zero_point, params.spec.qmin, params.spec.qmax], jnp.float32)
