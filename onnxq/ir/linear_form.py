"""Every layer as a grouped matrix product: rows of inputs times a weight matrix.

    Y[g, r, n] = Σ_k X[g, r, k] · W[g, k, n] + b[g, n]

A row is what one output position reads: the patch of a convolution, the vector of a Gemm or MatMul.
A transposed convolution reads, at each output position, the input elements that its taps reach; taps
that fall between two elements or outside read zero. Solvers see this form only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.ir.layer import Layer

Array = NDArray[np.float32]


def weight_matrix(layer: Layer, weight: Array) -> Array:
    """The stored weight as (G, K, N), float32; K runs over input channels first, then the window."""
    if layer.window is None:
        return np.ascontiguousarray(weight.T if layer.transposed else weight)[None]
    groups = layer.window.groups
    if layer.op == "Conv":  # (N_total, K/g, *window)
        return np.ascontiguousarray(weight.reshape(groups, weight.shape[0] // groups, -1).transpose(0, 2, 1))
    per_group = weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)  # (G, C/g, N, taps)
    return np.ascontiguousarray(per_group.transpose(0, 1, 3, 2).reshape(groups, -1, weight.shape[1]))


def stored_weight(layer: Layer, matrix: NDArray[np.generic]) -> NDArray[np.generic]:
    """Inverse of :func:`weight_matrix`, for any element type."""
    shape = layer.weight_shape
    if layer.window is None:
        return np.ascontiguousarray(matrix[0].T if layer.transposed else matrix[0])
    groups, _, channels = matrix.shape
    if layer.op == "Conv":
        return np.ascontiguousarray(matrix.transpose(0, 2, 1).reshape(shape))
    taps = int(np.prod(layer.window.kernel))
    return np.ascontiguousarray(matrix.reshape(groups, -1, taps, channels).transpose(0, 1, 3, 2).reshape(shape))


def beside_rows(layer: Layer, channels: Array) -> Array:
    """Values of a layer's input channels, (C,), beside the rows of :func:`weight_matrix`, (G, K, 1)."""
    window = layer.window
    taps, groups = (math.prod(window.kernel), window.groups) if window else (1, 1)
    return np.repeat(channels, taps).reshape(groups, -1, 1)


def scales_are_shared(layer: Layer) -> bool:
    """Whether the groups share their scales: a stored transposed convolution has one scale a column."""
    return layer.op == "ConvTranspose" and layer.window is not None and layer.window.groups > 1


def multiplied_in_pairs(layer: Layer) -> NDArray[np.intp] | None:
    """Which inputs of a group integer kernels multiply together, (P, 2), indices along K.

    They run over the window first and over the channels within it, two at a time. None for depthwise
    layers, whose kernel takes one input at a time, and for layers that have no integer kernel.
    """
    if layer.op == "ConvTranspose":
        return None
    if layer.window is None:
        order = np.arange(layer.weight_shape[1 if layer.transposed else 0])
    else:
        channels, taps = layer.weight_shape[1], int(np.prod(layer.window.kernel))
        if channels == 1 and layer.weight_shape[0] == layer.window.groups:
            return None
        order = np.arange(channels * taps).reshape(channels, taps).T.reshape(-1)
    return order[: len(order) // 2 * 2].reshape(-1, 2)


@dataclass(frozen=True)
class Positions:
    """Output positions drawn from a batch, one row each.

    Attributes:
        sample: index along the batch axis, (R,).
        place: index along each spatial axis (convolutions) or each middle axis, (R, axes).
    """

    sample: NDArray[np.int64]
    place: NDArray[np.int64]

    def reordered(self, order: NDArray[np.intp]) -> Positions:
        """The same positions in another order."""
        return Positions(self.sample[order], self.place[order])


def position_axes(layer: Layer, output_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Sizes of an output's axes without its channels."""
    return output_shape[:1] + (output_shape[2:] if layer.window else output_shape[1:-1])


def draw_positions(
    layer: Layer,
    output_shape: tuple[int, ...],
    count: int,
    rng: np.random.Generator,
    allowed: NDArray[np.bool_] | None = None,
) -> Positions:
    """Draw ``count`` different output positions, in order; all of them when there are no more.

    Args:
        layer: whose output.
        output_shape: of that output.
        count: how many.
        rng: draws.
        allowed: positions to draw from, in the shape of :func:`position_axes`; all when None.
    """
    axes = position_axes(layer, output_shape)
    among = np.arange(int(np.prod(axes))) if allowed is None else np.flatnonzero(allowed)
    total = len(among)
    flat = among if count >= total else among[np.sort(rng.choice(total, size=count, replace=False))]
    index = np.stack(np.unravel_index(flat, axes), axis=-1) if axes else np.zeros((1, 0), np.int64)
    return Positions(sample=index[:, 0], place=index[:, 1:])


def output_rows(layer: Layer, output: Array, positions: Positions) -> Array:
    """Outputs at the positions, (G, R, N)."""
    place = tuple(positions.place.T)
    if layer.window is None:
        vectors: Array = output[(positions.sample, *place)][None]
        return vectors
    rows = output[(positions.sample, slice(None), *place)]
    groups = layer.window.groups
    return np.ascontiguousarray(rows.reshape(len(rows), groups, -1).transpose(1, 0, 2))


def input_rows(layer: Layer, x: Array, positions: Positions) -> Array:
    """Inputs that the positions read, (G, R, K); padding reads zero."""
    if layer.window is None:
        vectors: Array = x[(positions.sample, *tuple(positions.place.T))][None]
        return vectors
    window, rows = layer.window, len(positions.sample)
    index, inside = [], np.ones((rows, *([1] * len(window.kernel))), bool)
    for axis, size in enumerate(x.shape[2:]):
        tap = np.arange(window.kernel[axis]) * window.dilations[axis]
        at = positions.place[:, axis, None]
        if layer.op == "Conv":
            reached, hit = at * window.strides[axis] - window.pads_begin[axis] + tap, True
        else:
            reached, remainder = np.divmod(at + window.pads_begin[axis] - tap, window.strides[axis])
            hit = remainder == 0
        valid = (reached >= 0) & (reached < size) & hit
        span = [rows, *([1] * len(window.kernel))]
        span[1 + axis] = window.kernel[axis]
        index.append(np.where(valid, reached, 0).reshape(span))
        inside = inside & valid.reshape(span)
    sample = positions.sample.reshape(-1, *([1] * len(window.kernel)))
    chosen: tuple[Any, ...] = (sample, slice(None), *index)
    patches = x[chosen]  # advanced axes come first, channels last: (R, *window, C)
    patches[~inside] = 0
    groups = window.groups
    patches = patches.reshape(rows, -1, groups, x.shape[1] // groups)  # (R, taps, G, C/g)
    return np.ascontiguousarray(patches.transpose(2, 0, 3, 1).reshape(groups, rows, -1))
