"""An allocation: the bits of every layer, and how well the choice is proven."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from onnxq.allocation.json_file import parsed, read_text
from onnxq.config.bit_widths import Candidate, parse_candidate


class Outcome(Enum):
    """How the solver ended."""

    OPTIMAL = "proven optimal"
    FEASIBLE = "the best found when the time was up"
    INACCURATE = "optimal within looser tolerances than asked for"
    INFEASIBLE = "no choice keeps the budgets"
    UNBOUNDED = "the programme has no least value"
    FAILED = "the solver failed"


@dataclass(frozen=True)
class BitAllocation:
    """The bits of every layer.

    Attributes:
        choice: candidate by layer name, in graph order.
        loss: predicted loss, if the layers' losses add up.
        loss_error: standard error of that prediction.
        costs: what it spends, by quantity.
        minimised: the quantity that was made as small as the budgets allow.
        status: how the solver ended.
        bound: no allocation within the budgets has less of the minimized quantity.
        gap: what was found minus the bound, relative to what was found; 0 is proven optimal.
        budgets: limits by quantity, in its unit.
    """

    choice: Mapping[str, Candidate]
    loss: float
    loss_error: float
    costs: Mapping[str, float]
    minimised: str
    status: Outcome
    bound: float
    gap: float
    budgets: Mapping[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "choice": {name: str(candidate) for name, candidate in self.choice.items()},
            "loss": self.loss,
            "loss_error": self.loss_error,
            "costs": dict(self.costs),
            "minimised": self.minimised,
            "status": self.status.name.lower(),
            "bound": self.bound,
            "gap": self.gap,
            "budgets": dict(self.budgets),
        }

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.to_dict(), allow_nan=False)


def allocation_from_json(text: str, what: str = "the allocation") -> BitAllocation:
    """The allocation that :meth:`BitAllocation.to_json` wrote.

    Raises:
        ConfigError: it is something else.
    """
    return parsed(text, what, _allocation, "onnxq allocate")


def read_allocation(path: Path) -> BitAllocation:
    """The allocation in a file.

    Raises:
        ConfigError: it cannot be read or holds something else.
    """
    return allocation_from_json(read_text(path, "allocation"), f"allocation {path}")


def _allocation(plain: Any) -> BitAllocation:
    return BitAllocation(
        choice={name: parse_candidate(word) for name, word in plain["choice"].items()},
        loss=float(plain["loss"]),
        loss_error=float(plain["loss_error"]),
        costs={q: float(v) for q, v in plain["costs"].items()},
        minimised=str(plain["minimised"]),
        status=Outcome[plain["status"].upper()],
        bound=float(plain["bound"]),
        gap=float(plain["gap"]),
        budgets={q: float(v) for q, v in plain["budgets"].items()},
    )
