"""What is asked of an allocation: candidates that may be taken, and limits in the units of their quantities."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxq.allocation.problem import AllocationProblem
from onnxq.config.bit_widths import Candidate
from onnxq.config.budget import LOSS, Budget
from onnxq.errors import ConfigError

SLACK = 1e-9
"""Share of a budget by which rounding may overstep it."""


class InfeasibleError(ConfigError):
    """No allocation keeps the budgets; the message says how little can be reached."""


def open_candidates(
    problem: AllocationProblem,
    quantities: Sequence[str],
    fixed: Mapping[str, Candidate],
    allowed: Collection[Candidate] | None,
) -> NDArray[np.bool_]:
    """Which candidates each layer may take, (layers, candidates)."""
    candidates = problem.candidates
    known = np.isfinite(np.stack([problem.matrix(q) for q in (LOSS, *quantities)])).all(axis=0)
    open_ = known & np.array([allowed is None or c in allowed for c in candidates])
    for name, candidate in fixed.items():
        if name not in problem.layers or candidate not in candidates:
            raise ConfigError(
                f"layer {name!r} cannot be fixed at {candidate}: the table holds "
                + (f"the candidates {', '.join(map(str, candidates))}." if name in problem.layers else "no such layer.")
            )
        row = problem.layers.index(name)
        open_[row] &= np.array([c == candidate for c in candidates])
    for name, row in zip(problem.layers, open_, strict=True):
        if not row.any():
            raise InfeasibleError(
                f"layer {name!r} is left without a candidate that is allowed and has numbers for "
                f"{' and '.join(dict.fromkeys(quantities))}; allow more candidates, or measure them."
            )
    return open_


def limit_of(problem: AllocationProblem, budget: Budget) -> float:
    """A budget in the unit of its quantity.

    Raises:
        ConfigError: the table does not hold the quantity, or not what the float network spends of it.
    """
    problem.matrix(budget.quantity)  # it says what the table holds
    if not budget.relative:
        return budget.amount
    whole = problem.costs.whole[budget.quantity]
    if not math.isfinite(whole):
        raise ConfigError(
            f"budget {budget} is a fraction, but the table does not say what {budget.quantity} the float network "
            "spends; give an amount instead, or measure the candidate float too."
        )
    return budget.limit(whole)


def offset(problem: AllocationProblem, quantity: str) -> float:
    """What the network loses or spends besides its layers' choices."""
    return problem.sensitivity.reference_loss if quantity == LOSS else problem.costs.rest[quantity]
