"""A quantized table: rows of integers with a half-precision scale for each block of columns.

    entry = (code − 8 or 128) · s_block · unit

The scales are half floats in units that bring the largest to 1: three digits are enough for a scale, at half the
space of single precision. All entries of a block share one; at 8 bits a row is one block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class TableSolution:
    """Rows on their grids.

    Attributes:
        constant: name of the constant that holds the rows in float.
        bits: 4 or 8.
        integers: (rows, columns), int8, from −2^(bits−1) on.
        scale: (rows, blocks), float16, in units of ``unit``.
        unit: float32.
    """

    constant: str
    bits: int
    integers: NDArray[np.int8]
    scale: NDArray[np.float16]
    unit: np.float32

    @property
    def block(self) -> int:
        """Columns that share a scale."""
        return int(self.integers.shape[1] // self.scale.shape[1])

    def dequantized(self) -> NDArray[np.float32]:
        """The rows that the integers stand for, (rows, columns)."""
        scale = np.repeat(self.scale.astype(np.float32), self.block, axis=1)
        return (self.integers * self.unit) * scale
