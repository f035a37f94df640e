"""What a stage came to: what it did, and the loss before and after."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol


class _Solved(Protocol):
    @property
    def loss_nearest(self) -> float: ...
    @property
    def loss(self) -> float: ...
    @property
    def status(self) -> str: ...


@dataclass(frozen=True)
class StageReport:
    """A stage that changes the network's numbers.

    Attributes:
        stage: its name, as in ``seconds``.
        did: what it did, in words.
        judged_by: what the losses are.
        before: loss before the stage; None where it found nothing to judge by.
        after: loss behind it.
    """

    stage: str
    did: str
    judged_by: str
    before: float | None
    after: float | None

    @property
    def change(self) -> str:
        """The losses in words, such as ``0.0123, then 0.0045``."""
        if self.before is None or self.after is None:
            return "not judged"
        return f"{self.before:.3g}, then {self.after:.3g}"


def solved_stage(layers: Iterable[_Solved]) -> StageReport:
    """The solution of the layers beside rounding to nearest: geometric means, which one bad layer does not rule."""
    layers = tuple(layers)
    counts = Counter(layer.status for layer in layers)
    did = "; ".join(f"{count} {'layer' if count == 1 else 'layers'} {status}" for status, count in counts.most_common())
    judged_by = "error of a layer's output on held-out rows, nearest rounding first"
    return StageReport(
        "solve", did, judged_by, _mean(la.loss_nearest for la in layers), _mean(la.loss for la in layers)
    )


def judged_stage(stage: str, did: str, judged_by: str, before: float, after: float) -> StageReport:
    """A stage whose losses may be unknown."""
    known = math.isfinite(before) and math.isfinite(after)
    return StageReport(stage, did, judged_by, before if known else None, after if known else None)


def _mean(losses: Iterable[float]) -> float | None:
    kept = [math.log(loss) for loss in losses if math.isfinite(loss) and loss > 0]
    return math.exp(sum(kept) / len(kept)) if kept else None
