"""Which entries of a tensor belong to real tokens: padding is left out of ranges and of the solvers' rows.

A padded position holds whatever the network makes of a filler. Its values decide nothing, but they would
widen the grids and, in short sentences, outnumber the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Mask: TypeAlias = NDArray[np.bool_]

LARGEST = np.float32(1e30)
"""Magnitude from which on a number stands for "never" in a mask, and no range has to hold it."""


def read_mask(feed: Mapping[str, NDArray[np.generic]], name: str | None) -> Mask | None:
    """Which tokens of a batch are real, (samples, tokens); None where the batch does not say, or none is."""
    given = feed.get(name or "")
    if given is None or np.ndim(given) != 2:
        return None
    mask: Mask = np.asarray(given) != 0
    return mask if mask.any() else None


def real_values(values: NDArray[np.float32], mask: Mask | None) -> NDArray[np.float32]:
    """The entries of a tensor that belong to real tokens and are numbers to reckon with.

    Args:
        values: any shape; the first axis counts samples, one of the others tokens.
        mask: real tokens, (samples, tokens); None where all are.

    Returns:
        ``values`` itself where there is nothing to leave out; otherwise fewer of them, in another shape.
    """
    axis = None if mask is None else token_axis(values.shape, mask)
    if mask is not None and axis is not None and not mask.all():
        values = np.moveaxis(values, axis, 1)[mask]
    if values.min(initial=0) > -LARGEST and values.max(initial=0) < LARGEST:
        return values
    return values[np.abs(values) < LARGEST]


def token_axis(shape: tuple[int, ...], mask: Mask) -> int | None:
    """The axis of a tensor that counts a mask's tokens; None where there is none or it cannot be told.

    The second axis wherever it fits; behind it (heads before tokens) the only one that does.
    """
    samples, tokens = mask.shape
    if len(shape) < 2 or shape[0] != samples:
        return None
    if shape[1] == tokens and len(shape) < 4:
        return 1
    fitting = [axis for axis in range(1, len(shape)) if shape[axis] == tokens]
    return fitting[0] if len(fitting) == 1 or (fitting and fitting[0] == len(shape) - 2) else None


def real_positions(mask: Mask | None, axes: tuple[int, ...]) -> Mask | None:
    """Which positions of a layer's output are real, in the shape of the axes that count them; None for all.

    Args:
        mask: real tokens, (samples, tokens).
        axes: sizes of the output's axes without its channels; samples and tokens may be one axis.
    """
    if mask is None or mask.all():
        return None
    if axes == (mask.size,):
        return mask.reshape(-1)
    if axes[:2] != mask.shape:
        return None
    return np.broadcast_to(mask.reshape(mask.shape + (1,) * (len(axes) - 2)), axes)
