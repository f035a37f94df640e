from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_models import build, normal, prove, relu_chain, weight, with_outputs

from onnxq.config import Config
from onnxq.ir.layer import Layer, Window, find_layers
from onnxq.ir.load import load
from onnxq.passes.prepare import prepare
from onnxq.quant.moments import channel_moments
from onnxq.quant.solution import LayerSolution
from onnxq.quant.spec import QuantParams, activation_spec, weight_spec
from onnxq.solve.closed_form.para_normalization import para_normalize
from onnxq.verify.session import start_session


def images() -> np.ndarray:
    return normal(7, 48, 3, 8, 8)


@given(st.integers(1, 5), st.sampled_from([1, -1]), st.floats(-1e3, 1e3, width=32))
def test_moments_gathered_in_batches_are_those_of_the_whole(batches: int, axis: int, offset: float) -> None:
    values = normal(0, 12, 4, 5, 4) * np.array([1.0, 10.0, 0.1, 1.0], np.float32) + np.float32(offset)
    found = None
    for part in np.array_split(values, batches):
        found = channel_moments(part, axis, found)
    assert found is not None
    columns = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1).astype(np.float64)
    # Gaps from the first batch's mean are float32: an error of 2^-24 of the values beside the spread.
    np.testing.assert_allclose(found.mean, columns.mean(axis=1), atol=1e-6 * (10 + abs(offset)))
    np.testing.assert_allclose(found.deviation, columns.std(axis=1), rtol=1e-4)


LAYER = Layer(
    "c", "Conv", "x", "c", "w", "b", (4, 3, 1, 1), 0, Window((1, 1), (1, 1), (1, 1), (0, 0), 1), False, 0.0,
    float("inf"), "y",
)  # fmt: skip


def solution() -> LayerSolution:
    rng = np.random.default_rng(0)
    return LayerSolution(
        layer="c",
        integers=rng.integers(-7, 8, (4, 3, 1, 1)).astype(np.int16),
        weight=QuantParams(weight_spec(4), rng.uniform(0.05, 0.1, 4).astype(np.float32)),
        bias=rng.normal(0, 1, 4).astype(np.float32),
        input=QuantParams(activation_spec(8), np.float32(0.01)),
        loss_nearest=0.0,
        loss=0.0,
        status="",
        seconds=0.0,
    )


def output(solution: LayerSolution, x: np.ndarray) -> np.ndarray:
    assert solution.bias is not None
    return np.einsum("nchw,dc->ndhw", x, solution.dequantized(0)[:, :, 0, 0]) + solution.bias[:, None, None]


def test_the_corrected_layer_has_the_wanted_moments_and_the_same_integers() -> None:
    x = normal(1, 32, 3, 6, 6)
    before = solution()
    made = output(before, x)
    wanted = channel_moments(made * np.float32(1.2) + np.float32(0.3), 1)
    after = para_normalize(LAYER, before, wanted, channel_moments(made, 1))
    corrected = channel_moments(output(after, x), 1)
    np.testing.assert_allclose(corrected.mean, wanted.mean, atol=1e-3)  # the bias is on a grid of s_x · s_w ≤ 0.0012
    np.testing.assert_allclose(corrected.deviation, wanted.deviation, rtol=1e-5)
    np.testing.assert_array_equal(after.integers, before.integers)


def test_a_dead_channel_and_one_that_moved_too_far_keep_their_scale() -> None:
    x = normal(1, 32, 3, 6, 6)
    before = solution()
    made = output(before, x)
    target = made * np.array([1, 5, 1, 0.1], np.float32)[:, None, None]
    made[:, 0] = 2.0
    after = para_normalize(LAYER, before, channel_moments(target, 1), channel_moments(made, 1))
    np.testing.assert_array_equal(after.weight.scale[[0, 1, 3]], before.weight.scale[[0, 1, 3]])


def test_a_layer_without_bias_is_left_alone() -> None:
    made = normal(1, 8, 4, 3, 3)
    before = replace(solution(), bias=None)
    assert para_normalize(LAYER, before, channel_moments(2 * made, 1), channel_moments(made, 1)) is before


def outputs(model: onnx.ModelProto) -> list[np.ndarray]:
    return start_session(model.SerializeToString(), "disable").run(None, {"x": images()})


def integers_of(model: onnx.ModelProto) -> dict[str, bytes]:
    return {
        t.name: t.SerializeToString() for t in model.graph.initializer if t.name.startswith("w") and "quant" in t.name
    }


def test_the_emitted_network_has_the_float_moments_and_untouched_integer_weights_in_its_first_layer() -> None:
    options = {"weights": 3, "activations": 4, "edge_bits": "same", "second_order": False, "equalise": False}
    plain, corrected = (
        prove(relu_chain(), images(), para_normalise=value, floor=0.0, **options).result.model
        for value in (False, True)
    )
    assert integers_of(plain)["w0/quantized"] == integers_of(corrected)["w0/quantized"]
    exact = outputs(with_outputs(relu_chain(), "c1"))[1]
    gaps = []
    for model in (plain, corrected):
        made = outputs(with_outputs(model, "c1"))[1]
        a, b = channel_moments(exact, 1), channel_moments(made, 1)
        gaps.append(max(np.abs(a.mean - b.mean).max(), np.abs(a.deviation / b.deviation - 1).max()))
    assert gaps[1] < 0.01 < 0.05 < gaps[0]  # half a step of the int32 bias, s_x · s_w ≈ 0.02 at so few bits


@pytest.mark.parametrize("channels_last", [False, True])
def test_the_axis_of_the_output_counts_its_channels(channels_last: bool) -> None:

    text = (
        "(float[N,5] x) => (float[N,7] y) { y = Gemm(x, w) }"
        if channels_last
        else "(float[N,5,3] x) => (float[N,7,3] y) { y = Conv(x, w) }"
    )
    w = weight(0, 5, 7) if channels_last else weight(0, 7, 5, 1)
    (layer,), _ = find_layers(prepare(load(build(text, w=w))))
    assert layer.output_axis == (-1 if channels_last else 1)
    assert Config().para_normalise is False
