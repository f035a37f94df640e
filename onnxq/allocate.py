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
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from onnxq.allocation import BitAllocation, Outcome
from onnxq.budget import LOSS, Budget
from onnxq.candidate import Candidate
from onnxq.errors import ConfigError
from onnxq.tables import Agreement, AllocationProblem

Array = NDArray[np.float64]

SCALE = 1e4
"""Size of the largest number of a row as the solver sees it: its tolerances are absolute, 1e-6 at most."""

SLACK = 1e-9
"""Share of a budget by which rounding may overstep it."""

CUTS = 50
"""Choices at most that are struck out for overstepping a budget within the solver's tolerance."""

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


class InfeasibleError(ConfigError):
    """No allocation keeps the budgets; the message says how little can be reached."""


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
    limits = {b.quantity: _limit(problem, b) for b in budgets}
    minimised = minimise or ("size" if LOSS in limits else LOSS)
    open_ = _open(problem, (minimised, *limits), fixed or {}, allowed)
    found = _Programme(problem, open_, minimised, limits, seconds).solve()
    if found.outcome is Outcome.INFEASIBLE:
        raise InfeasibleError(_explanation(problem, open_, limits, seconds))
    if found.choice is None:
        raise ConfigError(f"no allocation was found: {found.outcome.value}; allow more time or fewer candidates.")
    return _allocation(problem, found, minimised, limits)


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


@dataclass(frozen=True)
class _Found:
    """What the solver came to: column of the candidate of each layer, and the proof."""

    outcome: Outcome
    choice: tuple[int, ...] | None = None
    bound: float = -math.inf


class _Programme:
    """One integer programme.

    Args:
        problem: losses and costs.
        open_: candidates that each layer may take, (layers, candidates).
        minimised: quantity of the objective.
        limits: by quantity, in its unit.
        seconds: time limit.
    """

    def __init__(
        self,
        problem: AllocationProblem,
        open_: NDArray[np.bool_],
        minimised: str,
        limits: Mapping[str, float],
        seconds: float,
    ) -> None:
        self._seconds = seconds
        objective = problem.matrix(minimised)
        rows = {q: problem.matrix(q) for q in limits}
        bound = {name for a in problem.agreements for name in a.layers}
        alone = np.array([name not in bound for name in problem.layers])
        kept = _undominated([objective, *rows.values()], open_, alone)
        self._layer, self._candidate = np.nonzero(kept)
        self._layers = len(problem.layers)
        self._objective = objective[kept]
        self._offset = {q: _offset(problem, q) for q in (minimised, *limits)}
        self._minimised = minimised
        self._rows = [(row[kept], limits[q] - self._offset[q]) for q, row in rows.items()]
        self._equal = self._agreements(problem)

    def solve(self) -> _Found:
        """The optimum, or why there is none."""
        if len(np.unique(self._layer)) < self._layers:
            return _Found(Outcome.INFEASIBLE)
        size = len(self._layer)
        x = cp.Variable(size, boolean=True)
        top = np.abs(self._objective).max() or 1.0
        constraints = [_one_each(self._layer) @ x == 1]
        if self._equal.shape[0]:
            constraints.append(self._equal @ x == 0)
        for row, limit in self._rows:
            most = max(np.abs(row).max(), abs(limit)) or 1.0
            allowance = limit + SLACK * abs(limit)
            constraints.append((row * (SCALE / most)) @ x <= allowance * (SCALE / most))
        for _ in range(CUTS):
            programme = cp.Problem(cp.Minimize((self._objective * (SCALE / top)) @ x), constraints)
            outcome = self._run(programme)
            if outcome in (Outcome.INFEASIBLE, Outcome.FAILED, Outcome.UNBOUNDED) or x.value is None:
                return _Found(outcome if x.value is None else Outcome.FAILED)
            chosen = self._chosen(np.asarray(x.value))
            if all(math.fsum(row[chosen]) <= limit + SLACK * abs(limit) for row, limit in self._rows):
                bound = programme.solver_stats.extra_stats.mip_dual_bound * top / SCALE
                return _Found(
                    outcome, tuple(int(c) for c in self._candidate[chosen]), bound + self._offset[self._minimised]
                )
            constraints.append(cp.sum(x[chosen]) <= self._layers - 1)
        return _Found(Outcome.FAILED)

    def _run(self, programme: cp.Problem) -> Outcome:
        try:
            programme.solve(
                solver=cp.HIGHS, mip_rel_gap=0.0, mip_abs_gap=0.0, time_limit=self._seconds, threads=1, random_seed=0
            )
        except cp.error.SolverError:
            return Outcome.FAILED
        return OUTCOMES.get(programme.status, Outcome.FAILED)

    def _chosen(self, x: Array) -> NDArray[np.int64]:
        """Index of the variable that is 1, for each layer."""
        return np.array(
            [int(i[x[i].argmax()]) for i in (np.flatnonzero(self._layer == la) for la in range(self._layers))]
        )

    def _agreements(self, problem: AllocationProblem) -> sp.csr_array:
        """Rows that are 0 where layers agree: for each pair and each value, one's choices of it minus the other's."""
        index = {name: i for i, name in enumerate(problem.layers)}
        rows: list[Array] = []
        for agreement in problem.agreements:
            value = np.array([_agreed(c, agreement) for c in problem.candidates])[self._candidate]
            first = index[agreement.layers[0]]
            for name in agreement.layers[1:]:
                for v in np.unique(value):
                    here = (value == v).astype(float)
                    rows.append(here * (self._layer == first) - here * (self._layer == index[name]))
        return sp.csr_array(np.array(rows).reshape(len(rows), len(self._layer)))


def _agreed(candidate: Candidate, agreement: Agreement) -> int:
    """A number that is the same for candidates that agree."""
    return candidate.activations + (100 * candidate.weights if agreement.weights else 0)


def _one_each(layer: NDArray[np.int64]) -> sp.csr_array:
    """A row for each layer with ones at its variables."""
    return sp.csr_array((np.ones(len(layer)), (layer, np.arange(len(layer)))))


def _undominated(criteria: Sequence[Array], open_: NDArray[np.bool_], alone: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Candidates that no other of the same layer matches in everything; the first of equals stays."""
    stacked = np.stack(criteria, axis=-1)
    kept = open_.copy()
    for i in np.flatnonzero(alone):
        for j in np.flatnonzero(open_[i]):
            for k in np.flatnonzero(kept[i]):
                better = stacked[i, k] <= stacked[i, j]
                if k != j and better.all() and (k < j or (stacked[i, k] < stacked[i, j]).any()):
                    kept[i, j] = False
                    break
    return kept


def _open(
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


def _limit(problem: AllocationProblem, budget: Budget) -> float:
    problem.matrix(budget.quantity)  # it says what the table holds
    if not budget.relative:
        return budget.amount
    whole = problem.costs.whole[budget.quantity]
    if not math.isfinite(whole):
        raise ConfigError(
            f"budget {budget} is a fraction, but the table does not say what {budget.quantity} the float network "
            "spends; give an amount instead."
        )
    return budget.limit(whole)


def _offset(problem: AllocationProblem, quantity: str) -> float:
    return problem.sensitivity.reference_loss if quantity == LOSS else problem.costs.rest[quantity]


def _explanation(
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
    found = _Programme(problem, open_, quantity, limits, seconds).solve()
    if found.choice is None:
        return None
    spent = problem.matrix(quantity)[np.arange(len(problem.layers)), list(found.choice)]
    return _offset(problem, quantity) + math.fsum(spent)


def _amount(problem: AllocationProblem, quantity: str, value: float) -> str:
    """A quantity, with its share of the float network's."""
    if quantity == LOSS:
        return f"{value:.4g}"
    whole = problem.costs.whole[quantity]
    return f"{value:.6g} ({value / whole:.4f} of the float network's)" if math.isfinite(whole) else f"{value:.6g}"


def _allocation(
    problem: AllocationProblem, found: _Found, minimised: str, limits: Mapping[str, float]
) -> BitAllocation:
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
