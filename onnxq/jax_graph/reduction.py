"""Reductions over axes, and what is built of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from onnxq.jax_graph.registry import Array, integers, namespace, operator

Reduce = Callable[[Any, Array, tuple[int, ...], bool], Array]
"""From numpy or jax.numpy, an array, axes and whether they stay with size 1, to the reduced array."""

REDUCTIONS: dict[str, Reduce] = {
    "ReduceL1": lambda xp, x, axes, keep: xp.sum(xp.abs(x), axis=axes, keepdims=keep),
    "ReduceL2": lambda xp, x, axes, keep: xp.sqrt(xp.sum(xp.square(x), axis=axes, keepdims=keep)),
    "ReduceLogSum": lambda xp, x, axes, keep: xp.log(xp.sum(x, axis=axes, keepdims=keep)),
    "ReduceLogSumExp": lambda _, x, axes, keep: jax.nn.logsumexp(x, axis=axes, keepdims=keep),
    "ReduceMax": lambda xp, x, axes, keep: xp.max(x, axis=axes, keepdims=keep),
    "ReduceMean": lambda xp, x, axes, keep: xp.mean(x, axis=axes, keepdims=keep),
    "ReduceMin": lambda xp, x, axes, keep: xp.min(x, axis=axes, keepdims=keep),
    "ReduceProd": lambda xp, x, axes, keep: xp.prod(x, axis=axes, keepdims=keep),
    "ReduceSum": lambda xp, x, axes, keep: xp.sum(x, axis=axes, keepdims=keep),
    "ReduceSumSquare": lambda xp, x, axes, keep: xp.sum(xp.square(x), axis=axes, keepdims=keep),
}


def _with_operand(reduce: Reduce) -> Callable[..., Array]:
    """The form whose axes are an operand."""

    def function(x: Array, axes: Array | None = None, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Array:
        chosen = () if axes is None else integers(axes)
        if not chosen and noop_with_empty_axes:
            return reduce(namespace(x), x[None], (0,), False)  # each element for itself: some forms change it
        return reduce(namespace(x), x, _normal(chosen, x.ndim), bool(keepdims))

    return function


def _with_attribute(reduce: Reduce) -> Callable[..., Array]:
    """The form whose axes are an attribute."""

    def function(x: Array, *, axes: Sequence[int] = (), keepdims: int = 1) -> Array:
        return reduce(namespace(x), x, _normal(axes, x.ndim), bool(keepdims))

    return function


def _normal(axes: Sequence[int], rank: int) -> tuple[int, ...]:
    return tuple(a % rank for a in axes) or tuple(range(rank))


for _name, _reduce in REDUCTIONS.items():
    _since = 13 if _name == "ReduceSum" else 18
    operator(_name, _since, static=(1,))(_with_operand(_reduce))
    if _since > 13:
        operator(_name, 13, 17)(_with_attribute(_reduce))


@operator("Softmax")
def softmax(x: Array, *, axis: int = -1) -> Array:
    """exp(x) over its sum along an axis."""
    return jax.nn.softmax(x, axis=axis)


@operator("LogSoftmax")
def log_softmax(x: Array, *, axis: int = -1) -> Array:
    """Logarithm of :func:`softmax`."""
    return jax.nn.log_softmax(x, axis=axis)


@operator("ArgMax", select_last_index=(0,))
def argmax(x: Array, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0) -> Array:
    """Index of the first largest element along an axis."""
    return namespace(x).argmax(x, axis=axis, keepdims=bool(keepdims))


@operator("CumSum", static=(1,))
def cumsum(x: Array, axis: Array, *, exclusive: int = 0, reverse: int = 0) -> Array:
    """Running sum along an axis."""
    xp, along = namespace(x), integers(axis)[0]
    turned = xp.flip(x, along) if reverse else x
    sums = xp.cumsum(turned, axis=along, dtype=x.dtype)
    sums = sums - turned if exclusive else sums
    return xp.flip(sums, along) if reverse else np.asarray(sums) if xp is np else sums
