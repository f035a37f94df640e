"""What error-propagating rounding takes from a layer's rows and float weights, whatever the bits of its weights."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnxq.calibration.layer_rows import selected
from onnxq.solve.closed_form.moments import Moments, moments, residual_correlation
from onnxq.solve.closed_form.rounding import Target, make_target
from onnxq.solve.problem import LayerProblem

DAMPINGS = (0.003, 0.03, 0.3)
"""Ridges tried, as fractions of the mean of H's diagonal."""

DAMPINGS_OF_FEW = (0.03, 0.3, 3.0)
"""Those tried where there are few rows for each input: what they say of H's small eigenvalues is chance."""

FEW_ROWS = 4
"""Rows for each input up to which they are few."""


@dataclass(frozen=True)
class Groundwork:
    """Moments of a layer's rows on the grid of its input, and the targets that they give.

    Attributes:
        moments: of the fitted rows.
        targets: one for each damping.
    """

    moments: Moments
    targets: tuple[Target, ...]


def lay_groundwork(problem: LayerProblem) -> Groundwork:
    """The groundwork of a layer whose input has its grid; the bits of its weights do not matter."""
    found = fitted_moments(problem)
    return Groundwork(found, tuple(damped_targets(problem, found)))


def fitted_moments(problem: LayerProblem) -> Moments:
    """Moments of the rows that may be fitted."""
    x, y = selected(problem.x, problem.train), selected(problem.y, problem.train)
    y = y if problem.fit_bias else y - problem.bias[:, None]
    return moments(x, y, problem.influence[problem.train], problem.input, about_mean=problem.fit_bias)


def damped_targets(problem: LayerProblem, found: Moments) -> Iterator[Target]:
    """A target for each damping, each made when it is asked for: those of a wide layer take a hundred megabytes."""
    left = residual_correlation(found, problem.weight)
    few = int(np.count_nonzero(problem.train)) < FEW_ROWS * problem.weight.shape[1]
    for damping in DAMPINGS_OF_FEW if few else DAMPINGS:
        yield make_target(found, damping, left, problem.weight)


def damped_target(problem: LayerProblem, found: Moments, damping: float) -> Target:
    """The target of one damping."""
    return make_target(found, damping, residual_correlation(found, problem.weight), problem.weight)
