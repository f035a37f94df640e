from __future__ import annotations

import numpy as np
import pytest
from small_models import normal

from onnxq.solve.closed_form.moments import (
    bias_correction,
    damped,
    factorize,
    least_squares_target,
    moments,
    residual_correlation,
)


def test_moments_are_means_and_covariances() -> None:
    x, y = 3 + normal(0, 2, 500, 4), normal(1, 2, 500, 3)
    m = moments(x, y, np.ones(x.shape[1], np.float32))
    for g in range(2):
        together = np.cov(x[g].T, y[g].T, bias=True)
        np.testing.assert_allclose(m.xx[g], together[:4, :4], atol=1e-5)
        np.testing.assert_allclose(m.xy[g], together[:4, 4:], atol=1e-5)
        np.testing.assert_allclose(m.x_mean[g], x[g].mean(0), atol=1e-5)


@pytest.mark.parametrize("rows", [5, 400])
def test_the_least_squares_target_solves_the_ridge_regression_towards_the_float_weights(rows: int) -> None:
    x, w = normal(0, 2, rows, 6) + 1, normal(2, 2, 6, 3)
    y = np.matmul(x, w) + 0.3 * normal(3, 2, rows, 3)
    m = moments(x, y, np.ones(x.shape[1], np.float32))
    h = damped(m.xx, 0.03)
    found = least_squares_target(factorize(h), residual_correlation(m, w), w)
    for g in range(2):
        ridge = np.sqrt(h[g, 0, 0] - m.xx[g, 0, 0])
        above = (x[g] - x[g].mean(0)) / np.sqrt(rows), (y[g] - y[g].mean(0)) / np.sqrt(rows)
        a, b = np.vstack([above[0], ridge * np.eye(6)]), np.vstack([above[1], ridge * w[g]])
        np.testing.assert_allclose(found[g], np.linalg.lstsq(a, b)[0], atol=2e-5)  # moments are sums in float32


def test_the_damped_hessian_is_positive_definite_even_without_any_signal() -> None:
    for xx in (np.zeros((1, 5, 5)), np.ones((1, 5, 5)), 1e-20 * np.eye(5)[None]):
        factor = factorize(damped(xx, 0.003))
        assert np.isfinite(factor.lower).all() and (factor.lower[0].diagonal() > 0).all()


@pytest.mark.parametrize("about_mean", [True, False])
def test_moments_and_closing_bias_give_the_mean_of_the_float_outputs(about_mean: bool) -> None:
    x, weight = 2 + normal(0, 2, 300, 6), np.round(2 * normal(1, 2, 6, 3))
    y = np.matmul(x, weight + 0.2) + 5
    m = moments(x, y, np.ones(x.shape[1], np.float32), about_mean=about_mean)
    if about_mean:
        made = np.matmul(x, weight) + bias_correction(m, weight)[:, None]
        np.testing.assert_allclose(made.mean(axis=1), y.mean(axis=1), atol=2e-5)
    else:
        np.testing.assert_allclose(m.xx[0], x[0].T @ x[0] / 300, rtol=1e-5)
        np.testing.assert_allclose(m.xy[1], x[1].T @ y[1] / 300, rtol=1e-5, atol=1e-4)
