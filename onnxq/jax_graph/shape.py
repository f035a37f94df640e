"""Operators that move values, and those that compute shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnxq.jax_graph.registry import Array, integers, namespace, operator


@operator("Reshape", static=(1,))
def reshape(x: Array, shape: Array, *, allowzero: int = 0) -> Array:
    """The same elements in another shape; 0 keeps an axis, −1 takes what is left."""
    wanted = integers(shape)
    return x.reshape(wanted if allowzero else tuple(x.shape[i] if d == 0 else d for i, d in enumerate(wanted)))


@operator("Flatten")
def flatten(x: Array, *, axis: int = 1) -> Array:
    """Two axes: those before ``axis``, and the others."""
    split = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:split])), int(np.prod(x.shape[split:])))


@operator("Transpose")
def transpose(x: Array, *, perm: Sequence[int] | None = None) -> Array:
    """Axes in another order, the reverse one when none is given."""
    return namespace(x).transpose(x, perm)


@operator("Squeeze", static=(1,))
def squeeze(x: Array, axes: Array | None = None) -> Array:
    """Without axes of size 1: the given ones, or all."""
    return namespace(x).squeeze(x, None if axes is None else integers(axes))


@operator("Unsqueeze", static=(1,))
def unsqueeze(x: Array, axes: Array) -> Array:
    """With further axes of size 1."""
    return namespace(x).expand_dims(x, integers(axes))


@operator("Expand", static=(1,))
def expand(x: Array, shape: Array) -> Array:
    """Repeated along axes of size 1 until both shapes agree."""
    return namespace(x).broadcast_to(x, np.broadcast_shapes(x.shape, integers(shape)))


@operator("Tile", static=(1,))
def tile(x: Array, repeats: Array) -> Array:
    """Repeated along each axis."""
    return namespace(x).tile(x, integers(repeats))


@operator("Concat")
def concat(*operands: Array, axis: int) -> Array:
    """Joined along an axis."""
    return namespace(*operands).concatenate(operands, axis=axis)


@operator("Split", static=(1,), outputs=None)
def split(
    x: Array, sizes: Array | None = None, *, axis: int = 0, num_outputs: int | None = None, outputs: int = 1
) -> tuple[Array, ...]:
    """Cut along an axis into given or equal parts, of which the last may be smaller."""
    if sizes is None:
        part = -(-x.shape[axis] // (num_outputs or outputs))
        ends = [part * (i + 1) for i in range((num_outputs or outputs) - 1)]
    else:
        ends = list(np.cumsum(integers(sizes))[:-1])
    return tuple(namespace(x).split(x, ends, axis=axis))


@operator("Slice", static=(1, 2, 3, 4))
def cut(x: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None) -> Array:
    """Every step-th element from a start to an end along each of the axes."""
    first, last = integers(starts), integers(ends)
    along = range(len(first)) if axes is None else integers(axes)
    step = (1,) * len(first) if steps is None else integers(steps)
    index = [slice(None)] * x.ndim
    for axis, begin, end, by in zip(along, first, last, step, strict=True):
        begin, end, by = slice(begin, end, by).indices(x.shape[axis])
        index[axis] = slice(begin, None if end < 0 else end, by)
    return x[tuple(index)]


@operator("Pad", static=(1, 3), mode=("constant", "reflect", "edge", "wrap"))
def pad(
    x: Array, pads: Array, value: Array | None = None, axes: Array | None = None, *, mode: str = "constant"
) -> Array:
    """Rows added before and behind each axis; negative counts cut rows off."""
    xp, counts = namespace(x, value), integers(pads)
    along = range(x.ndim) if axes is None else [a % x.ndim for a in integers(axes)]
    widths = [(0, 0)] * x.ndim
    for axis, low, high in zip(along, counts[: len(counts) // 2], counts[len(counts) // 2 :], strict=True):
        widths[axis] = (low, high)
    x = x[tuple(slice(max(-low, 0), n - max(-high, 0)) for n, (low, high) in zip(x.shape, widths, strict=True))]
    widths = [(max(low, 0), max(high, 0)) for low, high in widths]
    if mode != "constant":
        return xp.pad(x, widths, mode=mode)
    return xp.pad(x, widths, constant_values=np.zeros((), x.dtype) if value is None else value.reshape(()))


@operator("Gather")
def gather(x: Array, indices: Array, *, axis: int = 0) -> Array:
    """Entries along an axis; negative indices count from the end."""
    return namespace(x, indices).take(x, indices, axis=axis)


@operator("GatherElements")
def gather_elements(x: Array, indices: Array, *, axis: int = 0) -> Array:
    """For each index the entry at its own place, but at the index along an axis."""
    return namespace(x, indices).take_along_axis(x, indices, axis=axis)


@operator("Shape")
def shape_of(x: Array, *, start: int = 0, end: int | None = None) -> Array:
    """Sizes of the axes, known while tracing."""
    return np.asarray(x.shape[start:end], np.int64)


@operator("Size")
def size_of(x: Array) -> Array:
    """Number of elements, known while tracing."""
    return np.asarray(x.size, np.int64)


@operator("Constant")
def constant(
    *,
    value: Array | None = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
) -> Array:
    """What the attribute holds."""
    if value is not None:
        return value
    if value_float is not None or value_floats is not None:
        return np.asarray(value_floats if value_float is None else value_float, np.float32)
    return np.asarray(value_ints if value_int is None else value_int, np.int64)


@operator("ConstantOfShape", static=(0,))
def constant_of_shape(shape: Array, *, value: Array | None = None) -> Array:
    """One number repeated, 0 in float32 when none is given."""
    entry = np.zeros(1, np.float32) if value is None else value
    return np.full(integers(shape), entry.reshape(()), entry.dtype)


@operator("Range", static=(0, 1, 2))
def sequence(start: Array, limit: Array, delta: Array) -> Array:
    """Numbers from a start in steps until a limit, known while tracing."""
    ends: Any = [np.asarray(end).reshape(()) for end in (start, limit, delta)]
    return np.asarray(np.arange(*ends, dtype=start.dtype))


@operator("Trilu", 14, static=(1,))
def trilu(x: Array, k: Array | None = None, *, upper: int = 1) -> Array:
    """The upper or lower triangle, 0 elsewhere."""
    xp, offset = namespace(x), 0 if k is None else integers(k)[0]
    return xp.triu(x, offset) if upper else xp.tril(x, offset)
