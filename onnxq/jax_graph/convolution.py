"""Convolutions, each in the form that the device computes fastest.

XLA's CPU convolution is good at one group and a window of several elements. It takes a depthwise
convolution some fifty times longer than multiplying and adding shifted copies of the input, and a 1 × 1
convolution five times longer than a matrix product for each sample, unless it has more channels than
positions. The gradient of a depthwise kernel is twelve times faster as a convolution of a channel's input with
its output's gradient, channel by channel, than as sums of products with shifted copies (all measured, forward
and backward). On other devices the native convolution serves all.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from onnxq.jax_graph.registry import Array, operator
from onnxq.jax_graph.window import Placement, place

SPATIAL = "DHW"
HIGHEST = lax.Precision.HIGHEST


@operator("Conv")
def conv(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Convolution of x (B, C, *size) with w (N, C / group, *window)."""
    window = place(x.shape[2:], w.shape[2:], strides, dilations, pads, auto_pad)
    if jax.default_backend() != "cpu":
        made = _native(x, w, window, group)
    elif group == 1 and set(window.kernel) == {1}:
        made = _pointwise(x, w, window)
    elif group == w.shape[0] == x.shape[1]:
        made = _depthwise(_pad(x, window), jnp.asarray(w), window, x.shape[2:])
    elif group > 1:
        made = _grouped(_pad(x, window), w, window, group, x.shape[2:])
    else:
        made = _native(x, w, window, group)
    return _add_bias(made, b)


@operator("ConvTranspose")
def conv_transpose(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Array:
    """Transposed convolution of x (B, C, *size) with w (C, N / group, *window)."""
    size, rank = x.shape[2:], x.ndim - 2
    window = place(size, w.shape[2:], strides, dilations, pads, "VALID" if auto_pad.startswith("SAME") else auto_pad)
    extra = tuple(output_padding or (0,) * rank)
    cut = window.padding
    if auto_pad.startswith("SAME") and output_shape is None:
        output_shape = [n * s for n, s in zip(size, window.strides, strict=True)]
    if output_shape is not None:
        full = [s * (n - 1) + o + e for n, s, o, e in zip(size, window.strides, extra, window.extent, strict=True)]
        totals = [f - n for f, n in zip(full, output_shape, strict=True)]
        begins = [t // 2 if auto_pad == "SAME_UPPER" else t - t // 2 for t in totals]
        cut = tuple((b, t - b) for b, t in zip(begins, totals, strict=True))
    padding = [(e - 1 - low, e - 1 - high + o) for e, (low, high), o in zip(window.extent, cut, extra, strict=True)]
    per_group = w.reshape(group, w.shape[0] // group, *w.shape[1:]).swapaxes(1, 2)
    kernel = per_group.reshape(group * w.shape[1], w.shape[0] // group, *w.shape[2:])
    made = lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.flip(kernel, range(2, 2 + rank)),
        (1,) * rank,
        padding,
        lhs_dilation=window.strides,
        rhs_dilation=window.dilations,
        dimension_numbers=_layout(rank),
        feature_group_count=group,
        precision=HIGHEST,
    )
    return _add_bias(made, b)


def _native(x: Array, w: Array, window: Placement, group: int) -> Array:
    return lax.conv_general_dilated(
        jnp.asarray(x),
        jnp.asarray(w),
        window.strides,
        window.padding,
        rhs_dilation=window.dilations,
        dimension_numbers=_layout(len(window.kernel)),
        feature_group_count=group,
        precision=HIGHEST,
    )


def _pointwise(x: Array, w: Array, window: Placement) -> Array:
    x = _pad(x, window)
    x = x[(slice(None), slice(None), *(slice(None, None, s) for s in window.strides))]
    matrix = w.reshape(w.shape[:2])
    if math.prod(x.shape[2:]) < max(matrix.shape):
        return jnp.einsum("nc,bc...->bn...", matrix, x, precision=HIGHEST)
    # A product for each sample, also in the gradient: in one product for all, XLA would transpose the samples.
    matrices = jnp.broadcast_to(matrix, (x.shape[0], *matrix.shape))
    made = jnp.matmul(matrices, x.reshape(*x.shape[:2], -1), precision=HIGHEST)
    return made.reshape(x.shape[0], -1, *x.shape[2:])


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _depthwise(x: Array, w: Array, window: Placement, unpadded: tuple[int, ...]) -> Array:
    """One kernel (C, 1, *window) for each channel of the padded input."""
    return _grouped(x, w, window, w.shape[0], unpadded)


def _depthwise_forward(
    x: Array, w: Array, window: Placement, unpadded: tuple[int, ...]
) -> tuple[Array, tuple[Array, Array]]:
    return _depthwise(x, w, window, unpadded), (x, w)


def _depthwise_backward(
    window: Placement, unpadded: tuple[int, ...], kept: tuple[Array, Array], gradient: Array
) -> tuple[Array, Array]:
    x, w = kept
    (of_input,) = jax.vjp(lambda x: _grouped(x, w, window, w.shape[0], unpadded), x)[1](gradient)
    return of_input, _kernel_gradient(window)(x, gradient)


_depthwise.defvjp(_depthwise_forward, _depthwise_backward)


def _kernel_gradient(window: Placement) -> Callable[[Array, Array], Array]:
    """The gradient of depthwise kernels (C, 1, *window) for a padded input and the output's gradient.

    A channel's samples are the input channels of a convolution whose kernel is the gradient.
    """
    rank = len(window.kernel)

    def of_channel(pair: tuple[jax.Array, jax.Array]) -> jax.Array:
        made = lax.conv_general_dilated(
            pair[0][None],
            pair[1][None],
            window.dilations,
            [(0, 0)] * rank,
            rhs_dilation=window.strides,
            dimension_numbers=_layout(rank),
            precision=HIGHEST,
        )
        return made[(0, slice(0, 1), *(slice(0, k) for k in window.kernel))]

    # One after the other also under vmap: convolutions of many pairs at once are the slow kind.
    @jax.custom_batching.sequential_vmap  # type: ignore[untyped-decorator]
    def gradient(x: Array, g: Array) -> Array:
        made: Array = lax.map(of_channel, (x.swapaxes(0, 1), g.swapaxes(0, 1)))
        return made

    return gradient  # type: ignore[no-any-return]


def _grouped(x: Array, w: Array, window: Placement, group: int, unpadded: tuple[int, ...]) -> Array:
    """Sum over the window's elements of each one's product with the padded input shifted to it."""
    size = window.output_size(unpadded)
    x = x.reshape(x.shape[0], group, -1, *x.shape[2:])
    w = w.reshape(group, w.shape[0] // group, *w.shape[1:])
    single = w.shape[1] == w.shape[2] == 1
    made = None
    for tap in itertools.product(*(range(k) for k in window.kernel)):
        start = [t * d for t, d in zip(tap, window.dilations, strict=True)]
        places = [slice(b, b + (n - 1) * s + 1, s) for b, n, s in zip(start, size, window.strides, strict=True)]
        positions: tuple[Any, ...] = (..., *places)
        at: tuple[Any, ...] = (..., *tap)
        shifted, factor = x[positions], w[at]
        if single:
            term = shifted * factor.reshape(1, group, 1, *(1,) * len(size))
        else:
            term = jnp.einsum("gnc,bgc...->bgn...", factor, shifted, precision=HIGHEST)
        made = term if made is None else made + term
    return jnp.asarray(made).reshape(x.shape[0], -1, *size)


def _pad(x: Array, window: Placement) -> Array:
    if not np.any(window.padding):
        return x
    configuration = [(0, 0, 0), (0, 0, 0), *((low, high, 0) for low, high in window.padding)]
    return lax.pad(jnp.asarray(x), np.zeros((), x.dtype), configuration)


def _add_bias(made: Array, b: Array | None) -> Array:
    return made if b is None else made + b.reshape(1, -1, *(1,) * (made.ndim - 2))


def _layout(rank: int) -> tuple[str, str, str]:
    axes = SPATIAL[-rank:]
    return f"NC{axes}", f"OI{axes}", f"NC{axes}"
