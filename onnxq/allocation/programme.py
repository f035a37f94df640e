"""One integer programme, solved with HiGHS through cvxpy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cvxpy as cp
import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from onnxq.allocation.bit_allocation import Outcome
from onnxq.allocation.problem import Agreement, AllocationProblem
from onnxq.allocation.terms import SLACK, offset
from onnxq.candidate import Candidate

Array = NDArray[np.float64]

SCALE = 1e4
"""Size of the largest number of a row as the solver sees it: its tolerances are absolute, 1e-6 at most."""

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


@dataclass(frozen=True)
class Found:
    """What the solver came to: column of the candidate of each layer, and the proof."""

    outcome: Outcome
    choice: tuple[int, ...] | None = None
    bound: float = -math.inf


class Programme:
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
        self._offset = {q: offset(problem, q) for q in (minimised, *limits)}
        self._minimised = minimised
        self._rows = [(row[kept], limits[q] - self._offset[q]) for q, row in rows.items()]
        self._equal = self._agreements(problem)

    def solve(self) -> Found:
        """The optimum, or why there is none."""
        if len(np.unique(self._layer)) < self._layers:
            return Found(Outcome.INFEASIBLE)
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
                return Found(outcome if x.value is None else Outcome.FAILED)
            chosen = self._chosen(np.asarray(x.value))
            if all(math.fsum(row[chosen]) <= limit + SLACK * abs(limit) for row, limit in self._rows):
                bound = programme.solver_stats.extra_stats.mip_dual_bound * top / SCALE
                return Found(
                    outcome, tuple(int(c) for c in self._candidate[chosen]), bound + self._offset[self._minimised]
                )
            constraints.append(cp.sum(x[chosen]) <= self._layers - 1)
        return Found(Outcome.FAILED)

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
