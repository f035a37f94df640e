"""The audit of real bits, against models whose bits are known by construction."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike
from onnx import TensorProto, helper, numpy_helper

from onnxq.errors import ModelError
from onnxq.verify import LayerBits, audit_bits, verify

CONTAINERS: dict[int, tuple[int, int]] = {
    TensorProto.INT8: (-128, 127),
    TensorProto.UINT8: (0, 255),
    TensorProto.INT16: (-32768, 32767),
    TensorProto.INT4: (-8, 7),
    TensorProto.UINT4: (0, 15),
}


def tensor(name: str, values: ArrayLike, kind: int) -> onnx.TensorProto:
    return numpy_helper.from_array(np.asarray(values).astype(helper.tensor_dtype_to_np_dtype(kind)), name)


def model(
    nodes: list[onnx.NodeProto],
    stored: list[onnx.TensorProto],
    *,
    x: Sequence[str | int | None] = ("N", 4),
    y: Sequence[str | int | None] = ("N", 4),
    opset: int = 21,
    functions: list[onnx.FunctionProto] | None = None,
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        stored,
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("local", 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10, functions=functions or [])
    onnx.checker.check_model(proto, full_check=True)
    return proto


def quantized_x(kind: int = TensorProto.UINT8, zero: int = 0) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """x → Q → DQ → xd, with scale 1/16."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
    ]
    return nodes, [tensor("xs", 0.0625, TensorProto.FLOAT), tensor("xz", zero, kind)]


def weight(values: ArrayLike, kind: int = TensorProto.INT8) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto]]:
    """w → DQ → wd."""
    node = helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"])
    return [node], [tensor("w", values, kind), tensor("ws", 0.25, TensorProto.FLOAT)]


def matmul(values: ArrayLike, kind: int = TensorProto.INT8) -> onnx.ModelProto:
    """A (N, 4) x (4, n) MatMul of quantized activations and stored weights."""
    (q, a), (d, b) = quantized_x(), weight(values, kind)
    width = np.shape(values)[1]
    return model([*q, *d, helper.make_node("MatMul", ["xd", "wd"], ["y"], name="mm")], a + b, y=("N", width))


def convolution(output_quantized: bool = True, kind: int = TensorProto.INT8) -> onnx.ModelProto:
    """A 3x3 convolution, weights over the container's whole range, activations uint8."""
    low, high = CONTAINERS[kind]
    values = np.resize(np.arange(low, high + 1), (6, 5, 3, 3))
    (q, a), (d, b) = quantized_x(), weight(values, kind)
    nodes = [*q, *d, helper.make_node("Conv", ["xd", "wd"], ["c" if output_quantized else "y"], name="conv")]
    if output_quantized:
        nodes += [
            helper.make_node("QuantizeLinear", ["c", "ys", "yz"], ["yq"]),
            helper.make_node("DequantizeLinear", ["yq", "ys", "yz"], ["y"]),
        ]
        b += [tensor("ys", 1.0, TensorProto.FLOAT), tensor("yz", 128, TensorProto.UINT8)]
    return model(nodes, a + b, x=("N", 5, 8, 8), y=("N", 6, 6, 6))


def only(proto: onnx.ModelProto) -> LayerBits:
    layers = audit_bits(proto)
    assert len(layers) == 1
    return layers[0]


def test_full_range_eight_bit_convolution_has_eight_bits_and_every_level() -> None:
    assert only(convolution()) == LayerBits("conv", "Conv", 8, 8, 256)


def test_int4_typed_weights_have_four_bits() -> None:
    assert only(convolution(kind=TensorProto.INT4)) == LayerBits("conv", "Conv", 4, 8, 16)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(CONTAINERS)))
def test_weight_bits_are_the_fewest_that_hold_the_stored_span(data: st.DataObject, kind: int) -> None:
    low, high = CONTAINERS[kind]
    values = data.draw(st.lists(st.integers(low, high), min_size=4, max_size=12).filter(lambda v: len(v) % 4 == 0))
    layer = only(matmul(np.reshape(values, (4, -1)), kind))
    span = max(values) - min(values) + 1
    assert layer.weight_bits == next(bits for bits in range(1, 17) if 2**bits >= span)
    assert layer.weight_levels_used == len(set(values))


def test_four_bit_values_around_128_in_a_uint8_container_have_four_bits() -> None:
    layer = only(matmul(np.arange(120, 136).reshape(4, 4), TensorProto.UINT8))
    assert (layer.weight_bits, layer.weight_levels_used) == (4, 16)


def clipped(low: float | None, high: float | None, *, zero: int = 0, opset: int = 21) -> onnx.ModelProto:
    """x → Clip → Q (uint8, scale 1/16) → DQ → MatMul with stored weights."""
    (q, a), (d, b) = quantized_x(zero=zero), weight(np.eye(4, dtype=int))
    q[0].input[0] = "xc"
    if opset < 11:
        clip = helper.make_node("Clip", ["x"], ["xc"], min=low, max=high)
    else:
        bounds = {"low": low, "high": high}
        names = [name if bound is not None else "" for name, bound in bounds.items()]
        clip = helper.make_node("Clip", ["x", *names], ["xc"])
        a += [tensor(name, bound, TensorProto.FLOAT) for name, bound in bounds.items() if bound is not None]
    return model([clip, *q, *d, helper.make_node("MatMul", ["xd", "wd"], ["y"], name="mm")], a + b, opset=opset)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("zero", [0, 128])
def test_a_clip_before_the_quantizer_narrows_activations_to_its_grid(bits: int, zero: int) -> None:
    low = 0 if zero == 0 else -(2 ** (bits - 1))
    layer = only(clipped(low / 16, (low + 2**bits - 1) / 16, zero=zero))
    assert layer.activation_bits == bits


def test_a_clip_wider_than_the_container_leaves_it_eight_bits() -> None:
    assert only(clipped(-1e6, 1e6)).activation_bits == 8


def test_a_clip_open_below_narrows_from_the_containers_end() -> None:
    assert only(clipped(None, 15 / 16)).activation_bits == 4


def test_a_clip_open_above_narrows_to_the_containers_end() -> None:
    assert only(clipped(0.0, None, zero=128)).activation_bits == 7


def test_a_clip_of_an_old_opset_narrows_by_its_attributes() -> None:
    assert only(clipped(0.0, 15 / 16, opset=10)).activation_bits == 4


def test_four_bit_typed_activations_have_four_bits() -> None:
    (q, a), (d, b) = quantized_x(TensorProto.UINT4), weight(np.eye(4, dtype=int))
    layer = only(model([*q, *d, helper.make_node("MatMul", ["xd", "wd"], ["y"])], a + b))
    assert layer.activation_bits == 4


def test_a_quantizer_without_zero_point_is_read_from_its_output_type() -> None:
    _, stored = quantized_x()
    d, b = weight(np.eye(4, dtype=int))
    for given_type, bits in ((0, 8), (TensorProto.INT16, 16), (TensorProto.INT4, 4)):
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "xs"], ["xq"], output_dtype=given_type),
            helper.make_node("DequantizeLinear", ["xq", "xs"], ["xd"]),
            *d,
            helper.make_node("MatMul", ["xd", "wd"], ["y"]),
        ]
        assert only(model(nodes, [stored[0], *b])).activation_bits == bits


def test_weights_are_found_through_transpose_reshape_and_cast() -> None:
    (q, a), (d, b) = quantized_x(), weight(np.arange(16).reshape(2, 8), TensorProto.INT8)
    nodes = [
        *q,
        *d,
        helper.make_node("Transpose", ["wd"], ["wt"]),
        helper.make_node("Cast", ["wt"], ["wc"], to=TensorProto.FLOAT),
        helper.make_node("Reshape", ["wc", "shape"], ["wr"]),
        helper.make_node("MatMul", ["xd", "wr"], ["y"]),
    ]
    layer = only(model(nodes, [*a, *b, tensor("shape", [4, 4], TensorProto.INT64)]))
    assert (layer.weight_bits, layer.weight_levels_used, layer.activation_bits) == (4, 16, 8)


def test_weights_of_a_constant_node_count_as_stored() -> None:
    q, a = quantized_x()
    nodes = [
        helper.make_node("Constant", [], ["w"], value=tensor("w", np.eye(4, dtype=int), TensorProto.INT8)),
        helper.make_node("Constant", [], ["ws"], value_float=0.5),
        helper.make_node("DequantizeLinear", ["w", "ws"], ["wd"]),
    ]
    layer = only(model([*q, *nodes, helper.make_node("MatMul", ["xd", "wd"], ["y"])], a))
    assert (layer.weight_bits, layer.weight_levels_used) == (1, 2)


def test_a_weight_may_be_the_first_operand() -> None:
    (q, a), (d, b) = quantized_x(), weight(np.arange(16).reshape(4, 4))
    layer = only(model([*q, *d, helper.make_node("MatMul", ["wd", "xd"], ["y"])], a + b, x=(4, 3), y=(4, 3)))
    assert (layer.weight_bits, layer.activation_bits) == (4, 8)


def test_a_product_of_two_activations_has_activation_bits_only() -> None:
    q, a = quantized_x(TensorProto.INT4)
    nodes = [
        *q,
        helper.make_node("QuantizeLinear", ["x", "xs", "tz"], ["tq"]),
        helper.make_node("Transpose", ["tq"], ["tt"]),
        helper.make_node("DequantizeLinear", ["tt", "xs", "tz"], ["td"]),
        helper.make_node("MatMul", ["xd", "td"], ["y"]),
    ]
    layer = only(model(nodes, [*a, tensor("tz", 0, TensorProto.UINT8)], x=(3, 4), y=(3, 3)))
    assert (layer.weight_bits, layer.weight_levels_used, layer.activation_bits) == (None, None, 8)


def test_float_activations_have_no_bits() -> None:
    d, b = weight(np.arange(16).reshape(4, 4))
    layer = only(model([*d, helper.make_node("MatMul", ["x", "wd"], ["y"])], b))
    assert (layer.weight_bits, layer.activation_bits) == (4, None)


def test_dynamically_quantized_activations_have_eight_bits() -> None:
    d, b = weight(np.arange(16).reshape(4, 4))
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
        helper.make_node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]),
        *d,
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    assert only(model(nodes, b)).activation_bits == 8


def test_a_weight_in_float_is_not_quantized() -> None:
    q, a = quantized_x()
    layers = [*q, helper.make_node("MatMul", ["xd", "wd"], ["y"])]
    assert audit_bits(model(layers, [*a, tensor("wd", np.eye(4), TensorProto.FLOAT)])) == ()


def test_a_weight_stored_as_floats_has_the_bits_that_its_quantizelinear_leaves() -> None:
    q, a = quantized_x()
    scale = np.array([0.5, 0.25, 1.0, 2.0], np.float32)
    codes = np.array([[-7, 7, 3, 0], [1, 2, 3, 4], [-1, -2, -3, -4], [0, 0, 9, 200]])
    stored = [
        tensor("w", codes * scale, TensorProto.FLOAT),
        tensor("ws", scale, TensorProto.FLOAT),
        tensor("wz", np.zeros(4), TensorProto.INT8),
    ]
    nodes = [
        helper.make_node("QuantizeLinear", ["w", "ws", "wz"], ["wq"], axis=1),
        helper.make_node("DequantizeLinear", ["wq", "ws", "wz"], ["wd"], axis=1),
    ]
    layers = [*q, *nodes, helper.make_node("MatMul", ["xd", "wd"], ["y"])]
    found = only(model(layers, [*a, *stored]))
    assert (found.weight_bits, found.weight_levels_used) == (8, np.unique(codes.clip(-128, 127)).size)


def test_layers_in_branches_see_the_weights_outside() -> None:
    (q, a), (d, b) = quantized_x(), weight(np.arange(16).reshape(4, 4))
    branches = {
        key: helper.make_graph(
            [helper.make_node("MatMul", ["xd", "wd"], ["r"], name="mm")],
            key,
            [],
            [helper.make_tensor_value_info("r", TensorProto.FLOAT, ("N", 4))],
        )
        for key in ("then_branch", "else_branch")
    }
    nodes = [*q, *d, helper.make_node("If", ["choice"], ["y"], **branches)]
    layers = audit_bits(model(nodes, [*a, *b, tensor("choice", True, TensorProto.BOOL)]))
    assert [(layer.name, layer.weight_bits, layer.activation_bits) for layer in layers] == [
        ("mm", 4, 8),
        ("mm (2)", 4, 8),
    ]


def test_layers_inside_local_functions_are_audited() -> None:
    (q, a), (d, b) = quantized_x(), weight(np.arange(16).reshape(4, 4))
    product = helper.make_function(
        "local",
        "Product",
        ["left", "right"],
        ["result"],
        [helper.make_node("MatMul", ["left", "right"], ["result"])],
        [helper.make_opsetid("", 21)],
    )
    call = helper.make_node("Product", ["xd", "wd"], ["y"], domain="local")
    layer = only(model([*q, *d, call], a + b, functions=[product]))
    assert (layer.op, layer.weight_bits, layer.activation_bits) == ("MatMul", 4, 8)


def test_a_nameless_layer_is_called_by_its_output() -> None:
    (q, a), (d, b) = quantized_x(), weight(np.arange(16).reshape(4, 4))
    assert only(model([*q, *d, helper.make_node("MatMul", ["xd", "wd"], ["y"])], a + b)).name == "y"


def test_weights_in_external_data_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    proto = convolution()
    onnx.save(proto, path, save_as_external_data=True, location="w.bin", size_threshold=64)
    assert b"w.bin" in path.read_bytes()
    assert audit_bits(path) == (LayerBits("conv", "Conv", 8, 8, 256),)


def test_a_proto_without_its_external_data_is_refused(tmp_path: Path) -> None:
    onnx.save(convolution(), tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=64)
    with pytest.raises(ModelError, match="hand over its path"):
        audit_bits(onnx.load(str(tmp_path / "m.onnx"), load_external_data=False))


@pytest.mark.parametrize("named", [True, False])
def test_the_report_says_which_integer_kernel_a_layer_runs_as(named: bool) -> None:
    proto = convolution()
    if not named:
        for node in proto.graph.node:
            node.name = ""
    report = verify(proto, proto, [{"x": np.ones((1, 5, 8, 8), np.float32)}], latency=False)
    assert [layer.fused for layer in report.bits] == ["QLinearConv"]
    assert report.kernels["QLinearConv"] == 1
    assert "Conv" not in report.kernels


def test_a_layer_that_runs_in_float_has_no_integer_kernel() -> None:
    proto = convolution(output_quantized=False)
    report = verify(proto, proto, [{"x": np.ones((1, 5, 8, 8), np.float32)}], latency=False)
    assert [(layer.weight_bits, layer.fused) for layer in report.bits] == [(8, None)]


def test_the_integer_kernel_is_found_beside_external_data(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(convolution(), path, save_as_external_data=True, location="w.bin", size_threshold=64)
    report = verify(path, path, [{"x": np.ones((1, 5, 8, 8), np.float32)}], latency=False)
    assert report.bits[0].fused == "QLinearConv"
    assert report.quantized == path.stat().st_size + (tmp_path / "w.bin").stat().st_size
