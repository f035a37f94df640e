"""The front of allocations: the least loss for each amount of a cost."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from onnxq.allocation.allocate import allocate
from onnxq.allocation.bit_allocation import BitAllocation
from onnxq.allocation.problem import AllocationProblem
from onnxq.config.bit_widths import Candidate
from onnxq.config.budget import LOSS, Budget


def pareto_front(
    problem: AllocationProblem,
    quantity: str = "size",
    *,
    points: int = 20,
    budgets: Sequence[Budget] = (),
    fixed: Mapping[str, Candidate] | None = None,
    allowed: Collection[Candidate] | None = None,
    seconds: float = 60.0,
) -> tuple[BitAllocation, ...]:
    """Allocations of least loss from the cheapest to the most accurate, each cheaper than the next.

    Args:
        problem: losses and costs of every layer and candidate.
        quantity: the cost that is varied, in even steps.
        points: budgets tried; allocations that come out twice are given once.
        budgets: of other quantities, kept throughout.
        fixed: as for :func:`allocate`.
        allowed: as for :func:`allocate`.
        seconds: for each point.

    Raises:
        InfeasibleError: no choice keeps the budgets.
        ConfigError: as for :func:`allocate`.
    """
    others = [b for b in budgets if b.quantity != quantity]
    options = {"fixed": fixed, "allowed": allowed, "seconds": seconds}
    cheapest = allocate(problem, others, minimise=quantity, **options)  # type: ignore[arg-type]
    best = allocate(problem, [b for b in others if b.quantity != LOSS], minimise=LOSS, **options)  # type: ignore[arg-type]
    steps = np.linspace(cheapest.costs[quantity], best.costs[quantity], points)
    found: dict[tuple[Candidate, ...], BitAllocation] = {}
    for step in steps:
        limit = Budget(quantity, float(step))
        within = [b for b in others if b.quantity != LOSS]
        point = allocate(problem, [*within, limit], minimise=LOSS, **options)  # type: ignore[arg-type]
        found.setdefault(tuple(point.choice.values()), point)
    front: list[BitAllocation] = []
    for point in sorted(found.values(), key=lambda a: (a.costs[quantity], a.loss)):
        if not front or point.loss < front[-1].loss:
            front.append(point)
    return tuple(front)
