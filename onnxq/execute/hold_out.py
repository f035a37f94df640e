"""Which samples are kept back from what is fitted, so that they can tell how well it will do on new ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HOLD_OUT = 8
"""Every eighth sample is kept back."""

FEW = 32
"""Of fewer samples an eighth says too little: every fourth is kept back while a layer's start is chosen, and fitted
afterwards. How well the whole does is told by cross-fitting then."""


@dataclass(frozen=True)
class HoldOut:
    """Which samples of a calibration set are kept back.

    Attributes:
        units: samples, or batches where the model insists on their size.
        whole: batches are not cut.
    """

    units: int
    whole: bool = False

    @property
    def few(self) -> bool:
        """Whether there are too few units to keep any back for good."""
        return self.units < FEW

    def fitted(self, batch: int, start: int, count: int) -> NDArray[np.bool_]:
        """Which samples of a batch may be fitted, (count,).

        Args:
            batch: its index.
            start: index of its first sample.
            count: of its samples.
        """
        unit = np.full(count, batch) if self.whole else np.arange(start, start + count)
        if self.units < 2:
            return np.ones(count, np.bool_)
        if self.units < 4:
            return np.asarray(unit != self.units - 1)
        every = 4 if self.few else HOLD_OUT
        return np.asarray(unit % every != every - 1)
