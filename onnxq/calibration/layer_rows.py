"""What a layer's solver is shown: rows of its inputs and outputs, drawn from every batch and joined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.hold_out import kept_back
from onnxq.ir.layer import Layer

Array = NDArray[np.float32]

FEWEST_ROWS, MOST_ROWS = 16_384, 65_536
"""Rows drawn for a layer at least and at most, memory permitting."""

ROWS_PER_INPUT = 16
"""Beyond so many rows for each input of a row, their moments' noise is far below that of the samples' own choice."""

ROW_VALUES = 2**24
"""Values that rows of a narrow layer hold: they cost little, and with all that a small set has nothing hangs on which
were drawn."""


@dataclass(frozen=True)
class Rows:
    """What a layer reads and should make, at positions drawn from the whole calibration set.

    Attributes:
        x: inputs in the network whose earlier layers are quantized, (G, R, K).
        x_float: inputs in the float network, (G, R, K); ``x`` where they were not asked for.
        y: outputs of the float network before any clipping, (G, R, N).
        train: rows that may be fitted, (R,).
        units: what each row is of: a sample, or a batch where the model insists on its size, (R,).
    """

    x: Array
    x_float: Array
    y: Array
    train: NDArray[np.bool_]
    units: NDArray[np.int64]


def rows_wanted(layer: Layer, room: int, *, with_float: bool) -> int:
    """Rows to draw for a layer.

    Args:
        layer: which.
        room: bytes that its rows may take.
        with_float: the float network's inputs are gathered too.
    """
    groups = layer.window.groups if layer.window else 1
    inputs = layer.parameters // layer.channels * groups
    if layer.op == "ConvTranspose" and layer.window:
        inputs = layer.parameters // layer.weight_shape[1]
    each = 4 * ((1 + with_float) * inputs + layer.channels)
    wanted = max(ROWS_PER_INPUT * inputs // groups, ROW_VALUES // (inputs + layer.channels))
    enough = np.clip(wanted, FEWEST_ROWS, MOST_ROWS)
    return int(np.clip(room // each, 256, enough))


def selected(rows: Array, chosen: NDArray[np.bool_]) -> Array:
    """Some rows of (G, R, ·); a view where they lie side by side."""
    count = int(np.count_nonzero(chosen))
    first = int(chosen.argmax()) if count else 0
    side_by_side = bool(chosen[first : first + count].all())
    return rows[:, first : first + count] if side_by_side else rows[:, chosen]


def join(parts: list[Rows]) -> Rows:
    """The rows of all batches, those that may be fitted before those held back, so that each are one view.

    Args:
        parts: of each batch; they go as they are taken in, so that rows are never held twice.
    """
    train = np.concatenate([p.train for p in parts])
    if train.all() or not train.any():
        train = ~kept_back(np.arange(len(train)))  # of rows where it cannot be of samples
    masks = np.split(train, np.cumsum([len(p.train) for p in parts])[:-1])
    units = np.concatenate([p.units for p in parts])
    x, y = [p.x for p in parts], [p.y for p in parts]
    apart = any(p.x_float is not p.x for p in parts)  # of some batches they are one array, of others two alike
    x_float = [p.x_float for p in parts] if apart else []
    parts.clear()
    joined = _joined(x, masks)
    return Rows(
        x=joined,
        x_float=_joined(x_float, masks) if x_float else joined,
        y=_joined(y, masks),
        train=np.arange(len(train)) < np.count_nonzero(train),
        units=np.concatenate([units[train], units[~train]]),
    )


def _joined(arrays: list[Array], masks: Sequence[NDArray[np.bool_]]) -> Array:
    """Arrays (G, R, ·) along their rows, those that a mask holds first; the list is emptied."""
    groups, _, values = arrays[0].shape
    result = np.empty((groups, sum(map(len, masks)), values), np.float32)
    ends = [0, sum(int(np.count_nonzero(mask)) for mask in masks)]
    arrays.reverse()
    for mask in masks:
        array = arrays.pop()
        for at, chosen in enumerate((mask, ~mask)):
            rows = selected(array, chosen)
            result[:, ends[at] : ends[at] + rows.shape[1]] = rows
            ends[at] += rows.shape[1]
    return result
