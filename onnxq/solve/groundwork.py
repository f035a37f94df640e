"""What error-propagating rounding takes from a layer's rows and float weights, whatever the bits of its weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxq.solve.problem import LayerProblem, selected
from onnxq.solve.rounding import Target
from onnxq.solve.second_order import Moments, damped, factorise, least_squares_target, missing, moments

DAMPINGS = (0.003, 0.03, 0.3)
"""Ridges tried, as fractions of the mean of H's diagonal."""


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
    x, y = selected(problem.x, problem.train), selected(problem.y, problem.train)
    y = y if problem.fit_bias else y - problem.bias[:, None]
    found = moments(x, y, problem.influence[problem.train], problem.input, about_mean=problem.fit_bias)
    left = missing(found, problem.weight)
    targets = []
    for damping in DAMPINGS:
        hessian = damped(found.xx, damping)
        factor = factorise(hessian)
        targets.append(Target(hessian.astype(np.float32), factor, least_squares_target(factor, left, problem.weight)))
    return Groundwork(found, tuple(targets))
