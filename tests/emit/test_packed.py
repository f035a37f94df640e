"""Weights of 2 to 7 bits that take their bits in the file and are int8 to the runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray
from onnx import TensorProto, checker, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from small_models import build, images, normal, prove, relu_chain, weight

from onnxq import quantize
from onnxq.config import Config
from onnxq.config.options import UNPACKING_OPSET
from onnxq.emit.packed import emit_packed, pays
from onnxq.ir.save import save
from onnxq.quant.packing import pack
from onnxq.verify import audit_bits, verify
from onnxq.verify.session import LEVELS, start_session

pytestmark = pytest.mark.slow

BITS = (2, 3, 4, 5, 6, 7)


def unpacking(integers: NDArray[np.int16], bits: int, axis: int) -> onnx.ModelProto:
    """A model of nothing but a packed weight; it has no input, and the weight for an output."""
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, NDArray[np.generic]] = {}

    def node(op: str, inputs: list[str], output: str, **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(name: str, values: NDArray[np.generic]) -> str:
        constants[name] = values
        return name

    made = emit_packed(pack(integers, bits, axis), "w", node, constant, constant)  # type: ignore[arg-type]
    end = helper.make_tensor_value_info(made, TensorProto.INT8, integers.shape)
    graph = helper.make_graph(nodes, "g", [], [end], [numpy_helper.from_array(v, n) for n, v in constants.items()])
    opset = helper.make_opsetid("", UNPACKING_OPSET[bits])
    return helper.make_model(graph, opset_imports=[opset], ir_version=13)


@st.composite
def weights(draw: st.DrawFn) -> tuple[NDArray[np.int16], int, int]:
    """Integers of so many bits, each channel anywhere on the 8-bit grid or all in the usual place; axis of channels."""
    bits = draw(st.sampled_from(BITS))
    shape = draw(arrays.array_shapes(min_dims=1, max_dims=4, max_side=9))
    axis = draw(st.integers(0, len(shape) - 1))
    half = 1 << (bits - 1)
    codes = draw(arrays.arrays(np.int16, shape, elements=st.integers(-half, half - 1)))
    offsets = draw(arrays.arrays(np.int16, shape[axis], elements=st.integers(half - 128, 128 - half)))
    beside = [-1 if i == axis else 1 for i in range(len(shape))]
    return codes + draw(st.booleans()) * offsets.reshape(beside), bits, axis


@settings(deadline=None)
@given(weights())
def test_what_is_packed_comes_out_as_it_was(case: tuple[NDArray[np.int16], int, int]) -> None:
    integers, *_ = case
    model = unpacking(*case)
    checker.check_model(model, full_check=True)
    (by_reference,) = ReferenceEvaluator(model).run(None, {})
    (by_runtime,) = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {})
    assert by_reference.dtype == by_runtime.dtype == np.int8
    np.testing.assert_array_equal(by_reference, integers)
    np.testing.assert_array_equal(by_runtime, integers)


@pytest.mark.parametrize("bits", BITS)
def test_a_large_weight_takes_its_bits_in_the_file(bits: int) -> None:
    integers = np.random.default_rng(0).integers(-(1 << (bits - 1)), 1 << (bits - 1), (256, 256, 3, 3)).astype(np.int16)
    size = unpacking(integers, bits, 0).ByteSize()
    assert 0 <= size - integers.size * bits / 8 < 1200


@pytest.mark.parametrize(("integers", "told"), [([[0, 16]], "spans 17 integers"), ([[120, 130]], "do not fit a byte")])
def test_what_does_not_fit_is_refused(integers: list[list[int]], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        pack(np.array(integers, np.int16), 4, 0)


def test_a_weight_of_few_entries_is_smaller_in_bytes() -> None:
    few, many = (np.zeros((n, 3, 3, 3), np.int16) for n in (4, 64))
    assert [pays(pack(integers, 3), "layer.weight") for integers in (few, many)] == [False, True]


LAYERS: Mapping[str, tuple[str, dict[str, NDArray[np.float32]], tuple[int, ...], str | None]] = {
    "convolution": (
        "y = Conv<pads=[1,1,1,1]>(r, w, b)",
        {"w": weight(1, 33, 21, 3, 3), "b": normal(2, 33)},
        (21, 7, 7),
        "QLinearConv",
    ),
    "depthwise": (
        "y = Conv<pads=[1,1,1,1],group=301>(r, w, b)",
        {"w": weight(1, 301, 1, 3, 3), "b": normal(2, 301)},
        (301, 5, 5),
        "QLinearConv",
    ),
    "convolution of one axis": (
        "y = Conv<pads=[1,1]>(r, w, b)",
        {"w": weight(1, 35, 27, 3), "b": normal(2, 35)},
        (27, 9),
        "QLinearConv",
    ),
    "transposed convolution": (
        "y = ConvTranspose<strides=[2,2]>(r, w, b)",
        {"w": weight(1, 21, 33, 3, 3), "b": normal(2, 33)},
        (21, 7, 7),
        None,  # onnxruntime has no such kernel on integers
    ),
    "gemm": ("y = Gemm<transB=1>(r, w, b)", {"w": weight(1, 45, 61), "b": normal(2, 45)}, (61,), "QGemm"),
    "gemm, inputs first": ("y = Gemm(r, w, b)", {"w": weight(1, 61, 45), "b": normal(2, 45)}, (61,), "QGemm"),
    "product": ("y = MatMul(r, w)", {"w": weight(1, 61, 45)}, (5, 61), "MatMulIntegerToFloat"),
}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("kind", LAYERS)
def test_every_level_gives_the_numbers_of_whole_bytes_and_the_same_kernels(kind: str, bits: int) -> None:
    layer, constants, shape, kernel = LAYERS[kind]
    sizes = ",".join(map(str, shape))
    rank = len(shape) + 1
    ends = f"(float[N,{sizes}] x) => (float[{','.join(['N', *['M'] * (rank - 1)])}] z)"
    model = build(f"{ends} {{ r = Relu(x) {layer} z = Relu(y) }}", **constants)
    data = normal(3, 16, *shape)
    made = {
        container: quantize(model, data, Config(weights=bits, container=container, edge_bits="same")).model  # type: ignore[arg-type]
        for container in ("auto", "int8")
    }
    stored = {t.data_type for t in made["auto"].graph.initializer}
    assert stored & {TensorProto.INT4, TensorProto.UINT4, TensorProto.INT2, TensorProto.UINT2} or bits == 7
    for level in LEVELS:
        packed, whole = (start_session(m.SerializeToString(), level).run(None, {"x": data})[0] for m in made.values())
        np.testing.assert_array_equal(packed, whole)
    (audited,) = audit_bits(made["auto"])
    assert (audited.weight_bits, audited.activation_bits) == (bits, 8)
    (judged,) = verify(model, made["auto"], [{"x": data}], latency=False).bits
    assert judged.fused == kernel


@pytest.mark.parametrize("bits", BITS)
def test_the_runtime_is_left_with_what_it_makes_of_whole_bytes(bits: int, tmp_path: Path) -> None:
    wide = {"w0": weight(1, 64, 3, 3, 3), "w1": weight(2, 64, 64, 3, 3), "w2": weight(3, 8, 64, 3, 3)}
    biases = {"b0": normal(1, 64), "b1": normal(2, 64)}
    counts = []
    for container in ("packed", "int8"):
        proof = prove(relu_chain(**wide, **biases), images(), weights=bits, edge_bits="same", container=container)
        path = tmp_path / f"{container}.onnx"
        start_session(proof.result.model.SerializeToString(), optimized_model=path)
        counts.append(Counter(n.op_type for n in onnx.load(path, load_external_data=False).graph.node))
    assert counts[0] == counts[1]
    assert counts[0]["QLinearConv"] == 3


@pytest.mark.parametrize("bits", BITS)
def test_the_file_is_smaller_by_the_bits_saved(bits: int) -> None:
    constants = {"w0": weight(1, 128, 3, 3, 3), "w1": weight(2, 128, 128, 3, 3), "w2": weight(3, 8, 128, 3, 3)}
    model = relu_chain(**constants, b0=normal(1, 128), b1=normal(2, 128))
    config = Config(weights=bits, edge_bits="same", second_order=False)
    size = quantize(model, images(), config).model.ByteSize()
    whole = sum(w.size for w in constants.values())
    assert size <= bits / 8 * whole * 1.03 + 40_000


def test_weights_that_lean_are_audited_by_their_channels() -> None:
    rng = np.random.default_rng(0)
    integers = (rng.integers(-2, 2, (64, 64)) + rng.integers(-126, 126, (64, 1))).astype(np.int16)
    model = unpacking(integers, 2, 0)
    (weights_made,) = (o.name for o in model.graph.output)
    graph = model.graph
    del graph.output[:]
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 64]))
    graph.output.append(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 64]))
    graph.initializer.append(numpy_helper.from_array(np.full(64, 0.1, np.float32), "scale"))
    graph.node.append(helper.make_node("DequantizeLinear", [weights_made, "scale"], ["real"], axis=0))
    graph.node.append(helper.make_node("Gemm", ["x", "real"], ["y"], "layer", transB=1))
    (layer,) = audit_bits(model)
    assert layer.weight_bits == 2


def test_layers_that_share_a_weight_are_packed_each() -> None:
    model = build(
        "(float[N,32,6,6] x) => (float[N,32,6,6] z) { a = Conv(x, w) r = Relu(a) y = Conv(r, w) z = Relu(y) }",
        w=weight(1, 32, 32, 1, 1),
    )
    proof = prove(model, normal(2, 16, 32, 6, 6), weights=3, edge_bits="same")
    assert set(proof.bits.values()) == {(3, 8)}
    assert set(proof.fused.values()) == {"QLinearConv"}


def test_packed_weights_outside_the_message_are_read_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(
        "(float[N,64,6,6] x) => (float[N,64,6,6] z) { a = Conv(x, w) r = Relu(a) y = Conv(r, v) z = Relu(y) }",
        w=weight(1, 64, 64, 3, 3)[:, :, 1:2, 1:2].copy(),
        v=weight(2, 64, 64, 1, 1),
    )
    data = normal(2, 16, 64, 6, 6)
    made = quantize(model, data, Config(weights=3, edge_bits="same")).model
    inside = start_session(made.SerializeToString()).run(None, {"x": data})[0]
    monkeypatch.setattr("onnxq.ir.save.fits_one_message", lambda _: False)
    save(made, tmp_path / "q.onnx")
    onnx.save(made, tmp_path / "apart.onnx", save_as_external_data=True, location="apart.bin", size_threshold=0)
    for path in (tmp_path / "q.onnx", tmp_path / "apart.onnx"):
        np.testing.assert_array_equal(start_session(str(path)).run(None, {"x": data})[0], inside)
        assert {bits.weight_bits for bits in audit_bits(path)} == {3}


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose"])
def test_every_attribute_of_a_convolution_is_written_out(op: str) -> None:
    shapes = {"Conv": (16, 8, 3, 3), "ConvTranspose": (8, 16, 3, 3)}
    model = build(
        f"(float[N,8,6,6] x) => (float[N,16,M,K] z) {{ y = {op}(x, w) z = Relu(y) }}", w=weight(1, *shapes[op])
    )
    result = quantize(model, normal(2, 16, 8, 6, 6), Config(weights=4))
    (node,) = (n for n in result.model.graph.node if n.op_type == op)
    found = {a.name: helper.get_attribute_value(a) for a in node.attribute}
    wanted: dict[str, object] = {
        "auto_pad": b"NOTSET",
        "dilations": [1, 1],
        "group": 1,
        "kernel_shape": [3, 3],
        "pads": [0, 0, 0, 0],
        "strides": [1, 1],
    }
    assert found == wanted | ({"output_padding": [0, 0]} if op == "ConvTranspose" else {})


def test_the_report_says_how_weights_are_stored_and_what_other_runtimes_do() -> None:
    result = quantize(relu_chain(w1=weight(1, 8, 8, 3, 3)), images(), Config(weights=4, edge_bits="same"))
    assert any("unpacked by operators on constants" in note.reason for note in result.report.notes)
