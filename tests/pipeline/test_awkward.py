"""Every awkward kind of model is quantized, or the reason is told; the result is close to the float model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import onnx
import pytest
from awkward_models import KINDS, Awkward, two_convolutions
from onnx import checker, helper
from small_models import build, images, normal, relu_chain, weight

from onnxq.api import quantize
from onnxq.config import Config
from onnxq.errors import UnsupportedError
from onnxq.pipeline import Result
from onnxq.verify import verify

pytestmark = pytest.mark.slow

# Decibels of the best of seven tools, measured from other tools' outputs on models of these kinds, W8A8.
BEST_OF_OTHERS = {
    "convtranspose": 38.1,
    "function": 34.6,
    "attention": 30.1,
    "external": 38.6,
    "opset9": 38.0,
    "embedding": 38.0,
    "dead_channels": 47.3,
    "conv1d3d": 36.7,
}
ROOM = 1.0
"""Decibels below that: the models there had other weights and samples."""

HEAD_ROOM = 3.5
"""Decibels that head-room for new samples costs at most on the few that the ranges were found on, by which these
figures are judged."""

# Where the best figure of the others is that of a tool that leaves most of such a model in float, or its model
# cannot be known: 8 bits of a normal tensor keep about 40 dB, and two or three such roundings take 3 to 5 from that.
FLOORS = {
    "if_conv": 39.0,
    "loop_body": 33.5,
    "lstm": 40.0,
    "gru": 35.0,
    "dynamic_size": 35.0,
    "half": 37.0,
    "bfloat16": 37.0,
    "shared_weights": 35.0,
    "dynamic_sequence": 39.0,
    "overridable_weight": 36.5,
    "weight_given_out": 36.5,
    "other_domain": 37.0,
    "folded_constants": 35.0,
    "bad_order": 36.5,
    "thousands_of_nodes": 37.0,
    "odd_names": 36.0,
    "transposed_everything": 36.5,
    "several_ends": 36.0,
}


def feeds(kind: str, awkward: Awkward) -> list[dict[str, np.ndarray]]:
    """The samples as the float model takes them: in twos where it fixes that."""
    step = 2 if kind == "loop_body" else 100
    count = len(next(iter(awkward.samples.values())))
    return [{n: v[i : i + step] for n, v in awkward.samples.items()} for i in range(0, count, step)]


def require_close(
    model: onnx.ModelProto | Path, result: Result, samples: Iterable[dict[str, np.ndarray]], floor: float
) -> None:
    """It loads at every level, they agree, and every output keeps so many decibels."""
    checker.check_model(result.model, full_check=True)
    report = verify(model, result.model, samples, latency=False)
    assert [check.error for check in report.loads] == [None] * 4
    # Integer kernels round the last bit of an 8-bit step differently.
    assert max(check.relative_diff or 0.0 for check in report.loads) <= 0.01
    assert {o.name: o.sqnr_db for o in report.outputs if o.sqnr_db is not None and o.sqnr_db < floor} == {}


def test_every_kind_has_its_figure() -> None:
    assert {*BEST_OF_OTHERS, *FLOORS} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_awkward_model_is_quantised_and_close(kind: str) -> None:
    awkward = KINDS[kind]()
    result = quantize(awkward.model, awkward.samples)
    assert {layer.name for layer in result.report.layers} == set(awkward.layers)
    assert {(layer.stored_weight_bits, layer.stored_activation_bits) for layer in result.report.layers} == {(8, 8)}
    assert result.report.missed == ()
    reasons = [f"{r.node}: {r.reason}" for r in result.report.left_in_float]
    for node, reason in awkward.left.items():
        assert any(node in told and reason in told for told in reasons), reasons
    floor = BEST_OF_OTHERS[kind] - ROOM if kind in BEST_OF_OTHERS else FLOORS[kind]
    floor -= HEAD_ROOM
    require_close(awkward.judge or awkward.model, result, feeds(kind, awkward), floor)
    assert [v.name for v in result.model.graph.output] == [v.name for v in awkward.model.graph.output]


def test_weights_in_a_file_of_their_own_are_read(tmp_path: Path) -> None:
    awkward = KINDS["external"]()
    path = tmp_path / "net.onnx"
    onnx.save(awkward.model, path, save_as_external_data=True, location="net.weights", size_threshold=0)
    assert (tmp_path / "net.weights").stat().st_size >= 4 * (8 * 27 + 8 + 4 * 72)
    result = quantize(path, awkward.samples)
    inline = quantize(two_convolutions(), awkward.samples)
    assert result.model.SerializeToString(deterministic=True) == inline.model.SerializeToString(deterministic=True)
    require_close(path, result, [awkward.samples], BEST_OF_OTHERS["external"] - ROOM - HEAD_ROOM)


@pytest.mark.parametrize(("weights", "activations"), [(8, 8), (4, 8), (8, 32), (4, 4)])
def test_quantised_model_is_not_quantised_again(weights: int, activations: int) -> None:
    config = Config(weights=weights, activations=activations)  # type: ignore[arg-type]
    once = quantize(relu_chain(), images(), config).model
    with pytest.raises(UnsupportedError, match="no layer to quantise: c0: its input or weight is quantised already"):
        quantize(once, images(), config)


def test_model_of_integer_operators_is_said_to_be_quantised() -> None:
    model = build("(uint8[N,4] x) => (int32[N,3] y) { y = MatMulInteger(x, w) }", w=np.ones((4, 3), np.int8))
    with pytest.raises(UnsupportedError, match="y: MatMulInteger computes on quantised numbers already"):
        quantize(model, np.ones((4, 4), np.uint8))


def test_partly_quantised_model_gets_the_rest() -> None:
    model = relu_chain()
    once = quantize(model, images()).model
    extended = onnx.ModelProto()
    extended.CopyFrom(once)
    extended.graph.node.append(helper.make_node("Gemm", ["flat", "w3"], ["z"], "z"))
    extended.graph.node.insert(len(extended.graph.node) - 1, helper.make_node("GlobalAveragePool", ["y"], ["m"], "m"))
    extended.graph.node.insert(len(extended.graph.node) - 1, helper.make_node("Flatten", ["m"], ["flat"], "flat"))
    extended.graph.initializer.append(onnx.numpy_helper.from_array(weight(8, 8, 5), "w3"))
    extended.graph.output[0].CopyFrom(helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["N", 5]))
    result = quantize(extended, images())
    assert [layer.name for layer in result.report.layers] == ["z"]
    assert {r.node for r in result.report.left_in_float if "quantised already" in r.reason} == {"c0", "c1", "y"}
    require_close(extended, result, [{"x": images()}], 35.0)


def test_node_of_an_unknown_maker_is_refused_by_name() -> None:
    model = build("(float[N,4] x) => (float[N,3] y) { a = Relu(x) y = MatMul(a, w) }", w=weight(1, 4, 3))
    model.graph.node[0].op_type, model.graph.node[0].domain = "Mystery", "acme"
    model.opset_import.append(helper.make_opsetid("acme", 1))
    with pytest.raises(UnsupportedError, match="Mystery"):
        quantize(model, normal(1, 8, 4))


def test_length_of_a_sequence_may_differ_from_feed_to_feed() -> None:
    awkward = KINDS["dynamic_sequence"]()
    several = [{"x": normal(length, 4, length, 8)} for length in (3, 11, 7, 20)]
    result = quantize(awkward.model, several)
    require_close(awkward.model, result, several, FLOORS["dynamic_sequence"] - HEAD_ROOM)


def test_size_of_an_image_may_differ_from_feed_to_feed() -> None:
    awkward = KINDS["dynamic_size"]()
    several = [{"x": normal(size, 4, 3, size, size + 3)} for size in (6, 9, 16)]
    result = quantize(awkward.model, several)
    require_close(awkward.model, result, several, 34.0)
