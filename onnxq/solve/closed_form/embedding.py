"""Tables quantized in closed form: in every block the scale of least squared error."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxq.quant.spec import weight_spec
from onnxq.quant.table import TableSolution

CLIP_RATIOS = np.append(np.linspace(0.6, 0.98, 20), 1.0)
"""Ranges tried, as fractions of a block's largest magnitude."""

BLOCK = 32
"""Columns that share a scale at 4 bits, where that divides the columns."""

ENTRIES_AT_ONCE = 1 << 18
"""Entries searched in one go: their temporaries stay in the cache."""


def scale_columns(bits: int, columns: int, *, blocked: bool) -> int:
    """Columns of a table that share a scale; the arguments are those of :func:`solve_table`."""
    return BLOCK if bits == 4 and blocked and columns % BLOCK == 0 else columns


def solve_table(constant: str, values: NDArray[np.float32], bits: int, *, blocked: bool) -> TableSolution:
    """Quantize a table.

    Args:
        constant: its name in the graph.
        values: (rows, columns).
        bits: 4 or 8.
        blocked: 4-bit rows may have several scales.
    """
    rows, columns = values.shape
    size = scale_columns(bits, columns, blocked=blocked)
    spec = weight_spec(bits)
    blocks = values.reshape(-1, size)
    reach = np.maximum(blocks.max(axis=1) / spec.qmax, blocks.min(axis=1) / spec.qmin)
    unit = np.float32(max(float(reach.max()), float(np.finfo(np.float32).tiny)))
    integers = np.empty(blocks.shape, np.int8)
    scale = np.empty(len(blocks), np.float16)
    step = max(ENTRIES_AT_ONCE // size, 1)
    for first in range(0, len(blocks), step):
        part = slice(first, first + step)
        scale[part], integers[part] = _least_error(blocks[part] / unit, reach[part] / unit, spec.qmin, spec.qmax)
    return TableSolution(constant, bits, integers.reshape(rows, columns), scale.reshape(rows, -1), unit)


def _least_error(
    blocks: NDArray[np.float32], reach: NDArray[np.float32], qmin: int, qmax: int
) -> tuple[NDArray[np.float16], NDArray[np.int8]]:
    """Scales and integers of least squared error for blocks (n, size) whose grids reach so far, (n,)."""
    best = np.zeros(len(blocks), np.float16)
    integers = np.zeros(blocks.shape, np.float32)
    error = np.full(len(blocks), np.inf)
    for ratio in CLIP_RATIOS[::-1]:
        scale = np.maximum((reach * ratio).astype(np.float16), np.finfo(np.float16).tiny)
        step = scale.astype(np.float32)[:, None]
        trial = (blocks / step).round().clip(qmin, qmax)
        gap = trial * step - blocks
        found = np.einsum("nk,nk->n", gap, gap)
        better = found < error
        best, error = np.where(better, scale, best), np.where(better, found, error)
        integers[better] = trial[better]
    return best, integers.astype(np.int8)
