"""An allocation: the bits of every layer, and how well the choice is proven."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from onnxq.allocation.json_file import parsed, read_text
from onnxq.config.bit_widths import Candidate, parse_candidate
from onnxq.config.budget import LOSS
from onnxq.errors import ConfigError


class Outcome(Enum):
    """How the solver ended."""

    OPTIMAL = "proven optimal"
    FEASIBLE = "the best found when the time was up"
    GIVEN = "given by hand"
    INACCURATE = "optimal within looser tolerances than asked for"
    INFEASIBLE = "no choice keeps the budgets"
    UNBOUNDED = "the programme has no least value"
    FAILED = "the solver failed"


@dataclass(frozen=True)
class BitAllocation:
    """The bits of every layer.

    Attributes:
        choice: candidate by layer name, in graph order.
        loss: predicted loss, if the layers' losses add up; NaN where the bits were given by hand.
        loss_error: standard error of that prediction; NaN likewise.
        costs: what it spends, by quantity.
        minimised: the quantity that was made as small as the budgets allow.
        status: how the solver ended.
        bound: no allocation within the budgets has less of the minimized quantity; NaN where none was proven.
        gap: what was found minus the bound, relative to what was found; 0 is proven optimal, NaN was not asked.
        budgets: limits by quantity, in its unit.
    """

    choice: Mapping[str, Candidate]
    loss: float = math.nan
    loss_error: float = math.nan
    costs: Mapping[str, float] = field(default_factory=dict)
    minimised: str = LOSS
    status: Outcome = Outcome.GIVEN
    bound: float = math.nan
    gap: float = math.nan
    budgets: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "choice": {name: str(candidate) for name, candidate in self.choice.items()},
            "loss": _plain(self.loss),
            "loss_error": _plain(self.loss_error),
            "costs": dict(self.costs),
            "minimised": self.minimised,
            "status": self.status.name.lower(),
            "bound": _plain(self.bound),
            "gap": _plain(self.gap),
            "budgets": dict(self.budgets),
        }

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.to_dict(), allow_nan=False)


def allocation_from_json(text: str, what: str = "the allocation", point: int | None = None) -> BitAllocation:
    """The allocation that :meth:`BitAllocation.to_json` wrote, one of a front of them, or one written by hand.

    Of an allocation the key ``choice`` is enough.

    Args:
        text: JSON.
        what: the subject of an error message.
        point: which one of a front, from 1 for the cheapest; None where there is no front.

    Raises:
        ConfigError: it is something else, or a front and no point of it.
    """
    return parsed(text, what, lambda plain: _allocation(_taken(plain, what, point)), "onnxq allocate")


def read_allocation(path: Path, point: int | None = None) -> BitAllocation:
    """The allocation in a file, or one of the front in it.

    Raises:
        ConfigError: it cannot be read or holds something else, or a front and no point of it.
    """
    return allocation_from_json(read_text(path, "allocation"), f"allocation {path}", point)


def _taken(plain: Any, what: str, point: int | None) -> Any:
    """The one allocation that is meant."""
    if "front" not in plain:
        if point is not None:
            raise ConfigError(f"{what} holds one allocation and no front, so there is no point to take: leave it out.")
        return plain
    front = plain["front"]
    if point is None or not 1 <= point <= len(front):
        found = f"has no point {point}" if point is not None else "has several points"
        raise ConfigError(
            f"{what} is a Pareto front and {found}: take one with --point, from 1, the cheapest, to {len(front)}, the "
            "most accurate."
        )
    return front[point - 1]


def _allocation(plain: Any) -> BitAllocation:
    choice = {name: parse_candidate(word) for name, word in plain["choice"].items()}
    return BitAllocation(choice, **{key: read(plain[key]) for key, read in _READ.items() if key in plain})


def _plain(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _numbers(values: Any) -> dict[str, float]:
    return {quantity: float(value) for quantity, value in values.items()}


_READ: dict[str, Callable[[Any], Any]] = {
    "loss": _number,
    "loss_error": _number,
    "costs": _numbers,
    "minimised": str,
    "status": lambda word: Outcome[word.upper()],
    "bound": _number,
    "gap": _number,
    "budgets": _numbers,
}
"""How what an allocation holds beside its choice is read; each has a default."""
