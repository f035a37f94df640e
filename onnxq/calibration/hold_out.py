"""Which samples are kept back from what is fitted, so that they can tell how well it will do on new ones."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

HOLD_OUT = 8
"""Every eighth sample is kept back for good."""

FEW = 32
"""Of fewer samples an eighth says too little. How well the whole does is told by cross-fitting then."""

FOR_STARTS = 4
"""Every fourth sample is kept back while a layer's start is chosen where none is kept back for good."""


def kept_back(index: NDArray[np.integer[Any]], every: int = HOLD_OUT) -> NDArray[np.bool_]:
    """Which of some samples or rows, by their index, are kept back where one of so many is: the last of each."""
    return np.asarray(index % every == every - 1)


class KeepBack(Enum):
    """What samples are kept back for."""

    FOR_GOOD = "they judge the network"
    FOR_STARTS = "they judge the starts of layers, and are fitted afterwards"
    NOTHING = "all are fitted"


def usual(units: int) -> KeepBack:
    """What samples are kept back for where nobody says."""
    return KeepBack.FOR_STARTS if units < FEW else KeepBack.FOR_GOOD


@dataclass(frozen=True)
class HoldOut:
    """Which samples of a calibration set are kept back.

    Attributes:
        units: samples, or batches where the model insists on their size.
        whole: batches are not cut.
        purpose: what they are kept back for.
    """

    units: int
    whole: bool = False
    purpose: KeepBack = KeepBack.FOR_GOOD

    def fitted(self, batch: int, start: int, count: int) -> NDArray[np.bool_]:
        """Which samples of a batch may be fitted, (count,).

        Args:
            batch: its index.
            start: index of its first sample.
            count: of its samples.
        """
        unit = np.full(count, batch) if self.whole else np.arange(start, start + count)
        if self.units < 2 or self.purpose is KeepBack.NOTHING:
            return np.ones(count, np.bool_)
        if self.units < FOR_STARTS:
            return np.asarray(unit != self.units - 1)
        every = HOLD_OUT if self.purpose is KeepBack.FOR_GOOD else FOR_STARTS
        return ~kept_back(unit, every)
