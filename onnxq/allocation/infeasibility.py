"""Why no allocation keeps the budgets: how little of each quantity can be reached."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxq.allocation.ilp import optimum
from onnxq.allocation.problem import AllocationProblem
from onnxq.allocation.terms import SLACK
from onnxq.config.budget import LOSS


def explanation(
    problem: AllocationProblem, open_: NDArray[np.bool_], limits: Mapping[str, float], seconds: float
) -> str:
    """How little can be reached of each budgeted quantity, alone and beside the other budgets."""
    told = []
    for quantity, limit in limits.items():
        least = _least(problem, open_, quantity, {}, seconds)
        if least is None:
            return "layers that must agree have no candidate in common; allow more candidates, or fix fewer layers."
        if least > limit + SLACK * abs(limit):
            told.append(f"the least {quantity} that can be reached is {_amount(problem, quantity, least)}")
    if not told:
        for quantity in limits:
            others = {q: v for q, v in limits.items() if q != quantity}
            least = _least(problem, open_, quantity, others, seconds)
            if least is not None:
                told.append(f"within the other budgets the least {quantity} is {_amount(problem, quantity, least)}")
    asked = " and ".join(f"{q} {_amount(problem, q, v)}" for q, v in limits.items())
    return f"no allocation keeps {asked}: {'; '.join(told)}; raise a budget or add candidates."


def _least(
    problem: AllocationProblem, open_: NDArray[np.bool_], quantity: str, limits: Mapping[str, float], seconds: float
) -> float | None:
    found = optimum(problem, open_, quantity, limits, seconds)
    return None if found.choice is None else found.value


def _amount(problem: AllocationProblem, quantity: str, value: float) -> str:
    """A quantity, with its share of the float network's."""
    if quantity == LOSS:
        return f"{value:.4g}"
    whole = problem.costs.whole[quantity]
    return f"{value:.6g} ({value / whole:.4f} of the float network's)" if math.isfinite(whole) else f"{value:.6g}"
