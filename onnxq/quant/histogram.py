"""A streaming histogram of a tensor's values, whose range grows by doubling.

Samples are counted apart by the size of their largest value, so that those of far more power than the others can
count for less afterwards, as rows do (:mod:`onnxq.solve.closed_form.row_weights`): a grid that reaches for one sample
that is ten thousand times too large leaves nothing of all others.

Bins have equal width over [−limit, limit) with limit a power of two. When a value falls outside, the
limit doubles and neighbouring bins merge in pairs: counts are exact whatever the order of the batches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from onnxq.quant.robust import bounded_weight
from onnxq.quant.tail import Tails, find_tail

HALF_BINS = 8192
"""Bins on either side of zero: at least 32 a step of an 8-bit grid over the range seen."""

SMALLEST_LIMIT = 2.0**-100
"""Half the range of a tensor of zeros: its bins are still normal float32 numbers."""

LARGEST_SAMPLE = 1 << 17
"""Values counted of one batch; of a larger batch one out of every n neighbours, drawn so as not to follow the axes."""

OCTAVES = 3
"""Samples are of one kind whose largest values lie within the same so many octaves."""

ZEROS = -(2**30)
"""Stands for the size of samples that hold nothing but zeros."""


@dataclass(frozen=True)
class Kind:
    """Samples whose largest values are of one size.

    Attributes:
        limit: half the width of the range of the bins, a power of two.
        counts: (2·HALF_BINS,), int64.
        lows: magnitude of each sample's smallest value, 0 where none is negative, (n,).
        highs: each sample's largest value, 0 where none is positive, (n,).
    """

    limit: float
    counts: NDArray[np.int64]
    lows: NDArray[np.float32]
    highs: NDArray[np.float32]

    @property
    def centres(self) -> NDArray[np.float64]:
        """The value each bin stands for, (2·HALF_BINS,)."""
        bins = np.arange(2 * HALF_BINS, dtype=np.float64)
        return (bins + (0.5 - HALF_BINS)) * (self.limit / HALF_BINS)

    def merged(self, most: int) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Centres and counts of neighbouring bins taken together, at most so many that are not empty."""
        centres, counts = self.centres, self.counts
        while np.count_nonzero(counts) > most and len(counts) > 2:
            centres, counts = centres.reshape(-1, 2).mean(axis=1), counts.reshape(-1, 2).sum(axis=1)
        return centres, counts

    @cached_property
    def power(self) -> float:
        """Mean square of the values."""
        used = np.flatnonzero(self.counts)
        return float(self.counts[used] @ np.square(self.centres[used])) / max(int(self.counts.sum()), 1)


@dataclass(frozen=True)
class Histogram:
    """Counts of values seen.

    Attributes:
        kinds: of samples, by the size of their largest value in octaves.
        low: smallest value seen (exact, of all values), at most 0.
        high: largest value seen (exact, of all values), at least 0.
        size: values seen, those included that were not counted.
    """

    kinds: Mapping[int, Kind] = field(default_factory=dict)
    low: float = 0.0
    high: float = 0.0
    size: int = 0

    def update(self, values: NDArray[np.float32], samples: int = 1) -> Histogram:
        """The histogram with one more batch counted; the range always holds zero.

        Args:
            values: any shape; the first axis is cut into as many equal parts as there are samples, where it can be.
            samples: in the batch.
        """
        if values.size == 0:
            return self
        parts = samples if values.ndim and samples and len(values) % samples == 0 else 1
        rows = values.reshape(parts, -1)
        lows, highs = np.maximum(-rows.min(axis=1), 0), np.maximum(rows.max(axis=1), 0)
        reach = np.maximum(lows, highs)
        stride = values.size // LARGEST_SAMPLE + 1 if values.size > LARGEST_SAMPLE else 1
        sizes = np.where(reach > 0, np.frexp(reach)[1] // OCTAVES, ZEROS)
        kinds = dict(self.kinds)
        for size in np.unique(sizes):
            own = sizes == size
            flat = _drawn((rows if own.all() else rows[own]).reshape(-1), stride)
            kinds[int(size)] = _with(kinds.get(int(size)), flat, lows[own], highs[own])
        low, high = min(self.low, -float(lows.max())), max(self.high, float(highs.max()))
        return Histogram(kinds, low, high, self.size + values.size)

    @property
    def regular(self) -> tuple[float, float]:
        """Smallest and largest value of the samples that count in full."""
        whole = self._whole()
        return -max((float(k.lows.max()) for k in whole), default=0.0), max(
            (float(k.highs.max()) for k in whole), default=0.0
        )

    def points(self, most: int = 2 * HALF_BINS) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Values in ascending order and how much each counts, both (points,); empty before the first value.

        Args:
            most: points of each kind of samples; neighbouring bins are taken together where there are more.
        """
        values: list[NDArray[np.float64]] = [np.zeros(0)]
        counts: list[NDArray[np.float64]] = [np.zeros(0)]
        for size, kind in self.kinds.items():
            centres, held = kind.merged(most)
            used = np.flatnonzero(held)
            values.append(centres[used])
            counts.append(np.asarray(held[used] * self._weights[size], np.float64))
        points, place = np.unique(np.concatenate(values), return_inverse=True)
        held = np.bincount(place, np.concatenate(counts), minlength=len(points))
        return points, np.asarray(held, np.float64)

    @cached_property
    def tails(self) -> Tails:
        """What new samples bring beyond the values of those that count in full."""
        whole = self._whole()
        if not whole:
            return Tails()
        each = self.size / sum(len(kind.highs) for kind in self.kinds.values())
        lows, highs = (np.concatenate([getattr(k, name) for k in whole]) for name in ("lows", "highs"))
        return Tails(find_tail(lows, each), find_tail(highs, each))

    def _whole(self) -> list[Kind]:
        return [kind for size, kind in self.kinds.items() if self._weights[size] == 1.0]

    @cached_property
    def _weights(self) -> dict[int, float]:
        """What each kind of samples counts for; its power is set against that of the median sample."""
        power = {size: kind.power for size, kind in self.kinds.items()}
        each = np.repeat(list(power.values()), [len(self.kinds[size].highs) for size in power])
        typical = float(np.median(each[each > 0])) if (each > 0).any() else 1.0
        weights = bounded_weight(np.array(list(power.values())) / typical)
        return dict(zip(power, weights.tolist(), strict=True))


def _drawn(values: NDArray[np.float32], stride: int) -> NDArray[np.float32]:
    """One out of every so many neighbours, (len(values) / stride,), the same ones of as many values."""
    if stride == 1 or len(values) < stride:
        return values
    first = np.arange(0, len(values) - stride + 1, stride)
    return np.asarray(values[first + np.random.default_rng(len(values)).integers(0, stride, len(first))])


def _with(kind: Kind | None, flat: NDArray[np.float32], lows: NDArray[np.float32], highs: NDArray[np.float32]) -> Kind:
    """A kind with more samples of it."""
    limit = _limit(float(max(lows.max(), highs.max())))
    if kind is not None:
        limit = max(limit, kind.limit)
    index = np.floor(flat * np.float32(HALF_BINS / limit)).astype(np.int64)  # exact: a power of two, then a floor
    counts = np.bincount((index + HALF_BINS).clip(0, 2 * HALF_BINS - 1), minlength=2 * HALF_BINS)
    if kind is None:
        return Kind(limit, counts, lows, highs)
    return Kind(
        limit,
        counts + _grown(kind.counts, kind.limit, limit),
        np.concatenate([kind.lows, lows]),
        np.concatenate([kind.highs, highs]),
    )


def _limit(reach: float) -> float:
    return math.ldexp(1.0, math.frexp(max(reach, SMALLEST_LIMIT))[1])  # above reach: the range is half open


def _grown(counts: NDArray[np.int64], limit: float, wanted: float) -> NDArray[np.int64]:
    """Counts of bins up to a limit, in those up to a larger one."""
    while limit < wanted:
        pairs = counts.reshape(-1, 2).sum(axis=1)
        counts = np.zeros_like(counts)
        counts[HALF_BINS // 2 : HALF_BINS // 2 + HALF_BINS] = pairs
        limit *= 2
    return counts
