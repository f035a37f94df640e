"""Outputs and inner values that are no tensors of floats: sequences, maps, text, integers, optional values."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper
from small_models import build, normal

import onnxq
from onnxq.api import inspect, quantize
from onnxq.plan.inspection import describe
from onnxq.verify import verify

LAYERS = {"w0": normal(1, 8, 16) / 3, "w1": normal(2, 16, 4) / 4}


def unchecked(text: str, opset: int = 17, **constants: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["": {opset}, "ai.onnx.ml": 3]> g {text}')
    named = {name for node in model.graph.node for name in node.input}
    for key, value in (LAYERS | constants).items():
        inner = [n for node in model.graph.node for a in node.attribute for n in a.g.node]
        if key in named or any(key in n.input for n in inner):
            model.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(value), key))
    for node in model.graph.node:
        node.name = node.output[0]
    return model


def sequence() -> onnx.ModelProto:
    return unchecked(
        "(float[N,6,8] x) => (seq(float[N,1,4]) s) { a = MatMul(x,w0) r = Relu(a) y = MatMul(r,w1) "
        "s = SplitToSequence<axis=1,keepdims=1>(y) }"
    )


def sequence_between_layers() -> onnx.ModelProto:
    """A layer reads one part of a sequence that another's output is taken apart into, a later sum another."""
    return unchecked(
        "(float[N,16] x) => (float[N,4] y) { a = MatMul(x,w2) s = SplitToSequence<axis=1>(a,eight) "
        "p = SequenceAt(s,one) h = MatMul(p,w0) y0 = MatMul(h,w1) q = SequenceAt(s,nil) "
        "z = Slice(q,nil1,four,one1) y = Add(y0,z) }",
        w2=normal(3, 16, 16) / 4,
        eight=np.array(8),
        one=np.array(1),
        nil=np.array(0),
        nil1=np.array([0]),
        four=np.array([4]),
        one1=np.array([1]),
    )


def loop() -> onnx.ModelProto:
    return unchecked(
        "(float[N,8] x) => (float[N,T,4] y) { a = MatMul(x,w0) h = Tanh(a) e = SequenceEmpty() "
        "hl, sl = Loop(trips,,h,e)<body = b(int64 i, bool go, float[N,16] hh, seq(float[N,4]) ss) => "
        "(bool on, float[N,16] h2, seq(float[N,4]) s2) { on = Identity(go) h2 = Tanh(hh) o = MatMul(h2,w1) "
        "s2 = SequenceInsert(ss,o) }> y = ConcatFromSequence<axis=1,new_axis=1>(sl) }",
        trips=np.array(3),
    )


def text() -> onnx.ModelProto:
    model = unchecked(
        "(float[N,8] x) => (float[N,4] y, string[N] label) { a = MatMul(x,w0) r = Relu(a) y = MatMul(r,w1) "
        "i = ArgMax<axis=1,keepdims=0>(y) label = Gather(names,i) }"
    )
    model.graph.initializer.append(helper.make_tensor("names", 8, [4], [b"cat", b"dog", b"cow", b"hen"]))
    return model


def optional() -> onnx.ModelProto:
    return unchecked(
        "(float[N,8] x) => (float[N,4] y) { a = MatMul(x,w0) o = Optional(a) g = OptionalGetElement(o) r = Relu(g) "
        "y = MatMul(r,w1) }",
        18,
    )


def zip_map(labels: str = "classlabels_int64s") -> onnx.ModelProto:
    model = unchecked(
        "(float[N,8] x) => (float[N,4] y) { a = MatMul(x,w0) r = Relu(a) l = MatMul(r,w1) y = Softmax(l) }"
    )
    names = [0, 1, 2, 3] if labels.endswith("int64s") else ["a", "b", "c", "d"]
    model.graph.node.append(helper.make_node("ZipMap", ["y"], ["z"], "z", domain="ai.onnx.ml", **{labels: names}))
    key = 7 if labels.endswith("int64s") else 8
    kind = helper.make_map_type_proto(key, helper.make_tensor_type_proto(1, []))
    model.graph.output.append(helper.make_value_info("z", helper.make_sequence_type_proto(kind)))
    return model


def whole() -> onnx.ModelProto:
    return build(
        "(float[N,8] x) => (int64[N] i, bool[N,4] b) { a = MatMul(x,w0) r = Relu(a) y = MatMul(r,w1) "
        "i = ArgMax<axis=1,keepdims=0>(y) b = Greater(y,nil) }",
        nil=np.asarray(np.float32(0)),
        **LAYERS,
    )


MODELS = {
    "sequence": (sequence(), normal(4, 32, 6, 8), ["s"]),
    "sequence between layers": (sequence_between_layers(), normal(4, 32, 16), []),
    "loop": (loop(), normal(4, 32, 8), []),
    "text": (text(), normal(4, 32, 8), ["label"]),
    "optional": (optional(), normal(4, 32, 8), []),
    "map": (zip_map(), normal(4, 32, 8), ["z"]),
    "map of names": (zip_map("classlabels_strings"), normal(4, 32, 8), ["z"]),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "config",
    [
        onnxq.Config(weights=4),
        onnxq.Config(target="qnn"),
        onnxq.Config(candidates=("w4a8", "w8a8"), budget=("loss=1",)),
    ],
    ids=["w4a8", "qnn", "chosen"],
)
def test_layers_around_values_that_are_no_tensors_are_quantised(name: str, config: onnxq.Config) -> None:
    model, x, without = MODELS[name]
    result = quantize(model, x, config)
    assert result.report.ok and result.report.layers
    assert [o.type for o in result.model.graph.output] == [o.type for o in model.graph.output]
    report = verify(model, result.model, [{"x": x[:9]}], latency=False)
    assert report.ok and [o.name for o in report.outputs if o.left_out] == without
    for output in without:
        assert any(f"output {output} is no tensor" in n.reason for n in result.report.notes)
        assert result.report.simulated_sqnr_db[output] is None
    assert all(o.sqnr_db > 12 for o in report.outputs if not o.left_out)  # 4-bit weights at worst


@pytest.mark.parametrize("name", MODELS)
def test_an_inspection_describes_outputs_of_every_kind(name: str) -> None:
    found = describe(*inspect(MODELS[name][0])).to_dict()
    kinds = {n: o["dtype"] for n, o in found["outputs"].items()}
    assert all((kinds[n] == "object") == (n in MODELS[name][2]) for n in kinds)


def test_integers_and_truth_values_have_their_share_told_and_are_judged_by_it() -> None:
    x = normal(4, 256, 8)
    result = quantize(whole(), x, onnxq.Config(weights=2, activations=2, edge_bits="same"))
    assert result.report.simulated_sqnr_db == {"i": None, "b": None}
    notes = [n.reason for n in result.report.notes]
    exact, found = (
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})
        for m in (whole(), result.model)
    )
    for at, output in enumerate(("i", "b")):
        share = 100 * np.mean(exact[at] == found[at])
        (note,) = [n for n in notes if n.startswith(f"output {output} holds integers, ")]
        assert abs(float(note.split("integers, ")[1].split("%")[0]) - share) < 3  # levels round a few otherwise
    report = verify(whole(), result.model, [{"x": x}], latency=False)
    assert report.outputs[0].equal == pytest.approx(100 * np.mean(exact[0] == found[0]))
