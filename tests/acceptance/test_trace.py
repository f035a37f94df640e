"""The first tensor that onnxruntime's levels compute otherwise is found, named, and mended where that is safe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper, parser
from small_models import SAME, build, conv_constants, images, relu_chain

from onnxq.acceptance import fallbacks
from onnxq.acceptance.gate import FaultError, pass_gate
from onnxq.api import quantize
from onnxq.cli import main
from onnxq.config import Config
from onnxq.emit.qdq import emit
from onnxq.verify import check_levels, first_difference, unoptimized_values, verify

FEED = {"x": images(4)}


def with_int4(model: onnx.ModelProto, zero: int, signed: bool = False) -> onnx.ModelProto:
    """The constants s (0.2) and z (4 bits) added, which the text format cannot hold."""
    kind = TensorProto.INT4 if signed else TensorProto.UINT4
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.2), "s"))
    model.graph.initializer.append(helper.make_tensor("z", kind, [], [zero]))
    return model


def relu_lost(before: int = 2, behind: int = 2, zero: int = 8) -> onnx.ModelProto:
    """A chain of convolutions with a ReLU before a 4-bit grid whose zero point is not its lowest integer.

    onnxruntime takes the ReLU out there, as if the grid began at zero.
    """
    nodes, at = [], "x"
    for i in range(before + behind + 1):
        nodes.append(f"c{i} = Conv{SAME}({at}, w{min(i, 1)}, b0)")
        at = f"c{i}"
        if i == before:
            nodes.append(f"r = Relu({at}) q = QuantizeLinear(r, s, z) d = DequantizeLinear(q, s, z)")
            at = "d"
    text = f"(float[N,3,8,8] x) => (float[N,8,8,8] y) {{ {' '.join(nodes)} y = Tanh({at}) }}"
    return with_int4(unchecked(text), zero)


def unchecked(text: str) -> onnx.ModelProto:
    """As :func:`small_models.build`, for models whose 4-bit constants come later."""
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["": 21]> g {text}')
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in conv_constants().items())
    for node in model.graph.node:
        node.name = f"the {node.output[0]}"
    return model


def test_a_relu_that_is_taken_out_is_named() -> None:
    model = relu_lost()
    assert any((check.relative_rms or 0) > 0.05 for check in check_levels(model, [FEED]))
    found = first_difference(model, [FEED], "all")
    assert found is not None
    assert (found.tensor, found.node, found.op) == ("d", "the d", "DequantizeLinear")
    assert (found.computed_by, found.computed_by_op) == ("the r", "Relu")
    assert found.relative_rms is not None
    assert found.relative_rms > 0.05
    assert found.error is None


@pytest.mark.parametrize(("before", "behind"), [(0, 0), (0, 6), (6, 0), (1, 3)])
def test_it_is_found_wherever_it_stands(before: int, behind: int) -> None:
    found = first_difference(relu_lost(before, behind), [FEED], "all")
    assert found is not None
    assert found.tensor == "d"


def test_a_model_whose_levels_agree_has_no_first_difference() -> None:
    assert first_difference(relu_lost(zero=0), [FEED], "all") is None


def test_the_first_of_several_faults_is_named_though_its_branch_comes_later_in_the_file() -> None:
    model = with_int4(
        unchecked(f"""(float[N,3,8,8] x) => (float[N,8,8,8] y) {{
            u = Conv{SAME}(x, w0, b0)  v = Conv{SAME}(x, w0, b1)  ok = Relu(u)  e = Conv{SAME}(ok, w1, b1)
            r = Relu(v) q = QuantizeLinear(r, s, z) d = DequantizeLinear(q, s, z)  f = Conv{SAME}(d, w1, b1)
            y = Add(e, f) }}"""),
        8,
    )
    found = first_difference(model, [FEED], "all")
    assert found is not None
    assert found.tensor == "d"


def test_a_graph_that_does_not_load_is_named_where_it_breaks() -> None:
    model = with_int4(
        unchecked(f"""(float[N,3,8,8] x) => (float[N,8,4,4] y) {{ c = Conv{SAME}(x, w0, b0)
            q = QuantizeLinear(c, s, z) d = DequantizeLinear(q, s, z) m = MaxPool<kernel_shape=[2,2],strides=[2,2]>(d)
            p = QuantizeLinear(m, s, z) e = DequantizeLinear(p, s, z) f = Conv{SAME}(e, w1, b1) y = Relu(f) }}"""),
        0,
        signed=True,
    )
    broken = next(check for check in check_levels(model, [FEED]) if not check.ok)
    found = first_difference(model, [FEED], broken.level)
    assert found is not None
    assert (found.computed_by, found.computed_by_op) == ("the m", "MaxPool")
    assert found.error is not None
    assert f"cannot be computed at level {broken.level}" in str(found)


def test_a_model_with_its_weights_in_another_file_is_traced(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    onnx.save(relu_lost(), path, save_as_external_data=True, location="weights.bin", size_threshold=256)
    found = first_difference(path, [FEED], "all")
    assert found is not None
    assert found.tensor == "d"


def test_verify_reports_the_first_difference_of_any_model(tmp_path: Path) -> None:
    exact = build(
        f"(float[N,3,8,8] x) => (float[N,8,8,8] y) {{ c = Conv{SAME}(x, w0, b0) y = Relu(c) }}", 21, **conv_constants()
    )
    assert verify(exact, exact, [FEED], latency=False).difference is None
    onnx.save(exact, tmp_path / "float.onnx")
    onnx.save(relu_lost(), tmp_path / "quantised.onnx")
    np.savez(tmp_path / "data.npz", **FEED)
    words = [str(tmp_path / n) for n in ("float.onnx", "quantised.onnx")]
    result = CliRunner().invoke(main, ["verify", *words, "--data", str(tmp_path / "data.npz"), "--json"])
    told = json.loads(result.stdout)["first_difference"]
    assert (told["tensor"], told["computed_by"]) == ("d", "the r")
    plain = CliRunner().invoke(main, ["verify", *words, "--data", str(tmp_path / "data.npz")])
    assert "tensor 'd'" in " ".join(plain.stdout.split())


def test_a_model_whose_types_cannot_be_inferred_is_traced_to_its_output(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: onnx.ModelProto) -> onnx.ModelProto:
        raise onnx.shape_inference.InferenceError("no")

    monkeypatch.setattr(onnx.shape_inference, "infer_shapes", failing)
    found = first_difference(relu_lost(), [FEED], "all")
    assert found is not None
    assert (found.tensor, found.op) == ("y", "Tanh")


def test_the_gate_names_the_tensor_and_the_node() -> None:
    with pytest.raises(FaultError, match=r"first where tensor 'd' \(node 'the r', Relu\) differs by") as caught:
        pass_gate(relu_lost(), [FEED], [], {"y": 30.0})
    assert caught.value.difference is not None
    assert caught.value.difference.computed_by == "the r"


def breaking(model: onnx.ModelProto, tensor: str) -> None:
    """Put the pair behind a tensor on a 4-bit grid that takes the ReLU before it out."""
    graph = model.graph
    quantizer = next(n for n in graph.node if n.op_type == "QuantizeLinear" and n.input[0] == tensor)
    graph.initializer.append(helper.make_tensor("broken", TensorProto.UINT4, [], [8]))
    for node in graph.node:
        if quantizer.output[0] in (*node.output, *node.input):
            node.input[2] = "broken"
    model.opset_import[0].version, model.ir_version = 21, 10


def corrupted(monkeypatch: pytest.MonkeyPatch, cure: str) -> None:
    """Let the emitted model be wrong behind a until the cure is there."""

    def faulty(*given: Any, byte_weights: Any = (), **forms: Any) -> onnx.ModelProto:
        made = emit(*given, byte_weights=byte_weights, **forms)
        quantized = any(n.op_type == "QuantizeLinear" and n.input[0] == "a" for n in made.graph.node)
        if quantized and not (cure == "whole" and "c0" in byte_weights):
            breaking(made, "a")
        return made

    monkeypatch.setattr(fallbacks, "emit", faulty)


def test_a_tensor_whose_grid_goes_wrong_is_left_in_float_and_the_report_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    corrupted(monkeypatch, "float")
    model = relu_chain(opset=21)
    result = quantize(model, images(), Config())
    told = {note.node: note.reason for note in result.report.notes}
    assert told["a"].startswith("this tensor is left in float: in onnxruntime, tensor 'a/dequantized' (node 'a', Relu)")
    assert result.report.missed == ("c1",)
    assert not result.report.ok
    report = verify(model, result.model, [{"x": images()}], latency=False)
    assert max(check.relative_rms or 0 for check in report.loads) < 0.02
    assert (report.outputs[0].sqnr_db or 0) > 31
    assert {layer.name: layer.activation_bits for layer in report.bits} == {"c0": 8, "c1": None, "y": 8}


def test_weights_in_half_bytes_are_stored_in_whole_ones_first(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = quantize(relu_chain(opset=21), images(), Config(weights=4, edge_bits="same", container="int4")).model
    corrupted(monkeypatch, "whole")
    result = quantize(relu_chain(opset=21), images(), Config(weights=4, edge_bits="same", container="int4"))
    assert [note.node for note in result.report.notes if note.node != "network"] == ["c0"]
    assert result.report.ok
    kinds = {t.name: t.data_type for t in result.model.graph.initializer if t.name.endswith("/quantized")}
    assert kinds["w0/quantized"] == TensorProto.INT8
    assert kinds["w1/quantized"] == TensorProto.INT4
    stored = {t.name: numpy_helper.to_array(t).astype(int) for m in (plain, result.model) for t in m.graph.initializer}
    before = next(numpy_helper.to_array(t) for t in plain.graph.initializer if t.name == "w0/quantized")
    np.testing.assert_array_equal(stored["w0/quantized"], before.astype(int))
    assert any(note.reason.startswith("its weights take a byte each") for note in result.report.notes)


def test_weights_beside_floats_are_kept_from_kernels_that_round_the_floats_too_far() -> None:
    text = "(float[2,2] x) => (float[2,1] y) { y = Gemm(x, w, b) }"
    weight, bias = np.array([[-0.2452], [0.3646]], np.float32), np.array([-0.1133], np.float32)
    model = build(text, opset=21, w=weight, b=bias)
    nearly = np.random.default_rng(0).uniform(0.01, 0.1, (64, 1)).astype(np.float32)
    samples = np.hstack([1 + 0.6725 * nearly, 0.6725 + nearly]).astype(np.float32)  # what w makes of it is nearly 0
    result = quantize(model, samples, Config(weights=8, activations=32))
    assert all(check.ok and (check.relative_rms or 0.0) < 0.05 for check in result.report.loads)
    assert result.report.ok


def test_a_fault_that_cannot_be_mended_ends_the_run_with_the_node_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def hopeless(*_: Any, **__: Any) -> onnx.ModelProto:
        return relu_lost()

    monkeypatch.setattr(fallbacks, "emit", hopeless)
    with pytest.raises(FaultError, match=r"tensor 'd' \(node 'the r', Relu\) differs by"):
        quantize(relu_chain(opset=21), images(), Config())


def test_a_target_with_prescribed_forms_is_not_mended(monkeypatch: pytest.MonkeyPatch) -> None:
    corrupted(monkeypatch, "float")
    with pytest.raises(FaultError, match=r"tensor 'a/dequantized' \(node 'a', Relu\) differs by"):
        quantize(relu_chain(opset=21), images(), Config(target="generic"))


@pytest.mark.parametrize(("weight", "tensor"), [("w0", "a"), ("w1", "d"), ("w2", "y")])
def test_a_model_that_is_not_what_was_simulated_is_refused_with_the_first_tensor_that_differs(
    monkeypatch: pytest.MonkeyPatch, weight: str, tensor: str
) -> None:
    def faulty(*given: Any, **options: Any) -> onnx.ModelProto:
        made = emit(*given, **options)
        scale = next(t for t in made.graph.initializer if t.name == f"{weight}/scale")
        scale.CopyFrom(numpy_helper.from_array(1.7 * numpy_helper.to_array(scale), scale.name))
        return made

    monkeypatch.setattr(fallbacks, "emit", faulty)
    told = rf"as emitted differ from those as simulated by .*, first where tensor '{tensor}' differs by \d\d\.\d%"
    with pytest.raises(FaultError, match=told):
        quantize(relu_chain(), images(), Config())


def test_inner_tensors_are_read_out_as_the_unoptimised_graph_computes_them() -> None:
    model = relu_lost()
    found = unoptimized_values(model, ["d", "r", "y"], FEED)
    np.testing.assert_array_equal(found["r"] >= 0, True)
    wanted = np.clip(np.rint(found["r"] / np.float32(0.2)) + 8, 0, 15) - 8
    np.testing.assert_allclose(found["d"], wanted * np.float32(0.2), rtol=1e-6)
