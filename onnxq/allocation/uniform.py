"""The allocation that a mixed one has to beat: one candidate for every layer that may take it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np

from onnxq.allocation.bit_allocation import BitAllocation
from onnxq.allocation.problem import AllocationProblem
from onnxq.allocation.sensitivity_table import as_matrix
from onnxq.allocation.terms import InfeasibleError
from onnxq.config.bit_widths import FLOAT, Candidate
from onnxq.config.budget import LOSS


def best_uniform(
    problem: AllocationProblem, choose: Callable[[AllocationProblem], BitAllocation]
) -> BitAllocation | None:
    """The uniform allocation of least predicted loss that keeps the budgets; None where none does.

    Args:
        problem: the tables.
        choose: the best allocation of a problem within the budgets.
    """
    found = []
    for candidate in problem.candidates:
        if candidate != FLOAT:
            try:
                found.append(choose(_restricted(problem, candidate)))
            except InfeasibleError:
                continue
    return min(found, key=lambda allocation: allocation.loss, default=None)


def _restricted(problem: AllocationProblem, candidate: Candidate) -> AllocationProblem:
    """The problem in which every layer that may take a candidate has no other."""
    loss = problem.matrix(LOSS)
    column = problem.candidates.index(candidate)
    others = np.arange(len(problem.candidates)) != column
    loss[np.ix_(np.isfinite(loss[:, column]), others)] = np.nan
    sensitivity = dataclasses.replace(problem.sensitivity, loss=as_matrix(loss))
    return dataclasses.replace(problem, sensitivity=sensitivity)
