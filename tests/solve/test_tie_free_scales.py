from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import SAME, build, normal, weight

from onnxq.api import quantize
from onnxq.config import Config
from onnxq.ir.layer import find_layers
from onnxq.ir.load import load
from onnxq.passes.prepare import prepare
from onnxq.quant.requantization import DENOMINATORS, NEAR, nearest_tie_free
from onnxq.quant.solution import LayerSolution
from onnxq.quant.spec import QuantParams, activation_spec, weight_spec
from onnxq.solve.closed_form.tie_free_scales import without_ties
from onnxq.verify.session import start_session

SUMS = np.arange(-(2**17), 2**17 + 1)
"""Sums of products: more than an 8-bit output can tell apart at the multipliers tried here."""


@given(st.lists(st.floats(0.002, 0.5), min_size=1, max_size=8))
def test_no_sum_of_products_comes_near_a_tie_at_a_multiplier_close_by(multipliers: list[float]) -> None:
    wanted = np.array(multipliers)
    found = nearest_tie_free(wanted)
    np.testing.assert_allclose(found, wanted, rtol=4 * NEAR)
    # Within the output's range the products are below 2^8, so float64 places them to 1e-13 here.
    positions = SUMS * found[:, None]
    from_tie = np.abs(positions - np.floor(positions) - 0.5)[np.abs(positions) < 2**8]
    assert from_tie.min() >= 0.499 / (2 * DENOMINATORS)


def test_a_multiplier_at_which_every_other_sum_is_a_tie_is_left() -> None:
    (found,) = nearest_tie_free(np.array([0.5]))
    assert found != 0.5
    assert abs(found / 0.5 - 1) <= 2.5 * NEAR  # no odd denominator below 8,192 comes closer


@pytest.mark.parametrize("multiplier", [1e-6, 3e-4, 40.0])
def test_small_and_large_multipliers_stay_near_too(multiplier: float) -> None:
    np.testing.assert_allclose(nearest_tie_free(np.array([multiplier])), multiplier, rtol=0.13)


def deep(depth: int) -> tuple[onnx.ModelProto, np.ndarray]:
    """Convolutions of 16 channels with ReLUs between, and eight samples of 32 × 32."""
    nodes = "".join(f"c{i} = Conv{SAME}(r{i}, w{i}, b{i}) r{i + 1} = Relu(c{i})" for i in range(depth))
    text = f"""(float[N,16,32,32] r0) => (float[N,16,32,32] y) {{ {nodes} y = Conv{SAME}(r{depth}, w0, b0) }}"""
    constants = {f"w{i}": 1.4 * weight(i, 16, 16, 3, 3) for i in range(depth)}
    biases = {f"b{i}": 0.1 * normal(50 + i, 16) for i in range(depth)}
    return build(text, **constants, **biases), normal(99, 8, 16, 32, 32)


@pytest.mark.parametrize("container", ["int8", "int4"])
@pytest.mark.parametrize("weights", [4, 8])
def test_a_deep_network_answers_alike_at_all_levels_to_the_last_bits_of_a_float(weights: int, container: str) -> None:
    model, x = deep(10)
    emitted = quantize(model, x, Config(weights=weights, container=container)).model.SerializeToString()
    exact, fused = (start_session(emitted, level).run(None, {"r0": x})[0] for level in ("disable", "all"))
    # One value of a feature map on another step of its grid would move outputs by a thousandth.
    np.testing.assert_allclose(fused, exact, rtol=0, atol=1e-5 * np.abs(exact).max())


def solution(name: str, scale: np.ndarray, grid: QuantParams) -> LayerSolution:
    bias = normal(3, len(scale))
    integers = np.ones((len(scale), 8, 3, 3), np.int16)
    return LayerSolution(name, integers, QuantParams(weight_spec(8), scale), bias, grid, 0.0, 0.0, "", 0.0)


def grid(scale: float, bits: int = 8) -> QuantParams:
    return QuantParams(activation_spec(bits), np.asarray(scale, np.float32), 0)


@pytest.mark.parametrize(
    ("between", "moves"),
    [
        ("r = Relu(c)", True),
        ("m = MaxPool<kernel_shape=[2,2]>(c) r = Clip(m, low, high)", True),
        ("r = Add(c, c)", False),
        ("r = Sigmoid(c)", False),
    ],
)
def test_only_scales_of_layers_that_hand_their_sums_to_the_next_grid_move(between: str, moves: bool) -> None:
    text = (
        f"""(float[N,8,8,8] x) => (float[N,8,H,W] y) {{ c = Conv{SAME}(x, w, b) {between} y = Conv{SAME}(r, v, b) }}"""
    )
    constants = {"w": weight(0, 8, 8, 3, 3), "v": weight(1, 8, 8, 3, 3), "b": normal(2, 8)}
    limits = {"low": np.float32(0), "high": np.float32(6)}
    model = prepare(load(build(text, **constants, **{k: np.asarray(v) for k, v in limits.items()})))
    layers, _ = find_layers(model)
    first, last = layers
    scales = np.linspace(0.01, 0.02, 8).astype(np.float32)
    before = {first.name: solution(first.name, scales, grid(0.05)), last.name: solution(last.name, scales, grid(0.04))}
    after = without_ties(model, layers, before, {})
    assert after[last.name] is before[last.name]
    assert (after[first.name] is not before[first.name]) == moves
    found = after[first.name]
    np.testing.assert_allclose(found.weight.scale, scales, rtol=4 * NEAR)
    if moves:
        multiplier = found.weight.scale.astype(np.float64) * grid(0.05).scale / grid(0.04).scale
        positions = SUMS * multiplier[:, None]
        assert np.abs(positions - np.floor(positions) - 0.5)[np.abs(positions) < 2**8].min() > 5e-5
        steps = found.bias / (grid(0.05).scale * found.weight.scale)
        np.testing.assert_allclose(steps, np.rint(steps), rtol=1e-6)  # the bias is part of the sum


def test_finer_grids_are_left_alone() -> None:
    text = f"(float[N,8,8,8] x) => (float[N,8,8,8] y) {{ c = Conv{SAME}(x, w) y = Conv{SAME}(c, w) }}"
    model = prepare(load(build(text, w=weight(0, 8, 8, 3, 3))))
    layers, _ = find_layers(model)
    scales = np.full(8, 0.01, np.float32)
    before = {la.name: solution(la.name, scales, grid(1e-4, 16)) for la in layers}
    assert without_ties(model, layers, before, {}) == before
