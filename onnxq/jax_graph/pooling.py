"""Pooling over windows and over whole images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
from jax import lax

from onnxq.jax_graph.registry import Array, operator
from onnxq.jax_graph.window import Placement, place


@operator("MaxPool")
def max_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
) -> Array:
    """Largest element of each window; padding never wins."""
    window = place(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    lowest = -np.inf if np.issubdtype(x.dtype, np.floating) else np.iinfo(x.dtype).min
    return _reduce(jnp.asarray(x), window, _overhang(x, window, ceil_mode), np.asarray(lowest, x.dtype), lax.max)


@operator("AveragePool")
def average_pool(
    x: Array,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Mean of each window; padding counts only where ``count_include_pad`` says so, an overhang never."""
    window = place(x.shape[2:], kernel_shape, strides, dilations, pads, auto_pad)
    overhang = _overhang(x, window, ceil_mode)
    zero = np.zeros((), x.dtype)
    sums = _reduce(jnp.asarray(x), window, overhang, zero, lax.add)
    inside = np.ones((1, 1, *x.shape[2:]), x.dtype)
    if count_include_pad:
        inside = np.pad(inside, [(0, 0), (0, 0), *window.padding], constant_values=1)
        window = replace(window, padding=((0, 0),) * len(window.kernel))
    return sums / _reduce(jnp.asarray(inside), window, overhang, zero, lax.add)


@operator("GlobalAveragePool")
def global_average_pool(x: Array) -> Array:
    """Mean over all spatial axes, which stay with size 1."""
    return jnp.mean(x, axis=tuple(range(2, x.ndim)), keepdims=True)


@operator("GlobalMaxPool")
def global_max_pool(x: Array) -> Array:
    """Maximum over all spatial axes, which stay with size 1."""
    return jnp.max(x, axis=tuple(range(2, x.ndim)), keepdims=True)


def _overhang(x: Array, window: Placement, ceil_mode: int) -> tuple[int, ...]:
    """Rows behind the padded end that the last window needs when sizes are rounded up."""
    rows = []
    for n, (low, high), extent, stride in zip(x.shape[2:], window.padding, window.extent, window.strides, strict=True):
        steps = -(-(n + low + high - extent) // stride)
        if steps * stride >= n + low:  # such a window would start behind the input
            steps -= 1
        rows.append(max(steps * stride + extent - (n + low + high), 0) if ceil_mode else 0)
    return tuple(rows)


def _reduce(
    x: Array, window: Placement, overhang: tuple[int, ...], start: Array, combine: Callable[..., Array]
) -> Array:
    padding = [(low, high + extra) for (low, high), extra in zip(window.padding, overhang, strict=True)]
    made: Array = lax.reduce_window(
        x,
        start,
        combine,
        (1, 1, *window.kernel),
        (1, 1, *window.strides),
        ((0, 0), (0, 0), *padding),
        window_dilation=(1, 1, *window.dilations),
    )
    return made
