"""Allocations as others make them: one width for all layers, or greedily; and the programme's at the same price."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from onnxq.allocation.allocate import allocate
from onnxq.allocation.bit_allocation import BitAllocation
from onnxq.allocation.problem import AllocationProblem
from onnxq.allocation.terms import InfeasibleError
from onnxq.config.bit_widths import Candidate
from onnxq.config.budget import Budget

EDGE = Candidate(8, 8)


def uniform(problem: AllocationProblem, quantity: str, limit: float) -> BitAllocation | None:
    """The widest candidate for all layers within a limit, first and last ones at 8 bits; None where none fits."""
    found = [(c, uniformly(problem, c)) for c in problem.candidates if c.activations == EDGE.activations]
    fitting = [(c, a) for c, a in found if a.costs[quantity] <= limit]
    return max(fitting, key=lambda pair: pair[0].weights)[1] if fitting else None


def uniformly(problem: AllocationProblem, candidate: Candidate) -> BitAllocation:
    """One candidate for all layers, first and last ones at 8 bits."""
    return carrying(problem, {name: EDGE if name in problem.edges else candidate for name in problem.layers})


def greedy(problem: AllocationProblem, quantity: str, limit: float) -> BitAllocation | None:
    """Lower one layer after another, in the order of what each lowering alone loses, until the limit is met."""
    loss, cost = problem.matrix("loss"), problem.matrix(quantity)
    rows = range(len(problem.layers))
    at = {i: int(np.nanargmin(loss[i])) for i in rows}
    steps = sorted((loss[i, j], cost[i, j], i, j) for i in rows for j in np.flatnonzero(np.isfinite(loss[i])))
    rest = problem.costs.rest[quantity]
    for _, _, i, j in steps:
        if rest + sum(cost[k, at[k]] for k in rows) <= limit:
            break
        if cost[i, j] < cost[i, at[i]]:
            at[i] = int(j)
    if rest + sum(cost[k, at[k]] for k in rows) > limit:
        return None
    return carrying(problem, {problem.layers[i]: problem.candidates[at[i]] for i in rows})


def programme(problem: AllocationProblem, quantity: str, limit: float) -> BitAllocation | None:
    """The integer programme's choice within a limit."""
    try:
        return allocate(problem, [Budget(quantity, limit)])
    except InfeasibleError:
        return None


def carrying(problem: AllocationProblem, choice: Mapping[str, Candidate]) -> BitAllocation:
    """A choice as an allocation with its prediction."""
    loss, error = problem.sensitivity.predicted(choice)
    costs = {q: problem.costs.total(q, choice) for q in problem.costs.values}
    return dataclasses.replace(allocate(problem, []), choice=choice, loss=loss, loss_error=error, costs=costs)
