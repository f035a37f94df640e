"""Allocations under a latency budget, held against the time that they really take.

A layer's time depends on its neighbours: between integer and float layers stand quantizers and changes of layout, which
the table, measured on models at one candidate throughout, does not hold. So the chosen model is timed layer by
layer, its times replace those of the table, and the programme is solved again, until they agree.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from onnxq.allocation.allocate import allocate
from onnxq.allocation.bit_allocation import BitAllocation
from onnxq.allocation.choices import find_parts
from onnxq.allocation.cost.dummy_model import placeholder_model
from onnxq.allocation.cost.latency import Feed, run_times, time_models
from onnxq.allocation.problem import AllocationProblem
from onnxq.allocation.terms import InfeasibleError
from onnxq.config import Config
from onnxq.config.bit_widths import FLOAT
from onnxq.config.budget import Budget
from onnxq.ir.model import Model

ROUNDS = 4
"""Times at most that a choice is timed and made again."""

CLOSE = 0.1
"""How far predicted and measured time may be apart, as a share."""


def allocate_timed(
    model: Model, problem: AllocationProblem, budgets: Sequence[Budget], config: Config, feed: Feed
) -> BitAllocation:
    """The best allocation within budgets whose predicted time is that of the model.

    It gives way to a model of one candidate throughout that keeps all budgets, where that turns out to be faster and
    loses no more, or where it is slower than that and than the float model.

    Args:
        model: prepared.
        problem: losses and costs, latencies among them.
        budgets: at most one for each quantity.
        config: the container.
        feed: inputs of one run.

    Raises:
        InfeasibleError: no choice keeps the budgets.
    """
    found = allocate(problem, budgets)
    rivals = _throughout(problem, budgets)  # the table's times are of such models
    for _ in range(ROUNDS):
        problem = _timed(model, problem, found, config, feed)
        spent = problem.costs.total("latency", found.choice)
        agrees = abs(spent - found.costs["latency"]) <= CLOSE * spent
        try:
            found = allocate(problem, budgets)
        except InfeasibleError:
            if not rivals:
                raise
            return min(rivals, key=lambda rival: rival.loss)
        if agrees:
            break
    return _unbeaten(model, found, rivals, config, feed)


def _timed(
    model: Model, problem: AllocationProblem, found: BitAllocation, config: Config, feed: Feed
) -> AllocationProblem:
    """The problem with the chosen model's own times, in units of the table's float network."""
    in_float = dict.fromkeys(problem.layers, FLOAT)
    protos = [placeholder_model(model, config, choice)[0] for choice in (in_float, found.choice)]
    exact, chosen = time_models(model, find_parts(model), protos, feed)
    # The machine may be faster or slower than when the table was made.
    pace = problem.costs.whole["latency"] / exact.total
    rows = [list(row) for row in problem.costs.values["latency"]]
    for i, name in enumerate(problem.layers):
        rows[i][problem.candidates.index(found.choice[name])] = chosen.layers[name] * pace
    costs = dataclasses.replace(
        problem.costs,
        values={**problem.costs.values, "latency": tuple(map(tuple, rows))},
        rest={**problem.costs.rest, "latency": chosen.rest * pace},
    )
    return dataclasses.replace(problem, costs=costs)


def _throughout(problem: AllocationProblem, budgets: Sequence[Budget]) -> list[BitAllocation]:
    """Those with one candidate for all layers that keep the budgets."""
    found = []
    for candidate in problem.candidates:
        try:
            found.append(allocate(problem, budgets, fixed=dict.fromkeys(problem.layers, candidate)))
        except InfeasibleError:  # it does not keep the budgets, or first and last layers do not take it
            continue
    return found


def _unbeaten(
    model: Model, found: BitAllocation, rivals: Sequence[BitAllocation], config: Config, feed: Feed
) -> BitAllocation:
    """The choice, or a rival that beats it."""
    choices = [dict.fromkeys(found.choice, FLOAT), found.choice, *(rival.choice for rival in rivals)]
    in_float, own, *others = run_times([placeholder_model(model, config, choice)[0] for choice in choices], feed)
    return winner(found, own, list(zip(rivals, others, strict=True)), in_float)


def winner(
    found: BitAllocation, own: float, rivals: Sequence[tuple[BitAllocation, float]], in_float: float
) -> BitAllocation:
    """What to take: the choice, unless a rival is faster and no less accurate, or it is slower than float and a rival.

    Args:
        found: the choice.
        own: its time.
        rivals: other allocations within the budgets, with their times.
        in_float: time of the float model.
    """
    faster = [rival for rival, spent in rivals if spent < own]
    better = [rival for rival in faster if rival.loss <= found.loss]
    beaten = better or (faster if own > in_float else [])
    return min(beaten, key=lambda rival: rival.loss) if beaten else found
