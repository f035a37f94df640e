"""How a network is made, besides its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from onnxq.calibration.hold_out import KeepBack


class Ranges(Enum):
    """How the range of an activation comes about."""

    SEARCHED = "searched"
    EXTREMES = "from the smallest to the largest value seen"


@dataclass(frozen=True)
class Making:
    """How a network is made, besides its configuration.

    Attributes:
        ranges: how ranges of activations come about.
        keep_back: what some samples are kept back for; by their number when None.
        plain: weights are rounded to nearest between their extremes and nothing is judged, for a quick look.
    """

    ranges: Ranges = Ranges.SEARCHED
    keep_back: KeepBack | None = None
    plain: bool = False


USUAL = Making()
"""As people have their networks made."""
