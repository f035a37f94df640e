"""Mean and deviation of a tensor's channels, gathered batch by batch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Double = NDArray[np.float64]


@dataclass(frozen=True)
class ChannelMoments:
    """Sums over a tensor's values, a channel at a time, around a fixed point.

    Attributes:
        count: values summed in each channel.
        around: what the sums are taken about, so that nothing cancels, (C,).
        total: Σ (y − around), (C,).
        square: Σ (y − around)², (C,).
    """

    count: int
    around: Double
    total: Double
    square: Double

    @property
    def mean(self) -> Double:
        """Mean of each channel, (C,)."""
        return self.around + self.total / self.count

    @property
    def deviation(self) -> Double:
        """Standard deviation of each channel, (C,)."""
        shift = self.total / self.count
        return np.asarray(np.sqrt(np.maximum(self.square / self.count - shift * shift, 0)))


def channel_moments(values: NDArray[np.generic], axis: int, before: ChannelMoments | None = None) -> ChannelMoments:
    """Moments of a tensor's channels, added to those of earlier batches.

    Args:
        values: any shape.
        axis: of the channels.
        before: of the batches so far.
    """
    columns = np.moveaxis(values.astype(np.float32, copy=False), axis, 0).reshape(values.shape[axis], -1)
    around = columns.mean(axis=1, dtype=np.float64) if before is None else before.around
    gap = columns - around.astype(np.float32)[:, None]
    exact = around.astype(np.float32).astype(np.float64)
    total, square = gap.sum(axis=1, dtype=np.float64), np.einsum("cn,cn->c", gap, gap, dtype=np.float64)
    if before is None:
        return ChannelMoments(columns.shape[1], exact, total, square)
    return ChannelMoments(before.count + columns.shape[1], exact, before.total + total, before.square + square)
