from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize

from onnxq.quant.spec import weight_spec
from onnxq.solve.closed_form.moments import factorize
from onnxq.solve.closed_form.rounding import (
    Rounded,
    Target,
    coordinate_descent,
    fitted_scale,
    gptq_round,
    rescaled,
    rounded,
)

FINE = weight_spec(16)
"""A grid on which nothing here is clipped."""


def hessian(seed: int, inputs: int, groups: int = 1) -> np.ndarray:
    """Random second moments of correlated inputs, (groups, inputs, inputs), float64."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(groups, inputs, inputs)) * rng.uniform(0.2, 2, (groups, 1, inputs))
    return mixing @ mixing.transpose(0, 2, 1) / inputs + 0.05 * np.eye(inputs)


def target_of(h: np.ndarray, weight: np.ndarray) -> Target:
    return Target(h.astype(np.float32), factorize(h), weight)


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
    found = gptq_round(target_of(h, target), scale, weight_spec(4))
    wanted = np.stack([textbook(h[g], target[g], scale[g], -8, 7) for g in range(2)])
    # Float32 inside: a value within 1e-5 of a tie may fall on its other side and take those behind it along.
    assert (found != wanted).mean() <= 0.01
    error, best = objective(h, target, scale, found), objective(h, target, scale, wanted)
    np.testing.assert_allclose(error.mean(), best.mean(), rtol=0.01)


@given(seed=st.integers(0, 2**31), inputs=st.integers(1, 12), bits=st.sampled_from([2, 4, 8]))
def test_error_propagation_stays_on_the_grid_and_below_its_bound(seed: int, inputs: int, bits: int) -> None:
    h, target = hessian(seed, inputs), np.random.default_rng(seed).uniform(-1, 1, (1, inputs, 3))
    spec, scale = weight_spec(bits), np.full((1, 3), 0.9 / 2 ** (bits - 1), np.float32)
    found = gptq_round(target_of(h, target), scale, spec)
    np.testing.assert_array_equal(found, np.round(found).clip(spec.qmin, spec.qmax))
    wide = gptq_round(target_of(h, target), scale, FINE)
    diagonal = np.square(factorize(h).lower[0].diagonal()).sum()
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
        found = objective(h, target, scale, gptq_round(target_of(h, target), scale, weight_spec(3)))[0]
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
    found = gptq_round(target_of(h, target), scale, weight_spec(4))
    plain = np.round(target / 0.5).clip(-8, 7)
    assert objective(h, target, scale, found).mean() <= 0.8 * objective(h, target, scale, plain).mean()


def test_error_propagation_is_nearest_rounding_for_uncorrelated_inputs() -> None:
    target = np.random.default_rng(0).normal(size=(2, 90, 4))
    h = np.random.default_rng(1).uniform(0.1, 9, (2, 90))[:, :, None] * np.eye(90)
    scale = np.full((2, 4), 0.37, np.float32)
    found = gptq_round(target_of(h, target), scale, weight_spec(3))
    np.testing.assert_array_equal(found, np.round((target / scale[:, None]).astype(np.float32)).clip(-4, 3))


@pytest.mark.parametrize("start", [0.9, 1.0, 1.15])
def test_the_fitted_scale_is_the_best_for_its_integers(start: float) -> None:
    h, target = hessian(3, 9, 2), np.random.default_rng(3).normal(size=(2, 9, 4))
    scale = np.full((2, 4), 0.3 * start, np.float32)
    integers = np.round(target / 0.3).clip(-8, 7).astype(np.float32)
    found = fitted_scale(target_of(h, target), Rounded(integers, scale, np.zeros_like(scale)))
    for g, n in itertools.product(range(2), range(4)):

        def error(s: float, q: np.ndarray = integers[g, :, n], w: np.ndarray = target[g, :, n], m: int = g) -> float:
            return float((s * q - w) @ h[m] @ (s * q - w))

        best = optimize.minimize_scalar(error, bounds=(0.05, 1.5), method="bounded", options={"xatol": 1e-9}).x
        np.testing.assert_allclose(found[g, n], best, rtol=1e-5)


def test_a_scale_is_kept_where_the_integers_are_zero_or_the_fit_is_far_off() -> None:
    h, scale = hessian(0, 3), np.array([[0.5, 0.5]], np.float32)
    integers = np.array([[[0, 1], [0, 1], [0, 1]]], np.float32)
    found = fitted_scale(target_of(h, 40 * integers + 1.0), Rounded(integers, scale, np.zeros_like(scale)))
    np.testing.assert_array_equal(found, scale)


@pytest.mark.parametrize("inputs", [3, 64, 130])
@pytest.mark.parametrize("start", ["propagated", "nearest"])
def test_descent_ends_where_no_single_integer_can_be_bettered(inputs: int, start: str) -> None:
    h, target = hessian(inputs, inputs, 2), np.random.default_rng(2).normal(size=(2, inputs, 6))
    scale, spec = np.full((2, 6), 0.35, np.float32), weight_spec(4)
    first = gptq_round(target_of(h, target), scale, spec)
    if start == "nearest":
        first = np.round(target / 0.35).clip(spec.qmin, spec.qmax).astype(np.float32)
    q = first
    for _ in range(10):  # a descent visits everything three times at most; again until it rests
        q = coordinate_descent(target_of(h, target), q, scale, spec).integers
    least = objective(h, target, scale, q)
    assert (least <= objective(h, target, scale, first) * (1 + 1e-5)).all()
    for k, change in itertools.product(range(inputs), (-1, 1)):
        moved = q.copy()
        moved[:, k] = (moved[:, k] + change).clip(spec.qmin, spec.qmax)
        assert (objective(h, target, scale, moved) >= least * (1 - 1e-4)).all()  # float32 inside


def test_descent_reports_the_error_of_what_it_gives_and_takes_scales_of_every_weight() -> None:
    h, target = hessian(4, 70, 2), np.random.default_rng(4).normal(size=(2, 70, 5))
    scale, spec = np.random.default_rng(5).uniform(0.2, 0.5, (2, 5)).astype(np.float32), weight_spec(3)
    found = rounded(target_of(h, target), scale, spec)
    np.testing.assert_allclose(found.error, objective(h, target, scale, found.integers), rtol=1e-4)
    wide = np.broadcast_to(scale[:, None], target.shape)
    again = coordinate_descent(target_of(h, target), gptq_round(target_of(h, target), scale, spec), wide, spec)
    np.testing.assert_array_equal(again.integers, found.integers)


def test_descent_after_propagation_nears_the_optimum() -> None:
    reached = {"propagated": 0.0, "rounded": 0.0, "best": 0.0}
    for seed in range(40):
        h, target = hessian(seed, 4), np.random.default_rng(seed).uniform(-2, 2, (1, 4, 4))
        scale = np.full((1, 4), 0.7, np.float32)
        grid = np.array(list(itertools.product(range(-4, 4), repeat=4)), np.float32).T
        for n in range(4):
            reached["best"] += objective(h, target[:, :, n : n + 1], scale[:, :1], grid[None])[0].min()
        for name, how in (("propagated", gptq_round), ("rounded", lambda *a: rounded(*a).integers)):
            reached[name] += objective(h, target, scale, how(target_of(h, target), scale, weight_spec(3))).sum()
    assert reached["best"] <= reached["rounded"] < reached["propagated"]
    # More than half of what propagation leaves above the optimum is gone.
    assert reached["rounded"] - reached["best"] < 0.5 * (reached["propagated"] - reached["best"])


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rescaling_lowers_the_error_of_every_channel_or_leaves_it(bits: int) -> None:
    h, target = hessian(bits, 20, 2), np.random.default_rng(bits).normal(size=(2, 20, 6))
    spec = weight_spec(bits)
    scale = (np.abs(target).max(axis=1) / spec.qmax).astype(np.float32)
    start = rounded(target_of(h, target), scale, spec)
    found = rescaled(target_of(h, target), start, spec)
    before, after = (objective(h, target, r.scale, r.integers) for r in (start, found))
    assert (after <= before * (1 + 1e-4)).all() and after.sum() < before.sum()
    np.testing.assert_allclose(found.error, after, rtol=1e-3)
    np.testing.assert_array_equal(found.integers, found.integers.round().clip(spec.qmin, spec.qmax))
