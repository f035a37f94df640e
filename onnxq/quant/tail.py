"""What new samples bring beyond the largest values seen: the head-room that a range needs.

The largest of n values has been seen by one sample out of n. A new sample goes beyond it with probability 1/(n + 1),
whatever the distribution (order statistics of exchangeable samples), and then by β on average, for most tails are
exponential far out (Pickands, "Statistical inference using extreme order statistics", Ann. Statist. 1975, with shape
0). What clipping at an end R costs on new data is therefore, for each value of the tensor,

    rate · E[(edge + e − R)²]₊,   e ~ Exp(β),   rate = 1 / ((n + 1) · values of a sample),

    = rate · 2β² exp(−(R − edge)/β)                          beyond the largest value seen, and
    = rate · (d² + 2dβ + 2β²),  d = edge − R                  before it.

A feature map of 100,000 values hardly pays for it; a row of 16 numbers seen on 32 samples does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.quant.spec import QuantParams

PRIOR_SAMPLES = 2.0
"""Samples that the mean excess of Laplace's distribution counts for beside those seen."""


@dataclass(frozen=True)
class Tail:
    """One end of a tensor's values on new samples.

    Attributes:
        edge: largest magnitude seen on this side of zero.
        excess: β, what a value that goes beyond the edge exceeds it by on average.
        rate: expected share of a new sample's values that go beyond it.
    """

    edge: float = 0.0
    excess: float = 0.0
    rate: float = 0.0

    def lost(self, end: float) -> float:
        """Expected squared error of a value of new data because the grid ends there; the formula above."""
        if self.rate * self.excess == 0:
            return 0.0
        short = self.edge - end
        if short > 0:
            return self.rate * (short * short + 2 * short * self.excess + 2 * self.excess**2)
        return self.rate * 2 * self.excess**2 * math.exp(short / self.excess)


@dataclass(frozen=True)
class Tails:
    """Both ends of a tensor's values on new samples.

    Attributes:
        low: of the negative values, by their magnitude.
        high: of the positive ones.
    """

    low: Tail = Tail()
    high: Tail = Tail()

    @property
    def known(self) -> bool:
        """Whether anything is expected beyond the values seen."""
        return self.low.rate * self.low.excess + self.high.rate * self.high.excess > 0

    def lost(self, params: QuantParams) -> float:
        """Expected squared error of a value of new data because the grid ends where it does."""
        return self.low.lost(-float(params.lowest)) + self.high.lost(float(params.highest))


NO_TAILS = Tails()
"""Nothing is expected beyond what was seen."""


def find_tail(largest: NDArray[np.floating], values: float) -> Tail:
    """One end of a tensor from the largest magnitude that each sample has on that side.

    The mean excess is that of Gumbel's distribution with the deviation of the samples' largest values, or that of the
    upper √n samples over the next one where it is more (tails heavier than exponential). It is held towards that of
    Laplace's distribution, whose largest of N values is β·ln N. Two samples that end at exactly the same value have
    met a bound (a clip, white in an image): nothing is expected beyond it.

    Args:
        largest: of each sample, (n,), at least 0.
        values: of a sample, all together.
    """
    ordered = np.sort(np.asarray(largest, np.float64))[::-1]
    count = len(ordered)
    if not count or ordered[0] <= 0 or (count > 1 and ordered[0] == ordered[1]):
        return Tail(edge=float(ordered[0]) if count else 0.0)
    edge = float(ordered[0])
    laplace = edge / math.log(max(values, 1.0) * count + math.e)
    upper = min(math.isqrt(count - 1) + 1, count - 1)
    farther = float(ordered[:upper].mean() - ordered[upper]) if upper else 0.0
    seen = max(farther, float(ordered.std()) * math.sqrt(6) / math.pi)
    square = ((count - 1) * seen**2 + PRIOR_SAMPLES * laplace**2) / (count - 1 + PRIOR_SAMPLES)
    return Tail(edge, math.sqrt(square), 1 / ((count + 1) * max(values, 1.0)))
