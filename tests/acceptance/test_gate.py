from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import parser

from onnxq.acceptance.gate import pass_gate
from onnxq.errors import VerificationError

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)


def doubling() -> onnx.ModelProto:
    return parser.parse_model(
        """<ir_version: 8, opset_import: ["": 13]> g (float[N,4] x) => (float[N,4] y) { y = Add(x, x) }"""
    )


def test_a_model_that_is_what_was_simulated_passes_with_a_check_for_each_level() -> None:
    checks = pass_gate(doubling(), [{"x": X}, {"x": X[:1]}], [{"y": 2 * X}], {"y": 30.0})
    assert [(c.level, c.ok, c.relative_rms) for c in checks] == [
        (level, True, 0.0) for level in ("disable", "basic", "extended", "all")
    ]


def test_a_model_that_is_not_what_was_simulated_is_refused() -> None:
    with pytest.raises(VerificationError, match=r"as emitted differ from those as simulated by 33\.3% of their size"):
        pass_gate(doubling(), [{"x": X}], [{"y": 1.5 * X}], {"y": 30.0})


def test_a_difference_as_large_as_the_quantisation_error_is_let_through() -> None:
    # 8 dB of signal over noise is an error of 40%; the model is 33% away from the simulation.
    assert pass_gate(doubling(), [{"x": X}], [{"y": 1.5 * X}], {"y": 8.0})


def test_what_rounding_leaves_of_values_that_cancel_is_no_difference_and_more_of_it_is() -> None:
    nothing = np.zeros_like(X)
    assert pass_gate(doubling(), [{"x": nothing + np.float32(2e-11)}], [{"y": nothing}], {"y": None})
    with pytest.raises(VerificationError, match="as emitted differ from those as simulated"):
        pass_gate(doubling(), [{"x": nothing + np.float32(2e-6)}], [{"y": nothing}], {"y": 30.0})


def test_a_model_that_a_level_cannot_load_is_refused_with_the_level_s_name() -> None:
    model = doubling()
    model.graph.node[0].op_type = "Ad"
    with pytest.raises(VerificationError, match="does not run in onnxruntime at level disable"):
        pass_gate(model, [{"x": X}], [], {})


def test_a_level_that_saturates_is_refused() -> None:
    # Full-range signed weights, all of one sign, under activations at the top of their grid: exact in the
    # unoptimized graph, wrong by a quarter in the integer kernel of CPUs that add pairs in 16 bits.
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["": 13]> g (float[N,32,4,4] x) => (float[N,32,4,4] y)
        <float s = {0.00392157}, uint8 z = {0}, float t = {0.3}, float u = {0.01}, int8 i = {0}> {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) v = DequantizeLinear(w, u, i)
        c = Conv(d, v) p = QuantizeLinear(c, t, z) y = DequantizeLinear(p, t, z) }"""
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.full((32, 32, 1, 1), 127, np.int8), "w"))
    feed = {"x": np.ones((1, 32, 4, 4), np.float32)}
    try:
        checks = pass_gate(model, [feed], [], {"y": 40.0})
    except VerificationError as error:
        assert "at level extended differ from those unoptimised" in str(error)
    else:  # a CPU with an instruction that adds in 32 bits
        assert checks[-1].relative_rms == pytest.approx(0.0, abs=0.01)
