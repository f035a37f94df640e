"""The bits of every layer, chosen exactly by an integer programme (Hubara et al. 2021, eqs. 4a to 4d).

With a binary I_lc for layer l and candidate c (weight bits × activation bits):

    min Σ_lc loss_lc I_lc    subject to   Σ_c I_lc = 1 for every layer l,
                                          Σ_lc cost_lc I_lc ≤ budget for every budgeted quantity,
                                          equal bits for layers that must agree

or the other way round, the least of a cost under a budget of loss. It is a multiple-choice knapsack: HiGHS
proves its optimum for hundreds of layers in a fraction of a second.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from onnxq.allocation.bit_allocation import BitAllocation, Outcome
from onnxq.allocation.ilp import optimum
from onnxq.allocation.infeasibility import explanation
from onnxq.allocation.milp import Found
from onnxq.allocation.problem import AllocationProblem
from onnxq.allocation.terms import SLACK, InfeasibleError, limit_of, open_candidates
from onnxq.config.bit_widths import Candidate
from onnxq.config.budget import LOSS, Budget
from onnxq.errors import ConfigError


def allocate(
    problem: AllocationProblem,
    budgets: Sequence[Budget],
    *,
    minimise: str | None = None,
    fixed: Mapping[str, Candidate] | None = None,
    allowed: Collection[Candidate] | None = None,
    seconds: float = 60.0,
) -> BitAllocation:
    """The best allocation within budgets.

    Args:
        problem: losses and costs of every layer and candidate.
        budgets: at most one for each quantity.
        minimise: a quantity; when None the loss, or the size where the loss has a budget.
        fixed: layers whose candidate is given.
        allowed: candidates that may be chosen, such as those a target has; all when None.
        seconds: after which the best found so far is returned, with its gap.

    Raises:
        InfeasibleError: no choice keeps the budgets; says the least that can be reached.
        ConfigError: a quantity, layer or candidate is not in the problem, or the solver failed.
    """
    limits = {b.quantity: limit_of(problem, b) for b in budgets}
    minimised = minimise or ("size" if LOSS in limits else LOSS)
    open_ = open_candidates(problem, (minimised, *limits), fixed or {}, allowed)
    found = optimum(problem, open_, minimised, limits, seconds)
    if found.outcome is Outcome.INFEASIBLE:
        raise InfeasibleError(explanation(problem, open_, limits, seconds))
    if found.choice is None:
        raise ConfigError(f"no allocation was found: {found.outcome.value}; allow more time or fewer candidates.")
    return _allocation(problem, found, minimised, limits)


def _allocation(problem: AllocationProblem, found: Found, minimised: str, limits: Mapping[str, float]) -> BitAllocation:
    assert found.choice is not None
    choice = {name: problem.candidates[c] for name, c in zip(problem.layers, found.choice, strict=True)}
    loss, error = problem.sensitivity.predicted(choice)
    costs = {q: problem.costs.total(q, choice) for q in problem.costs.values}
    value = loss if minimised == LOSS else costs[minimised]
    gap = max(0.0, value - found.bound) / max(abs(value), 1e-30)
    proven = found.outcome is Outcome.OPTIMAL and gap < SLACK * 10
    return BitAllocation(
        choice=choice,
        loss=loss,
        loss_error=error,
        costs={q: v for q, v in costs.items() if math.isfinite(v)},
        minimised=minimised,
        status=found.outcome,
        bound=value if proven else found.bound,
        gap=0.0 if proven else gap,
        budgets=dict(limits),
    )
