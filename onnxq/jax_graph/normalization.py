"""Normalization by given or by measured moments."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from onnxq.jax_graph.registry import Array, operator


@operator("BatchNormalization", training_mode=(0,))
def batch_normalization(
    x: Array,
    scale: Array,
    b: Array,
    mean: Array,
    var: Array,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Array:
    """(x − mean) / √(var + epsilon) · scale + b along axis 1."""
    factor = scale / jnp.sqrt(var + epsilon)
    return x * _along_channels(factor, x) + _along_channels(b - mean * factor, x)


@operator("InstanceNormalization")
def instance_normalization(x: Array, scale: Array, b: Array, *, epsilon: float = 1e-5) -> Array:
    """Each channel of each sample brought to mean 0 and deviation 1, then scaled and shifted."""
    normal = _standardized(x, tuple(range(2, x.ndim)), epsilon)[0]
    return normal * _along_channels(scale, x) + _along_channels(b, x)


@operator("GroupNormalization", 21, stash_type=(1,))
def group_normalization(
    x: Array, scale: Array, b: Array, *, num_groups: int, epsilon: float = 1e-5, stash_type: int = 1
) -> Array:
    """Each group of channels of each sample brought to mean 0 and deviation 1, then scaled and shifted."""
    grouped = x.reshape(x.shape[0], num_groups, -1)
    normal = _standardized(grouped, (2,), epsilon)[0].reshape(x.shape)
    return normal * _along_channels(scale, x) + _along_channels(b, x)


@operator("LayerNormalization", 17, outputs=3, stash_type=(1,))
def layer_normalization(
    x: Array, scale: Array, b: Array | None = None, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> tuple[Array, Array, Array]:
    """The axes from ``axis`` on brought to mean 0 and deviation 1, then scaled and shifted; mean; 1 / deviation."""
    normal, mean, inverse = _standardized(x, tuple(range(axis % x.ndim, x.ndim)), epsilon)
    made = normal * scale
    return made if b is None else made + b, mean, inverse


@operator("RMSNormalization", 23, stash_type=(1,))
def rms_normalization(x: Array, scale: Array, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1) -> Array:
    """The axes from ``axis`` on brought to mean square 1, then scaled."""
    power = jnp.mean(jnp.square(x), axis=tuple(range(axis % x.ndim, x.ndim)), keepdims=True)
    return x * jax.lax.rsqrt(power + epsilon) * scale


@operator("LpNormalization", p=(1, 2))
def lp_normalization(x: Array, *, axis: int = -1, p: int = 2) -> Array:
    """Vectors along an axis brought to norm 1; those of norm 0 stay 0."""
    norm = jnp.linalg.norm(x, ord=p, axis=axis, keepdims=True)
    return x / jnp.where(norm == 0, 1, norm)


def _standardized(x: Array, axes: tuple[int, ...], epsilon: float) -> tuple[Array, Array, Array]:
    mean = jnp.mean(x, axis=axes, keepdims=True)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x - mean), axis=axes, keepdims=True) + epsilon)
    return (x - mean) * inverse, mean, inverse


def _along_channels(values: Array, x: Array) -> Array:
    return values.reshape(1, -1, *(1,) * (x.ndim - 2))
