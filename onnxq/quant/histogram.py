"""A streaming histogram of a tensor's values, whose range grows by doubling.

Bins have equal width over [−limit, limit) with limit a power of two. When a value falls outside, the
limit doubles and neighbouring bins merge in pairs: counts are exact whatever the order of the batches.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

HALF_BINS = 8192
"""Bins on either side of zero: at least 32 a step of an 8-bit grid over the range seen."""

SMALLEST_LIMIT = 2.0**-100
"""Half the range of a tensor of zeros: its bins are still normal float32 numbers."""

LARGEST_SAMPLE = 1 << 17
"""Values counted of one batch; of a larger batch every n-th, at a stride that is odd so as not to follow the axes."""


@dataclass(frozen=True)
class Histogram:
    """Counts of values seen.

    Attributes:
        limit: half the width of the range, a power of two; 0 before the first value.
        counts: (2·HALF_BINS,), int64.
        low: smallest value seen (exact, of all values).
        high: largest value seen (exact, of all values).
    """

    limit: float = 0.0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2 * HALF_BINS, np.int64))
    low: float = 0.0
    high: float = 0.0

    def update(self, values: NDArray[np.float32]) -> Histogram:
        """The histogram with one more batch counted; the range always holds zero."""
        if values.size == 0:
            return self
        low, high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        limit, counts = _grown(self.limit, self.counts, max(-low, high))
        flat = values.reshape(-1)
        if flat.size > LARGEST_SAMPLE:
            flat = flat[:: (flat.size // LARGEST_SAMPLE) | 1]
        index = np.floor(flat * np.float32(HALF_BINS / limit)).astype(np.int64)  # exact: a power of two, then a floor
        fresh = np.bincount((index + HALF_BINS).clip(0, 2 * HALF_BINS - 1), minlength=2 * HALF_BINS)
        return Histogram(limit=limit, counts=counts + fresh, low=low, high=high)

    @property
    def centres(self) -> NDArray[np.float64]:
        """The value each bin stands for, (2·HALF_BINS,)."""
        bins = np.arange(2 * HALF_BINS, dtype=np.float64)
        return (bins + (0.5 - HALF_BINS)) * (self.limit / HALF_BINS)


def _grown(limit: float, counts: NDArray[np.int64], reach: float) -> tuple[float, NDArray[np.int64]]:
    needed = math.ldexp(1.0, math.frexp(max(reach, SMALLEST_LIMIT))[1])  # above reach: the range is half open
    if limit == 0:
        return needed, counts
    while limit < needed:
        pairs = counts.reshape(-1, 2).sum(axis=1)
        counts = np.zeros_like(counts)
        counts[HALF_BINS // 2 : HALF_BINS // 2 + HALF_BINS] = pairs
        limit *= 2
    return limit, counts
