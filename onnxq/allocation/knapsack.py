"""The multiple-choice knapsack of an allocation, as the arrays that a solver takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from onnxq.allocation.problem import Agreement, AllocationProblem
from onnxq.allocation.terms import SLACK, offset
from onnxq.config.bit_widths import Candidate

Array = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Knapsack:
    """Binary variables, one for each candidate that a layer may take, of which each layer takes one.

    Attributes:
        layers: number of layers.
        layer: of each variable, (variables,).
        candidate: of each variable, column of the problem's tables.
        objective: what is minimized, (variables,).
        spent: by budget, (budgets, variables).
        limits: (budgets,).
        equal: rows whose products with the choice are 0 where layers agree, (rows, variables).
    """

    layers: int
    layer: NDArray[np.int64]
    candidate: NDArray[np.int64]
    objective: Array
    spent: Array
    limits: Array
    equal: sp.csr_array

    @property
    def allowances(self) -> Array:
        """The limits with what rounding may overstep them by, (budgets,)."""
        found: Array = self.limits + SLACK * np.abs(self.limits)
        return found

    @property
    def one_each(self) -> sp.csr_array:
        """A row for each layer with ones at its variables, (layers, variables)."""
        size = len(self.layer)
        return sp.csr_array((np.ones(size), (self.layer, np.arange(size))), shape=(self.layers, size))

    @property
    def served(self) -> bool:
        """Whether every layer has a variable."""
        return len(np.unique(self.layer)) == self.layers

    def only(self, kept: Mask) -> Knapsack:
        """The same with some variables alone."""
        return Knapsack(
            self.layers,
            self.layer[kept],
            self.candidate[kept],
            self.objective[kept],
            self.spent[:, kept],
            self.limits,
            self.equal[:, kept],
        )


def make_knapsack(problem: AllocationProblem, open_: Mask, minimised: str, limits: Mapping[str, float]) -> Knapsack:
    """The knapsack of a problem, without candidates that another of the same layer matches in everything.

    Args:
        problem: losses and costs.
        open_: candidates that each layer may take, (layers, candidates).
        minimised: quantity of the objective.
        limits: by quantity, in its unit.
    """
    objective = problem.matrix(minimised)
    rows = [problem.matrix(q) for q in limits]
    bound = {name for a in problem.agreements for name in a.layers}
    alone = np.array([name not in bound for name in problem.layers])
    kept = _undominated([objective, *rows], open_, alone)
    layer, candidate = np.nonzero(kept)
    return Knapsack(
        len(problem.layers),
        layer,
        candidate,
        objective[kept],
        np.array([row[kept] for row in rows]).reshape(len(rows), len(layer)),
        np.array([limit - offset(problem, q) for q, limit in limits.items()]),
        _agreements(problem, layer, candidate),
    )


def _undominated(criteria: Sequence[Array], open_: Mask, alone: Mask) -> Mask:
    """Candidates that no other of the same layer matches in everything; the first of equals stays."""
    kept = open_.copy()
    first = np.arange(open_.shape[1])[:, None] < np.arange(open_.shape[1])[None, :]
    for i in np.flatnonzero(alone):
        values = np.stack([c[i] for c in criteria], axis=-1)
        below = (values[:, None] <= values[None, :]).all(axis=-1) & open_[i][:, None]
        better = below & (first | (values[:, None] < values[None, :]).any(axis=-1))
        kept[i] &= ~better.any(axis=0)
    return kept


def _agreements(problem: AllocationProblem, layer: NDArray[np.int64], candidate: NDArray[np.int64]) -> sp.csr_array:
    """Rows that are 0 where layers agree: for each pair and each value, one's choices of it minus the other's."""
    index = {name: i for i, name in enumerate(problem.layers)}
    rows: list[Array] = []
    for agreement in problem.agreements:
        value = np.array([_agreed(c, agreement) for c in problem.candidates])[candidate]
        first = index[agreement.layers[0]]
        for name in agreement.layers[1:]:
            for v in np.unique(value):
                here = (value == v).astype(float)
                rows.append(here * (layer == first) - here * (layer == index[name]))
    return sp.csr_array(np.array(rows).reshape(len(rows), len(layer)))


def _agreed(candidate: Candidate, agreement: Agreement) -> int:
    """A number that is the same for candidates that agree."""
    return candidate.activations + (100 * candidate.weights if agreement.weights else 0)
