from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_models import normal

from onnxq.config import Config
from onnxq.ir.layer import Layer, Window
from onnxq.quant.affine import fake_quantize
from onnxq.quant.solution import INT32_ROOM, bias_integers, bias_scale
from onnxq.quant.spec import QuantParams, activation_spec, weight_spec
from onnxq.solve.closed_form.initial_solution import fitted_input, is_better, round_to_nearest, scored, second_order
from onnxq.solve.closed_form.normal_equations import lay_groundwork
from onnxq.solve.layer import solve_layer
from onnxq.solve.problem import LayerProblem, Status, output_error, quantized_rows

INFINITY = float("inf")


def problem(**changes: object) -> LayerProblem:
    """A layer of 2 groups, 12 inputs and 5 outputs, whose network before it is a little off; a ReLU follows."""
    float_x, w, b = np.abs(normal(0, 2, 400, 12)), normal(1, 2, 12, 5), normal(2, 2, 5)
    fields: dict[str, object] = {
        "x": (float_x * 1.03 + 0.02 * np.abs(normal(3, 2, 400, 12))).astype(np.float32),
        "x_float": float_x,
        "y": np.matmul(float_x, w) + b[:, None],
        "train": np.arange(400) % 8 != 7,
        "influence": np.ones(400, np.float32),
        "weight": w,
        "bias": b,
        "low": 0.0,
        "high": INFINITY,
        "weight_spec": weight_spec(3),
        "input": QuantParams(activation_spec(6), np.float32(0.06)),
        "shared_scales": False,
        "fit_input": True,
        "fit_bias": True,
    }
    return LayerProblem(**{**fields, **changes})  # type: ignore[arg-type]


def test_the_hold_out_is_what_is_not_fitted_and_everything_where_all_is() -> None:
    np.testing.assert_array_equal(problem().held, ~problem().train)
    everything = np.ones(400, bool)
    np.testing.assert_array_equal(problem(train=everything).held, everything)


def test_the_output_error_is_relative_to_the_power_behind_the_clipping_of_all_rows() -> None:
    p = problem(low=0.0, high=2.0)
    held = p.y[:, p.held]
    assert output_error(p, held, p.held) == 0
    assert output_error(p, np.where(held < 0, held - 9, held), p.held) == 0  # below the clipping
    gone = float(np.square(held.clip(0, 2)).mean() / np.square(p.y.clip(0, 2)).mean())
    assert output_error(p, np.zeros_like(held), p.held) == pytest.approx(gone, rel=1e-5)


def test_the_error_of_a_single_row_is_relative_to_something() -> None:
    """The spread of one row is nothing: an error relative to it would be beyond all bounds."""
    one = np.arange(400) < 1
    p = problem(train=~one)
    assert output_error(p, p.y[:, one] * np.float32(1.01), one) < 1e-2
    nothing = problem(y=np.zeros_like(p.y))
    assert output_error(nothing, nothing.y[:, one], one) == 0


def test_rows_are_quantised_as_tensors_are() -> None:
    p = problem()
    assert p.input is not None
    np.testing.assert_array_equal(quantized_rows(p.x, p.input), fake_quantize(p.x, p.input))
    assert quantized_rows(p.x, None) is p.x


@pytest.mark.parametrize("changes", [{}, {"input": None}, {"shared_scales": True}, {"fit_bias": False}, {"high": 3.0}])
def test_the_second_order_start_is_never_worse_than_nearest_and_mostly_better(changes: dict[str, object]) -> None:
    p = problem(**changes)
    plain = round_to_nearest(p)
    found = second_order(p, plain)
    assert found.loss <= plain.loss
    assert found.status is Status.SECOND_ORDER and found.loss < 0.7 * plain.loss
    assert found.loss == scored(p, found).loss
    if p.shared_scales:
        np.testing.assert_array_equal(found.scale[0], found.scale[1])
    if not p.fit_bias:
        np.testing.assert_array_equal(found.bias, p.bias)


def test_nearest_is_kept_where_the_hold_out_prefers_it() -> None:
    p = problem(train=np.arange(400) < 3, weight_spec=weight_spec(8))  # three rows teach nothing
    plain = round_to_nearest(p)
    assert second_order(p, plain).loss <= plain.loss


def test_a_gain_counts_beyond_chance_alone() -> None:
    p = problem(units=np.arange(400) // 20)
    plain = round_to_nearest(p)
    better, worse = (replace(plain, bias=plain.bias + shift) for shift in (np.float32(0), np.float32(1)))
    assert is_better(p, plain, worse) and not is_better(p, worse, better) and not is_better(p, plain, plain)
    # One row held back says nothing, however much it gains.
    assert not is_better(problem(train=np.arange(400) != 7), plain, worse)


def test_a_start_of_few_samples_is_fitted_to_all_of_them_once_it_is_chosen() -> None:
    p = problem()
    first, whole = second_order(p, round_to_nearest(p)), second_order(replace(p, refit=True), round_to_nearest(p))
    assert whole.loss == first.loss  # the figure is that of the rows held back
    assert not np.array_equal(whole.bias, first.bias)


def test_the_fitted_input_grid_lowers_the_error_behind_the_weights() -> None:
    p = problem(input=QuantParams(activation_spec(4), np.float32(0.6)))

    def error(grid: QuantParams | None) -> float:
        return float(np.square(np.matmul(quantized_rows(p.x, grid) - p.x, p.weight)).mean())

    fitted = fitted_input(p).input
    assert fitted is not None and fitted.zero_point == 0
    assert error(fitted) < 0.7 * error(p.input)


def test_the_fitted_input_grid_of_a_narrow_layer_does_not_clip_the_few_largest_values() -> None:
    x = normal(5, 1, 9000, 4)
    low, high = float(x.min()), float(x.max())
    whole = QuantParams(activation_spec(8), np.float32((high - low) / 255), round(-low / (high - low) * 255))
    train = np.arange(9000) % 8 != 7
    even = np.ones(len(train), np.float32)
    p = problem(x=x, x_float=x, y=x, weight=np.eye(4, dtype=np.float32)[None], train=train, influence=even, input=whole)
    fitted = fitted_input(p).input
    assert fitted is not None

    def error(grid: QuantParams) -> float:
        return float(np.square(quantized_rows(x, grid) - x).sum(dtype=np.float64))

    # Judged by every ninth row, as wide layers are, it would lose 40 % on all of them.
    assert error(fitted) <= error(whole)


@pytest.mark.parametrize(
    "changes", [{"fit_input": False}, {"input": None}, {"input": QuantParams(activation_spec(16), np.float32(1e-4))}]
)
def test_an_input_grid_that_is_not_the_layers_own_or_needs_no_fit_is_left(changes: dict[str, object]) -> None:
    assert fitted_input(problem(**changes)).input == problem(**changes).input


CONV = Layer(
    "c",
    "Conv",
    "x",
    "y",
    "w",
    "b",
    (10, 3, 2, 2),
    0,
    Window((2, 2), (1, 1), (1, 1), (0, 0), 2),
    False,
    0,
    INFINITY,
    "y",
)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_a_solved_layer_holds_integers_of_its_grid_in_the_stored_shape(bits: int) -> None:
    p = problem(weight_spec=weight_spec(bits))
    found = solve_layer(CONV, p, Config(preset="light"), 0)
    assert found.integers.shape == CONV.weight_shape and found.integers.dtype == np.int16
    assert p.weight_spec.qmin <= found.integers.min() and found.integers.max() <= p.weight_spec.qmax
    assert found.weight.scale.shape == (10,) and found.loss <= found.loss_nearest * 1.001


def test_a_channel_whose_bias_would_overflow_gets_wider_steps() -> None:
    weight, bias = problem().weight.copy(), problem().bias.copy()
    weight[1, :, 2], bias[1, 2] = 1e-9, 50
    p = problem(weight=weight, bias=bias)
    p = replace(p, y=np.matmul(p.x_float, weight) + bias[:, None], weight_spec=weight_spec(8))
    found = solve_layer(CONV, p, Config(preset="light"), 0)
    assert found.input is not None and found.bias is not None
    stored = bias_integers(found.bias, bias_scale(found.input.scale, found.weight.scale, 10)).astype(np.int64)
    assert np.abs(stored).max() <= 1.001 * INT32_ROOM
    assert found.bias[7] == pytest.approx(50, abs=0.01) and found.loss < 5e-3  # that of a 6-bit input


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("fit_bias", [True, False])
def test_groundwork_laid_at_other_weight_bits_gives_the_same_solution(bits: int, fit_bias: bool) -> None:
    other = fitted_input(problem(weight_spec=weight_spec(5), fit_bias=fit_bias))
    ground = lay_groundwork(other)
    own = replace(other, weight_spec=weight_spec(bits), fit_input=False)
    plain = round_to_nearest(own)
    shared, alone = second_order(own, plain, ground), second_order(own, plain)
    np.testing.assert_array_equal(shared.integers, alone.integers)
    np.testing.assert_array_equal(shared.scale, alone.scale)
    np.testing.assert_array_equal(shared.bias, alone.bias)
