"""Functions of a tensor's elements found in any form, and grids that suit them."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit
from small_models import build, normal, weight

from onnxq.calibration.output_quantizer import output_grid, response_at
from onnxq.ir.load import load
from onnxq.ir.model import Model
from onnxq.ir.pointwise import pointwise_behind
from onnxq.passes.prepare import prepare
from onnxq.quant.affine import fake_quantize
from onnxq.quant.histogram import Histogram
from onnxq.quant.scale_search import activation_params, points_for
from onnxq.quant.spec import activation_spec

CONSTANTS = {
    "w": weight(0, 4, 3, 1, 1),
    "v": weight(1, 5, 4, 1, 1),
    "zero": np.zeros((), np.float32),
    "three": np.full((1,), 3, np.float32),
    "six": np.full((), 6, np.float32),
    "divisor": np.full((1, 1, 1), 6, np.float32),
    "each": np.full((4, 1, 1), 0.5, np.float32),
}


def between(body: str, last: str, opset: int = 17) -> Model:
    """A convolution that makes a, something computed of it, and a convolution that reads what that makes."""
    text = f"(float[N, 3, 8, 8] x) => (float y) {{ a = Conv(x, w)  {body}  y = Conv({last}, v) }}"
    return prepare(load(build(text, opset, **CONSTANTS)))


def hard_swish(x: np.ndarray) -> np.ndarray:
    return x * np.clip(x + 3, 0, 6) / 6


FORMS = {
    "SiLU": ("s = Sigmoid(a)  u = Mul(a, s)", lambda x: x * expit(x)),
    "HardSwish": ("u = HardSwish(a)", hard_swish),
    "as PyTorch writes it": (
        "p = Add(a, three)  c = Clip(p, zero, six)  d = Div(c, divisor)  u = Mul(a, d)",
        hard_swish,
    ),
    "as Paddle writes it": (
        "p = Add(a, three)  c = Clip(p, zero, six)  m = Mul(a, c)  u = Div(m, divisor)",
        hard_swish,
    ),
    "Tanh and Neg": ("t = Tanh(a)  u = Neg(t)", lambda x: -np.tanh(x)),
}


@pytest.mark.parametrize("form", FORMS)
def test_an_activation_function_is_found_in_any_form(form: str) -> None:
    body, function = FORMS[form]
    model = between(body, "u")
    found = pointwise_behind(model, "a")
    assert found is not None and found.result == "u"
    points = np.linspace(-20, 20, 999)
    # The Sigmoid of onnxruntime is good to 1e-7, times 20.
    np.testing.assert_allclose(response_at(model, found, points), function(points), rtol=1e-5, atol=3e-6)


def test_a_swish_of_opset_24_is_found_though_onnxruntime_does_not_run_it_yet() -> None:
    found = pointwise_behind(between("u = Swish<alpha=1.5>(a)", "u", 26), "a")
    assert found is not None and found.result == "u"


@pytest.mark.parametrize(
    "body",
    [
        "u = Conv(a, v2)",  # no function of single elements
        "s = Sigmoid(a)  m = GlobalAveragePool(a)  u = Mul(s, m)",  # a is seen by others
        "s = Sigmoid(x1)  u = Mul(a, s)",  # something else has a part in it
    ],
)
def test_what_is_no_function_of_single_elements_is_none(body: str) -> None:
    text = f"(float[N, 3, 8, 8] x) => (float y) {{ a = Conv(x, w)  x1 = Conv(x, w)  {body}  y = Conv(u, v) }}"
    model = prepare(load(build(text, v2=weight(2, 4, 4, 1, 1), **CONSTANTS)))
    assert pointwise_behind(model, "a") is None


def test_scores_that_leave_the_model_are_none() -> None:
    model = prepare(load(build("(float[N, 3, 8, 8] x) => (float y) { a = Conv(x, w)  y = Sigmoid(a) }", **CONSTANTS)))
    assert pointwise_behind(model, "a") is None


def test_the_function_ends_where_channels_part() -> None:
    found = pointwise_behind(between("s = Sigmoid(a)  u = Mul(s, each)", "u"), "a")
    assert found is not None and found.result == "s"


def test_the_function_ends_where_others_see_it() -> None:
    text = """(float[N, 3, 8, 8] x) => (float y, float[N, 4, 8, 8] t) {
        a = Conv(x, w)  t = Tanh(a)  u = Neg(t)  y = Conv(u, v)
    }"""
    found = pointwise_behind(prepare(load(build(text, **CONSTANTS))), "a")
    assert found is not None and found.result == "t"


@pytest.mark.parametrize("form", ["SiLU", "as Paddle writes it"])
def test_a_grid_for_an_activation_function_leaves_out_what_it_flattens(form: str) -> None:
    body, function = FORMS[form]
    model, spec = between(body, "u"), activation_spec(8)
    x = (normal(0, 100_000) * 6 - 4).astype(np.float32)  # most of it where the function is next to nothing
    histogram = Histogram().update(x)
    plain, suited = activation_params(histogram, spec), output_grid(model, "a", histogram, spec)

    def error(grid: object) -> float:
        return float(np.square(function(fake_quantize(x, grid)) - function(x)).mean())  # type: ignore[arg-type]

    assert float(suited.lowest) > 0.6 * float(plain.lowest)
    assert error(suited) < 0.5 * error(plain)


@pytest.mark.parametrize("low", [0.0, -1.0])
def test_a_function_that_is_flat_over_all_samples_leaves_the_range_whole(low: float) -> None:
    histogram = Histogram().update(np.linspace(low, 2, 1000, dtype=np.float32))  # of one sample: others may go further
    spec = activation_spec(8)
    points, _ = histogram.points(points_for(spec))
    grid = activation_params(histogram, spec, np.zeros_like(points))
    assert float(grid.highest) == pytest.approx(2, rel=0.01) and float(grid.lowest) == pytest.approx(low, rel=0.01)


def test_a_function_without_values_somewhere_leaves_the_grid_as_it_is() -> None:
    model, spec = between("e = Exp(a)  u = Exp(e)", "u"), activation_spec(8)
    histogram = Histogram().update(normal(0, 1000) * 4)  # exp(exp(12)) is no float32
    plain, found = activation_params(histogram, spec), output_grid(model, "a", histogram, spec)
    assert (found.scale, found.zero_point) == (plain.scale, plain.zero_point)
