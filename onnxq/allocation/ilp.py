"""The integer programme of an allocation, solved to a proof on as few variables as that takes.

The linear relaxation tells for each variable by how much a choice that takes it exceeds the bound at least. A choice
among the variables that exceed it least is found first, roughly; then only those are searched to the end that can be
in a better one. What is left out cannot be, so the optimum is that of the whole programme.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping

import numpy as np

from onnxq.allocation.bit_allocation import Outcome
from onnxq.allocation.knapsack import Knapsack, Mask, make_knapsack
from onnxq.allocation.lp_bound import relax
from onnxq.allocation.milp import Found, search
from onnxq.allocation.problem import AllocationProblem
from onnxq.allocation.terms import SLACK, offset

SMALL = 300
"""Variables that are searched at once."""

FIRST = 2
"""Variables for each layer among which the first choice is found."""

ROUGH = 0.6
"""How far the first choice may be from the best, in excesses of the variables that are not searched for it."""

WIDER = 8.0
"""Factor of that excess where no choice was found among the first variables."""


def optimum(
    problem: AllocationProblem, open_: Mask, minimised: str, limits: Mapping[str, float], seconds: float
) -> Found:
    """The best choice, or why there is none; its value and bound count what is spent besides the layers.

    Args:
        problem: losses and costs.
        open_: candidates that each layer may take, (layers, candidates).
        minimised: quantity of the objective.
        limits: by quantity, in its unit.
        seconds: after which the best found so far is returned.
    """
    knapsack = make_knapsack(problem, open_, minimised, limits)
    if len(knapsack.layer) <= SMALL or not knapsack.served:
        found = search(knapsack, seconds)
    else:
        found = _solved(knapsack, seconds)
    besides = offset(problem, minimised)
    return dataclasses.replace(found, value=found.value + besides, bound=found.bound + besides)


def _solved(knapsack: Knapsack, seconds: float) -> Found:
    """The optimum of a large knapsack."""
    until = time.monotonic() + seconds
    relaxed = relax(knapsack)
    if relaxed.bound == math.inf:
        return Found(Outcome.INFEASIBLE)
    order = np.sort(relaxed.added)
    width = float(order[min(len(order) - 1, FIRST * knapsack.layers)])
    first = Found(Outcome.INFEASIBLE)
    while first.choice is None:
        kept = relaxed.added <= width
        if kept.all():
            return search(knapsack, until - time.monotonic())
        first = search(knapsack.only(kept), until - time.monotonic(), within=ROUGH * width)
        if first.outcome not in (Outcome.INFEASIBLE, Outcome.OPTIMAL):
            break
        width = max(WIDER * width, SLACK * float(order[-1]))
    if first.choice is None:
        return first
    excess = first.value - relaxed.bound + SLACK * abs(first.value)
    found = search(knapsack.only(relaxed.added <= excess), until - time.monotonic())
    best = min((first, found), key=lambda f: f.value)
    outcome = Outcome.FEASIBLE if found.choice is None else found.outcome
    return dataclasses.replace(best, outcome=outcome, bound=max(relaxed.bound, min(found.bound, best.value)))
