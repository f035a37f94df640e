"""Second-order statistics of a layer, and what follows from them in closed form: least-squares target and bias.

With x̂ the quantized input of a layer and y its float output, both centred, H = E[x̂ x̂ᵀ] and C = E[x̂ yᵀ]:

    target   W* = W + (H + λI)⁻¹ (C − H W)           damped towards the float weights W
    bias     b' = E[y] − (s·q)ᵀ E[x̂]

Between the two the target is rounded, in the order of diag(H) and with the factor RᵀR = H + λI of the
permuted H rather than of its inverse, at a third of its cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import LinAlgError, cho_solve, cholesky

from onnxq.quant.spec import QuantParams
from onnxq.solve.problem import ROWS_AT_ONCE, quantized_rows

Double = NDArray[np.float64]
Array = NDArray[np.float32]


SMALLEST_DAMPING, RAISED = 1e-6, 10.0
"""Ridge from which a matrix that cannot be factorized is helped, as a fraction of its diagonal's mean, and factor by
which it rises."""


@dataclass(frozen=True)
class Moments:
    """Means and centred second moments of a layer's rows.

    Attributes:
        x_mean: (G, K).
        y_mean: (G, N).
        xx: (G, K, K).
        xy: (G, K, N).
    """

    x_mean: Double
    y_mean: Double
    xx: Double
    xy: Double


def moments(x: Array, y: Array, counts: Array, grid: QuantParams | None = None, *, about_mean: bool = True) -> Moments:
    """Moments of rows x (G, R, K), on their grid, and y (G, R, N), which count so much each, (R,).

    Without a bias to close the mean they are taken about zero, and the means are zero. They are summed over
    blocks of rows around the means of the first block, then moved to the true means: no copy of the rows is
    made, and nothing cancels.
    """
    total = counts.sum(dtype=np.float64)
    around_x = quantized_rows(x[:, :ROWS_AT_ONCE], grid).mean(axis=1, keepdims=True) * np.float32(about_mean)
    around_y = y[:, :ROWS_AT_ONCE].mean(axis=1, keepdims=True) * np.float32(about_mean)
    (groups, rows, inputs), channels = x.shape, y.shape[2]
    x_sum, y_sum = np.zeros((groups, inputs)), np.zeros((groups, channels))
    xx, xy = np.zeros((groups, inputs, inputs)), np.zeros((groups, inputs, channels))
    for first in range(0, rows, ROWS_AT_ONCE):
        block = slice(first, first + ROWS_AT_ONCE)
        root = np.sqrt(counts[block])[:, None]
        u = (quantized_rows(x[:, block], grid) - around_x) * root
        v = (y[:, block] - around_y) * root
        transposed = u.transpose(0, 2, 1)  # a view: the product of a matrix with its own transpose costs half
        x_sum += np.matmul(transposed, root)[..., 0]
        y_sum += np.matmul(v.transpose(0, 2, 1), root)[..., 0]
        xx += np.matmul(transposed, u)
        xy += np.matmul(transposed, v)
    x_shift, y_shift = x_sum / total * about_mean, y_sum / total * about_mean
    return Moments(
        x_mean=around_x[:, 0] + x_shift,
        y_mean=around_y[:, 0] + y_shift,
        xx=xx / total - x_shift[:, :, None] * x_shift[:, None, :],
        xy=xy / total - x_shift[:, :, None] * y_shift[:, None, :],
    )


def damped(xx: Double, damping: float, dtype: type[Any] = np.float64) -> NDArray[Any]:
    """H + λI with λ = damping · mean of H's diagonal, a group at a time."""
    hessian = xx.astype(dtype)  # a copy; no identity matrix is made beside it
    np.einsum("gkk->gk", hessian)[...] = np.einsum("gkk->gk", xx) + _ridge(xx, damping)
    return hessian


def _ridge(xx: Double, damping: float) -> Double:
    """λ of each group, (G, 1)."""
    diagonal = np.einsum("gkk->gk", xx).mean(axis=1, keepdims=True)
    return np.asarray(np.maximum(diagonal, 1e-12) * damping, np.float64)


@dataclass(frozen=True)
class Factor:
    """A Hessian factorized for rounding.

    Attributes:
        order: columns by rising diagonal, (G, K); they are rounded from the last to the first.
        lower: Rᵀ of the permuted Hessian RᵀR, (G, K, K).
    """

    order: NDArray[np.intp]
    lower: Double | Array

    def solve(self, right: Double) -> Double:
        """The matrix that the Hessian takes to the right-hand side, (G, K, N)."""
        order = self.order[:, :, None]
        permuted = np.take_along_axis(right, order, 1)
        for group, lower in enumerate(self.lower):
            permuted[group] = cho_solve((lower, True), permuted[group], check_finite=False)
        solved = np.empty_like(permuted)
        np.put_along_axis(solved, np.broadcast_to(order, permuted.shape), permuted, 1)
        return solved


def factorize(xx: Double, damping: float = 0.0) -> Factor:
    """Factor of H + λI as :func:`damped` makes it, (G, K, K), which need not be made for it.

    Where rounding leaves H not positive definite, as rows of far more power than others do, λ is raised until it is.
    """
    order = np.argsort(np.einsum("gkk->gk", xx), axis=1, kind="stable")
    groups = np.arange(len(order))[:, None, None]
    factors = xx[groups, order[:, :, None], order[:, None, :]]
    np.einsum("gkk->gk", factors)[...] += _ridge(xx, damping)
    for group, own in enumerate(factors):  # in its own place: the transpose is in the order that LAPACK takes
        raised = max(damping, SMALLEST_DAMPING)
        while True:
            try:
                own.T[...] = cholesky(own.T, lower=True, overwrite_a=True, check_finite=False)
                break
            except LinAlgError:
                raised *= RAISED
                own[...] = xx[group][np.ix_(order[group], order[group])]
                np.einsum("kk->k", own)[...] += _ridge(xx, raised)[group]
    return Factor(order=order, lower=factors.transpose(0, 2, 1))


def residual_correlation(m: Moments, weight: Array) -> Double:
    """C − H W, what the float weights leave of the regression on quantized inputs, (G, K, N)."""
    return np.asarray(m.xy - m.xx @ weight, np.float64)


def least_squares_target(factor: Factor, left: Double, weight: Array) -> Double:
    """The real weights that suit the quantized inputs best, (G, K, N).

    Args:
        factor: of the damped Hessian.
        left: what is :func:`residual_correlation`.
        weight: float weights.
    """
    return np.asarray(weight + factor.solve(left), np.float64)


def bias_correction(m: Moments, weight: Array) -> Array:
    """The bias that gives the quantized layer the float layer's mean output, (G, N)."""
    return np.asarray(m.y_mean - np.einsum("gk,gkn->gn", m.x_mean, weight), np.float32)
