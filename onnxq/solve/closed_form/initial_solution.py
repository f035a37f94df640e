"""The starting point of a layer: nearest rounding, or the second-order start where the hold-out prefers it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.layer_rows import selected
from onnxq.quant.affine import quantize
from onnxq.quant.saturation import exact_scale
from onnxq.quant.scale_search import stretched, weight_scale
from onnxq.quant.spec import QuantParams
from onnxq.solve.closed_form.moments import Moments, bias_correction
from onnxq.solve.closed_form.normal_equations import Groundwork, damped_target, damped_targets, fitted_moments
from onnxq.solve.closed_form.rounding import Rounded, Target, rescaled, rounded
from onnxq.solve.closed_form.significance import exceeds_chance, row_errors
from onnxq.solve.problem import (
    LayerProblem,
    Solution,
    Status,
    output_error,
    quantized_rows,
    weighted_power,
)

Array = NDArray[np.float32]
GRID_ROWS, GRID_VALUES = 2048, 2**15
"""Rows on which grids of the input are compared, at most: of narrow layers as many as hold so many values, for what is
lost beyond the ends of a range hangs on few of them."""

GRID_REACHES = tuple(float(reach) for reach in np.geomspace(1, 1 / 64, 13))
"""Widths of the range tried first, as fractions of the one given: where a few rows hold it wide open, the error of
the others stays what it is until it is narrower by far."""

GRID_STEPS = (1.25, 1.08, 1.02)
"""Factors by which an end of the input's range is moved at a time."""


LARGEST = 1e15
"""Magnitude beyond which float32 cannot hold second moments."""


def search_scale(problem: LayerProblem, weight: Array, importance: Array | None = None) -> Array:
    """Scales of least squared error for a weight matrix, (G, N); equal across groups or everywhere where they share."""
    groups, inputs, channels = weight.shape
    floor = None if problem.pairs is None else exact_scale(weight, problem.pairs).reshape(-1)
    if problem.one_scale:
        h = None if importance is None else np.repeat(importance.reshape(1, -1), channels)[None]
        one = weight_scale(
            weight.reshape(1, -1), problem.weight_spec, h, None if floor is None else floor.max(keepdims=True)
        )
        return np.full((groups, channels), one[0])
    if problem.shared_scales:
        columns = weight.transpose(2, 0, 1).reshape(channels, groups * inputs)
        shared = weight_scale(columns, problem.weight_spec)
        return np.broadcast_to(shared, (groups, channels)).copy()
    columns = weight.transpose(0, 2, 1).reshape(groups * channels, inputs)
    h = None if importance is None else np.repeat(importance, channels, axis=0)
    return weight_scale(columns, problem.weight_spec, h, floor).reshape(groups, channels)


def fitted_input(problem: LayerProblem) -> LayerProblem:
    """The problem with the input's grid chosen by what it does to the layer's output.

    A grid of least error on the input itself weighs every channel and every row alike; here its range is narrowed
    and then both its ends are moved, one after the other, wherever E‖(Q(x) − x)·W‖² behind the layer's own weights
    falls, rows counting by their influence. What new samples are expected to lose beyond its ends counts too.
    """
    grid = problem.input
    if grid is None or not problem.fit_input or grid.spec.bits > 8:  # a 16-bit grid has clipping to lose alone
        return problem
    groups, _, inputs = problem.x.shape
    enough = max(GRID_ROWS, GRID_VALUES // (groups * inputs))
    rows = np.flatnonzero(problem.train)
    if len(rows) > enough:  # drawn: every n-th would be the same columns of every feature map
        rows = np.sort(np.random.default_rng(len(rows)).choice(rows, enough, replace=False))
    x, counts = problem.x[:, rows], problem.influence[rows]
    passed_on = float(np.square(problem.weight).sum(axis=1, dtype=np.float64).mean())  # of an error of each input

    def error(candidate: QuantParams) -> float:
        gap = quantized_rows(x, candidate) - x
        return weighted_power(np.matmul(gap, problem.weight), counts) + passed_on * problem.tails.lost(candidate)

    grid = min((stretched(grid, reach, reach) for reach in GRID_REACHES), key=error)
    least = error(grid)
    for step in GRID_STEPS:
        for low, high in ((1.0, step), (step, 1.0), (1.0, 1 / step), (1 / step, 1.0)):
            while (candidate := stretched(grid, low, high)) != grid and (trial := error(candidate)) < least:
                grid, least = candidate, trial
    return replace(problem, input=grid)


def round_to_nearest(problem: LayerProblem) -> Solution:
    """Weights rounded to nearest at searched scales; the float bias as it is."""
    scale = search_scale(problem, problem.weight)
    spec = problem.weight_spec
    integers = quantize(problem.weight, scale[:, None], 0, spec.qmin, spec.qmax).astype(np.float32)
    return scored(problem, Solution(integers, scale, problem.bias, problem.input, 0.0, Status.NEAREST))


def scored(problem: LayerProblem, solution: Solution) -> Solution:
    """A solution with its loss on the hold-out rows."""
    held = problem.held
    x = quantized_rows(selected(problem.x, held), solution.input)
    predicted = np.matmul(x, solution.integers * solution.scale[:, None]) + solution.bias[:, None]
    loss = output_error(problem, predicted, held)
    return Solution(solution.integers, solution.scale, solution.bias, solution.input, loss, solution.status)


@dataclass(frozen=True)
class _Attempt:
    """A target, what it was rounded to, and what that makes of the layer."""

    target: Target
    rounded: Rounded
    solution: Solution


def second_order(problem: LayerProblem, plain: Solution, groundwork: Groundwork | None = None) -> Solution:
    """The better of a plain solution and of error-propagating rounding at several dampings, judged on the hold-out.

    The plain one stays where the hold-out leaves it open whether another is better: it has fitted nothing.

    Args:
        problem: the layer and its rows.
        plain: what to beat.
        groundwork: of the same rows, input grid and float weights; made here, a target at a time, when None.
    """
    if max(np.abs(problem.x).max(initial=0), np.abs(problem.y).max(initial=0)) > LARGEST:
        return plain
    found = groundwork.moments if groundwork else fitted_moments(problem)
    targets = groundwork.targets if groundwork else damped_targets(problem, found)
    # map and min hold but the best attempt and the next: targets of wide layers are large.
    best = min(map(partial(_attempt, problem, found), targets), key=lambda attempt: attempt.solution.loss)
    made = [best.solution]
    if not (problem.shared_scales or problem.one_scale):
        made.append(_solution(problem, found, rescaled(best.target, best.rounded, problem.weight_spec)))
    chosen = min(made, key=lambda solution: solution.loss)
    if not is_better(problem, chosen, plain):
        return plain
    if problem.refit and groundwork is None:
        return replace(_refitted(problem, best.target.damping, chosen is not best.solution), loss=chosen.loss)
    return chosen


def is_better(problem: LayerProblem, solution: Solution, plain: Solution) -> bool:
    """Whether a solution errs less than a plain one on the rows kept back, beyond chance."""
    before, after = (row_errors(problem, s.integers * s.scale[:, None], s.bias, s.input) for s in (plain, solution))
    return exceeds_chance(problem, before - after)


def _refitted(problem: LayerProblem, damping: float, rescale: bool) -> Solution:
    """The start of a damping fitted to all rows."""
    whole = replace(problem, train=np.ones_like(problem.train))
    found = fitted_moments(whole)
    attempt = _attempt(whole, found, damped_target(whole, found, damping))
    if not rescale:
        return attempt.solution
    return _solution(whole, found, rescaled(attempt.target, attempt.rounded, whole.weight_spec))


def _attempt(problem: LayerProblem, found: Moments, target: Target) -> _Attempt:
    """A target rounded at scales searched for it."""
    importance = np.einsum("gkk->gk", target.hessian)
    scale = search_scale(problem, target.weight.astype(np.float32), importance)
    made = rounded(target, scale, problem.weight_spec)
    return _Attempt(target, made, _solution(problem, found, made))


def _solution(problem: LayerProblem, found: Moments, made: Rounded) -> Solution:
    """Rounded weights with the bias that closes the mean."""
    weight = made.integers * made.scale[:, None]
    bias = bias_correction(found, weight) if problem.fit_bias else problem.bias
    return scored(problem, Solution(made.integers, made.scale, bias, problem.input, 0.0, Status.SECOND_ORDER))
