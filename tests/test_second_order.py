from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize
from small_models import normal

from onnxq.quant.spec import weight_spec
from onnxq.solve.second_order import (
    closing_bias,
    damped,
    factorise,
    fitted_scale,
    least_squares_target,
    missing,
    moments,
    propagate_rounding,
)


def hessian(seed: int, inputs: int, groups: int = 1) -> np.ndarray:
    """Random second moments of correlated inputs, (groups, inputs, inputs), float64."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(groups, inputs, inputs)) * rng.uniform(0.2, 2, (groups, 1, inputs))
    return mixing @ mixing.transpose(0, 2, 1) / inputs + 0.05 * np.eye(inputs)


def objective(h: np.ndarray, target: np.ndarray, scale: np.ndarray, integers: np.ndarray) -> np.ndarray:
    """(s·q − W*)ᵀ H (s·q − W*) for each output, (G, N)."""
    gap = integers * scale[:, None] - target
    return np.einsum("gkn,gkl,gln->gn", gap, h, gap)


def textbook(h: np.ndarray, target: np.ndarray, scale: np.ndarray, qmin: int, qmax: int) -> np.ndarray:
    """GPTQ as published, one group: columns by falling diagonal, errors pushed on through the shrinking inverse."""
    weight, integers, inverse = target.copy(), np.zeros_like(target), np.linalg.inv(h)
    left = list(range(len(h)))
    for k in np.argsort(np.diag(h), kind="stable")[::-1]:
        integers[k] = np.clip(np.round(weight[k] / scale), qmin, qmax)
        left.remove(k)
        error = (weight[k] - integers[k] * scale) / inverse[k, k]
        weight[left] -= np.outer(inverse[left, k], error)
        inverse = inverse - np.outer(inverse[:, k], inverse[k]) / inverse[k, k]
    return integers


@pytest.mark.parametrize("inputs", [1, 2, 7, 64, 65, 150])
def test_error_propagation_gives_the_integers_of_gptq(inputs: int) -> None:
    h, target = hessian(inputs, inputs, 2), np.random.default_rng(1).normal(size=(2, inputs, 5))
    scale = np.full((2, 5), 0.4, np.float32)
    found = propagate_rounding(factorise(h), target, scale, -8, 7)
    wanted = np.stack([textbook(h[g], target[g], scale[g], -8, 7) for g in range(2)])
    # Float32 inside: a value within 1e-5 of a tie may fall on its other side and take those behind it along.
    assert (found != wanted).mean() <= 0.01
    error, best = objective(h, target, scale, found), objective(h, target, scale, wanted)
    np.testing.assert_allclose(error.mean(), best.mean(), rtol=0.01)


@given(seed=st.integers(0, 2**31), inputs=st.integers(1, 12), bits=st.sampled_from([2, 4, 8]))
def test_error_propagation_stays_on_the_grid_and_below_its_bound(seed: int, inputs: int, bits: int) -> None:
    h, target = hessian(seed, inputs), np.random.default_rng(seed).uniform(-1, 1, (1, inputs, 3))
    spec, scale = weight_spec(bits), np.full((1, 3), 0.9 / 2 ** (bits - 1), np.float32)
    found = propagate_rounding(factorise(h), target, scale, spec.qmin, spec.qmax)
    np.testing.assert_array_equal(found, np.round(found).clip(spec.qmin, spec.qmax))
    wide = propagate_rounding(factorise(h), target, scale, -(2**20), 2**20)
    diagonal = np.square(factorise(h).lower[0].diagonal()).sum()
    # Without clipping the nearest-plane algorithm leaves at most half a step times R's diagonal in each column.
    assert (objective(h, target, scale, wide) <= 0.2505 * scale**2 * diagonal).all()


def test_error_propagation_is_the_optimum_of_one_input_and_beats_nearest_on_the_whole() -> None:
    worse = total = nearly = 0.0
    for seed in range(60):
        inputs = 1 + seed % 3
        h, target = hessian(seed, inputs), np.random.default_rng(seed).uniform(-2, 2, (1, inputs, 4))
        scale = np.full((1, 4), 0.7, np.float32)
        grid = np.array(list(itertools.product(range(-4, 4), repeat=inputs)), np.float32).T  # (K, candidates)
        best = np.stack([objective(h, target[:, :, n : n + 1], scale[:, :1], grid[None])[0].min() for n in range(4)])
        found = objective(h, target, scale, propagate_rounding(factorise(h), target, scale, -4, 3))[0]
        plain = objective(h, target, scale, np.round(target / 0.7).clip(-4, 3))[0]
        assert (found >= best * 0.9999 - 1e-9).all()
        if inputs == 1:
            np.testing.assert_allclose(found, best, rtol=1e-4, atol=1e-9)
        worse += (found > plain * 1.0001).sum()
        nearly += (found <= best * 1.0001).sum()
        total += 4
    assert nearly >= 0.8 * total and worse <= 0.1 * total


@pytest.mark.parametrize("inputs", [8, 100])
def test_error_propagation_beats_nearest_rounding_on_correlated_inputs(inputs: int) -> None:
    h, target = hessian(5, inputs, 3), np.random.default_rng(5).normal(size=(3, inputs, 16))
    scale = np.full((3, 16), 0.5, np.float32)
    found = propagate_rounding(factorise(h), target, scale, -8, 7)
    plain = np.round(target / 0.5).clip(-8, 7)
    assert objective(h, target, scale, found).mean() <= 0.8 * objective(h, target, scale, plain).mean()


def test_error_propagation_is_nearest_rounding_for_uncorrelated_inputs() -> None:
    target = np.random.default_rng(0).normal(size=(2, 90, 4))
    h = np.random.default_rng(1).uniform(0.1, 9, (2, 90))[:, :, None] * np.eye(90)
    scale = np.full((2, 4), 0.37, np.float32)
    found = propagate_rounding(factorise(h), target, scale, -4, 3)
    np.testing.assert_array_equal(found, np.round((target / scale[:, None]).astype(np.float32)).clip(-4, 3))


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
    found = least_squares_target(factorise(h), missing(m, w), w)
    for g in range(2):
        ridge = np.sqrt(h[g, 0, 0] - m.xx[g, 0, 0])
        above = (x[g] - x[g].mean(0)) / np.sqrt(rows), (y[g] - y[g].mean(0)) / np.sqrt(rows)
        a, b = np.vstack([above[0], ridge * np.eye(6)]), np.vstack([above[1], ridge * w[g]])
        np.testing.assert_allclose(found[g], np.linalg.lstsq(a, b)[0], atol=2e-5)  # moments are sums in float32


def test_the_damped_hessian_is_positive_definite_even_without_any_signal() -> None:
    for xx in (np.zeros((1, 5, 5)), np.ones((1, 5, 5)), 1e-20 * np.eye(5)[None]):
        factor = factorise(damped(xx, 0.003))
        assert np.isfinite(factor.lower).all() and (factor.lower[0].diagonal() > 0).all()


@pytest.mark.parametrize("start", [0.9, 1.0, 1.15])
def test_the_fitted_scale_is_the_best_for_its_integers(start: float) -> None:
    h, target = hessian(3, 9, 2), np.random.default_rng(3).normal(size=(2, 9, 4))
    scale = np.full((2, 4), 0.3 * start, np.float32)
    integers = np.round(target / 0.3).clip(-8, 7).astype(np.float32)
    found = fitted_scale(h, target, integers, scale)
    for g, n in itertools.product(range(2), range(4)):

        def error(s: float, q: np.ndarray = integers[g, :, n], w: np.ndarray = target[g, :, n], m: int = g) -> float:
            return float((s * q - w) @ h[m] @ (s * q - w))

        best = optimize.minimize_scalar(error, bounds=(0.05, 1.5), method="bounded", options={"xatol": 1e-9}).x
        np.testing.assert_allclose(found[g, n], best, rtol=1e-5)


def test_a_scale_is_kept_where_the_integers_are_zero_or_the_fit_is_far_off() -> None:
    h, scale = hessian(0, 3), np.array([[0.5, 0.5]], np.float32)
    integers = np.array([[[0, 1], [0, 1], [0, 1]]], np.float32)
    np.testing.assert_array_equal(fitted_scale(h, 40 * integers + 1.0, integers, scale), scale)


@pytest.mark.parametrize("about_mean", [True, False])
def test_moments_and_closing_bias_give_the_mean_of_the_float_outputs(about_mean: bool) -> None:
    x, weight = 2 + normal(0, 2, 300, 6), np.round(2 * normal(1, 2, 6, 3))
    y = np.matmul(x, weight + 0.2) + 5
    m = moments(x, y, np.ones(x.shape[1], np.float32), about_mean=about_mean)
    if about_mean:
        made = np.matmul(x, weight) + closing_bias(m, weight)[:, None]
        np.testing.assert_allclose(made.mean(axis=1), y.mean(axis=1), atol=2e-5)
    else:
        np.testing.assert_allclose(m.xx[0], x[0].T @ x[0] / 300, rtol=1e-5)
        np.testing.assert_allclose(m.xy[1], x[1].T @ y[1] / 300, rtol=1e-5, atol=1e-4)
