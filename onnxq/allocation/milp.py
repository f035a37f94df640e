"""The best choice of a knapsack, found and proven by HiGHS."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
from numpy.typing import NDArray

from onnxq.allocation.bit_allocation import Outcome
from onnxq.allocation.knapsack import Knapsack

SCALE = 1e4
"""Size of the largest number of a row as the solver sees it: its tolerances are absolute, 1e-6 at most."""

CUTS = 50
"""Choices at most that are struck out for overstepping a budget within the solver's tolerance."""

SHORTEST = 0.1
"""Seconds that a search has at least."""

OUTCOMES = {
    cp.OPTIMAL: Outcome.OPTIMAL,
    cp.OPTIMAL_INACCURATE: Outcome.INACCURATE,
    cp.USER_LIMIT: Outcome.FEASIBLE,
    cp.INFEASIBLE: Outcome.INFEASIBLE,
    cp.INFEASIBLE_INACCURATE: Outcome.INFEASIBLE,
    cp.UNBOUNDED: Outcome.UNBOUNDED,
    cp.UNBOUNDED_INACCURATE: Outcome.UNBOUNDED,
    "infeasible_or_unbounded": Outcome.INFEASIBLE,  # every variable is bounded
    cp.SOLVER_ERROR: Outcome.FAILED,
}
"""What each status of cvxpy means here; any other is a failure."""


@dataclass(frozen=True)
class Found:
    """What the solver came to.

    Attributes:
        outcome: how it ended.
        choice: column of the candidate of each layer; None where there is none.
        value: of the objective.
        bound: no choice within the budgets has less.
    """

    outcome: Outcome
    choice: tuple[int, ...] | None = None
    value: float = math.inf
    bound: float = -math.inf


def search(knapsack: Knapsack, seconds: float, *, within: float = 0.0) -> Found:
    """The optimum, or why there is none.

    Args:
        knapsack: what to choose from.
        seconds: after which the best found so far is returned.
        within: how far from the optimum a choice may be, in units of the objective.
    """
    if not knapsack.served:
        return Found(Outcome.INFEASIBLE)
    x = cp.Variable(len(knapsack.layer), boolean=True)
    top = np.abs(knapsack.objective).max() or 1.0
    constraints = [knapsack.one_each @ x == 1]
    if knapsack.equal.shape[0]:
        constraints.append(knapsack.equal @ x == 0)
    for row, limit, allowance in zip(knapsack.spent, knapsack.limits, knapsack.allowances, strict=True):
        most = max(np.abs(row).max(), abs(limit)) or 1.0
        constraints.append((row * (SCALE / most)) @ x <= allowance * (SCALE / most))
    for _ in range(CUTS):
        programme = cp.Problem(cp.Minimize((knapsack.objective * (SCALE / top)) @ x), constraints)
        outcome = _run(programme, seconds, within * SCALE / top)
        if outcome in (Outcome.INFEASIBLE, Outcome.FAILED, Outcome.UNBOUNDED) or x.value is None:
            return Found(outcome if x.value is None else Outcome.FAILED)
        chosen = _chosen(knapsack, np.asarray(x.value))
        if all(math.fsum(row[chosen]) <= most for row, most in zip(knapsack.spent, knapsack.allowances, strict=True)):
            return Found(
                outcome,
                tuple(int(c) for c in knapsack.candidate[chosen]),
                math.fsum(knapsack.objective[chosen]),
                programme.solver_stats.extra_stats.mip_dual_bound * top / SCALE,
            )
        constraints.append(cp.sum(x[chosen]) <= knapsack.layers - 1)
    return Found(Outcome.FAILED)


def _run(programme: cp.Problem, seconds: float, gap: float) -> Outcome:
    limits = {"mip_rel_gap": 0.0, "mip_abs_gap": gap, "time_limit": max(seconds, SHORTEST)}
    try:
        programme.solve(solver=cp.HIGHS, threads=1, random_seed=0, **limits)
    except cp.error.SolverError:
        return Outcome.FAILED
    return OUTCOMES.get(programme.status, Outcome.FAILED)


def _chosen(knapsack: Knapsack, x: NDArray[np.float64]) -> NDArray[np.int64]:
    """Index of the variable that is 1, for each layer."""
    places = (np.flatnonzero(knapsack.layer == la) for la in range(knapsack.layers))
    return np.array([int(i[x[i].argmax()]) for i in places])
