"""Rows of outlying power."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import build, normal, weight

import onnxq
from onnxq.quant.robust import FAR, LIMIT, bounded_weight
from onnxq.runtime.session import Session
from onnxq.solve.closed_form.moments import moments
from onnxq.solve.closed_form.row_weights import influence


def test_a_row_counts_in_full_up_to_the_limit_and_by_its_power_beyond() -> None:
    x = np.ones((1, 9, 4), np.float32)
    y = np.ones((1, 9, 2), np.float32)
    x[0, 3] = np.sqrt(LIMIT / 2)
    x[0, 5] = np.sqrt(LIMIT * 4)
    y[0, 7] = np.sqrt(LIMIT * 20)
    wanted = np.ones(9)
    wanted[5], wanted[7] = 1 / 4, 1 / 20
    np.testing.assert_allclose(influence(x, y), wanted, rtol=1e-6)


def test_what_is_far_out_counts_for_less_the_more_power_it_has() -> None:
    power = np.array([0, 1, LIMIT, 2 * LIMIT, FAR, 10 * FAR])
    weights = bounded_weight(power)
    np.testing.assert_allclose(weights, [1, 1, 1, 1 / 2, LIMIT / FAR, LIMIT / FAR / 100], rtol=1e-12)
    assert (weights * power)[-1] < (weights * power)[1] * LIMIT  # the whole of it, not only its weight


@given(st.integers(0, 1000), st.floats(1e-6, 1e6))
def test_influence_does_not_depend_on_the_scale_of_inputs_or_outputs(seed: int, scale: float) -> None:
    x, y = normal(seed, 2, 50, 3) ** 3, normal(seed + 1, 2, 50, 5) ** 3
    scaled = influence(x * np.float32(scale), y / np.float32(scale))
    np.testing.assert_allclose(scaled, influence(x, y), rtol=1e-4)
    assert scaled.max() == 1


def test_rows_of_zeros_are_not_typical_and_a_layer_of_zeros_counts_in_full() -> None:
    x = np.zeros((1, 10, 3), np.float32)
    np.testing.assert_array_equal(influence(x, x), np.ones(10))
    x[0, :3] = 1
    np.testing.assert_array_equal(influence(x, x), np.ones(10))


def test_rows_that_hold_what_rounding_leaves_of_zero_are_not_typical() -> None:
    x = np.full((1, 10, 3), 1e-9, np.float32)
    x[0, :3] = 1
    np.testing.assert_array_equal(influence(x, x), np.ones(10))


@pytest.mark.parametrize("about_mean", [True, False])
def test_a_row_that_counts_twice_is_one_that_is_there_twice(about_mean: bool) -> None:
    x, y = 2 + normal(0, 2, 40, 3), normal(1, 2, 40, 5) - 1
    counts = np.where(np.arange(40) % 3 == 0, 2, 1)
    once = moments(x, y, counts.astype(np.float32), about_mean=about_mean)
    twice = moments(
        np.repeat(x, counts, axis=1),
        np.repeat(y, counts, axis=1),
        np.ones(counts.sum(), np.float32),
        about_mean=about_mean,
    )
    for name in ("x_mean", "y_mean", "xx", "xy"):
        np.testing.assert_allclose(getattr(once, name), getattr(twice, name), atol=2e-6, err_msg=name)


def test_a_few_massive_positions_do_not_take_the_grid_from_the_others() -> None:
    text = "(float[N,8,16,16] x) => (float[N,8,16,16] y) { h = Conv(x, w0) a = Relu(h) y = Conv(a, w1) }"
    model = build(text, w0=weight(0, 8, 8, 1, 1), w1=weight(1, 8, 8, 1, 1))
    images = normal(2, 32, 8, 16, 16)
    images[:, :, 0, 0] *= 60

    def ordinary_error(bounded: bool) -> float:
        config = onnxq.Config(activations=4, edge_bits="same", bounded_influence=bounded, equalise=False)
        quantized = onnxq.quantize(model, images, config).model
        exact, found = (Session(m, "").run({"x": images})["y"][:, :, 1:, 1:] for m in (model, quantized))
        return float(np.square(found - exact).mean() / np.square(exact).mean())

    assert ordinary_error(True) < 0.1 * ordinary_error(False)
