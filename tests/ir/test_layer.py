from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from small_models import SAME, build, conv_chain, conv_constants, normal, relu_chain, weight

from onnxq.config import Config
from onnxq.errors import UnsupportedError
from onnxq.ir.layer import Layer, Window, find_layers
from onnxq.ir.load import load
from onnxq.passes.prepare import prepare
from onnxq.plan.make_plan import make_plan
from onnxq.plan.values import Plan, Quantizer

SQUARE = {"w": weight(0, 6, 6), "v": weight(1, 6, 6), "b": normal(2, 6), "zero": np.float32(0), "six": np.float32(6)}


def layers_of(model: onnx.ModelProto) -> dict[str, Layer]:
    return {layer.name: layer for layer in find_layers(load(model))[0]}


def plan_of(model: onnx.ModelProto, **options: object) -> Plan:
    return make_plan(prepare(load(model)), Config(**options))  # type: ignore[arg-type]


def bits_of(plan: Plan) -> dict[str, tuple[int, int]]:
    return {p.layer.name: (p.weights, p.activations) for p in plan.layers}


def test_a_convolution_is_described_with_its_window() -> None:
    text = """(float[N,4,9,8] x) => (float y) {
        c = Conv<group=2,strides=[2,1],pads=[1,0,2,1],dilations=[1,2]>(x, w, b) y = Relu(c) }"""
    found = layers_of(build(text, w=weight(0, 6, 2, 3, 2), b=normal(1, 6)))["c"]
    window = Window((3, 2), (2, 1), (1, 2), (1, 0), 2)
    assert found == Layer("c", "Conv", "x", "c", "w", "b", (6, 2, 3, 2), 0, window, False, 0.0, math.inf, "y")
    assert (found.channels, found.parameters) == (6, 72)


def test_a_transposed_convolution_counts_the_channels_of_all_groups() -> None:
    text = "(float[N,4,5] x) => (float y) { y = ConvTranspose<group=2>(x, w) }"
    found = layers_of(build(text, w=weight(0, 4, 3, 2)))["y"]
    assert (found.channel_axis, found.channels, found.bias, found.activated) == (1, 6, None, "y")


@pytest.mark.parametrize(
    ("op", "axis", "transposed"), [("Gemm<transB=1>", 0, True), ("Gemm", 1, False), ("MatMul", 1, False)]
)
def test_the_channel_axis_of_a_matrix_is_that_of_its_output(op: str, axis: int, transposed: bool) -> None:
    found = layers_of(build(f"(float[N,6] x) => (float[N,6] y) {{ y = {op}(x, w) }}", **SQUARE))["y"]
    assert (found.channel_axis, found.transposed, found.window) == (axis, transposed, None)


@pytest.mark.parametrize("add", ["Add(p, b)", "Add(b, p)"])
def test_a_constant_that_is_added_behind_a_product_is_its_bias(add: str) -> None:
    text = f"(float[N,4,6] x) => (float[N,4,6] y) {{ p = MatMul(x, w) q = {add} y = Relu(q) }}"
    found = layers_of(build(text, **SQUARE))["p"]
    assert (found.bias, found.output, found.activated, found.low) == ("b", "q", "y", 0.0)


@pytest.mark.parametrize(
    "rest",
    [
        "y = Add(p, x)",
        "y = Add(p, six)",
        "q = Add(p, b) y = Mul(q, p)",
        "y = Sub(p, b)",
        "y = Add(p, p)",
        "q = Add(p, b) z = Neg(p) y = Add(q, z)",
    ],
)
def test_whatever_else_is_added_behind_a_product_is_no_bias(rest: str) -> None:
    text = f"(float[N,4,6] x) => (float[N,4,6] y) {{ p = MatMul(x, w) {rest} }}"
    found = layers_of(build(text, **SQUARE))["p"]
    assert (found.bias, found.output) == (None, "p")


@pytest.mark.parametrize(
    ("rest", "low", "high"),
    [
        ("y = Relu(p)", 0, math.inf),
        ("y = Clip(p, zero, six)", 0, 6),
        ("y = Clip(p, zero)", 0, math.inf),
        ("y = Clip(p, , six)", -math.inf, 6),
        ("y = Clip(p)", -math.inf, math.inf),
    ],
)
def test_the_clipping_that_follows_is_found(rest: str, low: float, high: float) -> None:
    found = layers_of(build(f"(float[N,6] x) => (float[N,6] y) {{ p = Gemm(x, w) {rest} }}", **SQUARE))["p"]
    assert (found.low, found.high, found.activated) == (low, high, "y")


@pytest.mark.parametrize(
    "rest",
    [
        "r = Relu(p) y = Add(p, r)",
        "t = ReduceMax<keepdims=0>(x) y = Clip(p, zero, t)",
        "y = LeakyRelu(p)",
        "q = Identity(p) y = Relu(q)",
        "y = Identity(p)",
    ],
)
def test_no_clipping_is_seen_where_others_see_the_output_or_a_bound_is_open(rest: str) -> None:
    found = layers_of(build(f"(float[N,6] x) => (float[N,6] y) {{ p = Gemm(x, w) {rest} }}", **SQUARE))["p"]
    assert (found.low, found.high, found.activated) == (-math.inf, math.inf, "p")


def test_no_clipping_is_seen_behind_a_graph_output() -> None:
    text = "(float[N,6] x) => (float[N,6] p, float[N,6] y) { p = Gemm(x, w) y = Relu(p) }"
    assert layers_of(build(text, **SQUARE))["p"].activated == "p"


@pytest.mark.parametrize("depth", [1, 2])
def test_a_relu_inside_a_branch_is_no_clipping_and_layers_inside_are_left_with_a_remark(depth: int) -> None:
    inside = "Relu(p)"
    for level in range(depth):
        inside = f"""If(c)<then_branch = t{level} () => (float[N,6] a{level}) {{ a{level} = {inside} }},
            else_branch = e{level} () => (float[N,6] f{level}) {{ f{level} = Gemm(x, v) }}>"""
    model = load(build(f"(float[N,6] x, bool c) => (float[N,6] y) {{ p = Gemm(x, w) y = {inside} }}", **SQUARE))
    (found,), remarks = find_layers(model)
    assert (found.name, found.activated) == ("p", "p")
    assert ["inside a branch or loop body of y" in remark.reason for remark in remarks] == [True] * depth


@pytest.mark.parametrize(
    ("inputs", "node", "reason"),
    [
        ("float[N,6] x, float[N,6,6] z", "MatMul(z, x)", "product of two activations"),
        ("float[N,6] x, float[6,6] z", "Gemm(x, z)", "computed or fed by the caller"),
        ("float[6,N] x", "MatMul(w, x)", "its weight stands first"),
        ("float[N,6] x", "Gemm(w, v)", "data input is a constant"),
        ("double[N,6] x", "MatMul(x, wide)", "float64, not float32"),
        ("float[N,6] x", "MatMul(x, empty)", "is empty"),
        ("float[N,6] x", "MatMul(x, stack)", "3 axes, not 2"),
        ("float[6] x", "MatMul(x, w)", "one axis"),
        ("float[6,N] x", "Gemm<transA=1>(x, w)", "transA or alpha"),
        ("float[N,6] x", "Gemm<alpha=0.5>(x, w)", "transA or alpha"),
        ("float[N,6] x, float[6] z", "Gemm(x, w, z)", "bias is computed"),
        ("float[2,6] x", "Gemm(x, w, rows)", "from row to row"),
        ("float[N,6,H] x", 'Conv<auto_pad="SAME_UPPER">(x, kernel)', "auto_pad"),
        ("float[N,6,5] x", "ConvTranspose<output_shape=[8]>(x, kernel)", "output_shape"),
    ],
)
def test_what_is_no_layer_is_left_in_float_with_the_reason(inputs: str, node: str, reason: str) -> None:
    constants = {
        **SQUARE,
        "wide": SQUARE["w"].astype(np.float64),
        "empty": np.zeros((6, 0), np.float32),
        "stack": normal(3, 2, 6, 6),
        "rows": normal(4, 2, 6),
        "kernel": weight(5, 6, 6, 3),
    }
    output = "double" if "double" in inputs else "float"
    model = build(f"({inputs}) => ({output} y) {{ n = {node} y = Identity(n) }}", **constants)
    found, (remark,) = find_layers(load(model))
    assert found == ()
    assert remark.node == "n" and reason in remark.reason and remark.reason.endswith("left in float")


def test_a_weight_that_a_caller_may_override_is_left_in_float() -> None:
    text = "(float[N,6] x, float[6,6] w) => (float[N,6] y) { y = Gemm(x, w) }"
    found, (remark,) = find_layers(load(build(text, **SQUARE)))
    assert found == () and "a caller may override" in remark.reason


def test_first_and_last_layers_keep_8_bits_unless_told_otherwise() -> None:
    assert bits_of(plan_of(relu_chain(), weights=4, activations=3)) == {"c0": (8, 8), "c1": (4, 3), "y": (8, 8)}
    same = plan_of(relu_chain(), weights=4, activations=3, edge_bits="same")
    assert set(bits_of(same).values()) == {(4, 3)}
    wide = plan_of(relu_chain(), weights=16, activations=32)
    assert set(bits_of(wide).values()) == {(16, 32)}
    six = plan_of(relu_chain(), weights=2, activations=4, edge_bits=6)
    assert bits_of(six) == {"c0": (6, 6), "c1": (2, 4), "y": (6, 6)}


def test_every_layer_that_no_layer_precedes_or_follows_is_an_edge() -> None:
    text = f"""(float[N,3,8,8] x, float[N,8,8,8] z) => (float y, float q) {{
        c0 = Conv{SAME}(x, w0, b0) r0 = Relu(c0) c1 = Conv{SAME}(r0, w1, b1) d = Conv{SAME}(z, w2, b2)
        s = Add(c1, d) e = Conv{SAME}(s, w1, b1) y = Conv{SAME}(e, w2, b2) q = Conv{SAME}(r0, w2, b2) }}"""
    plan = plan_of(build(text, **conv_constants()), weights=4)
    assert {p.layer.name for p in plan.layers if p.edge} == {"c0", "d", "y", "q"}


def outputs_of(first: str, second: str, size: int = 8, **options: object) -> set[tuple[str, str | None]]:
    constants = {"shape": np.array([0, 8, 4, 16]), "one": np.array([1])}
    plan = plan_of(conv_chain(first, second, size, **constants), **options)
    assert all(isinstance(q, Quantizer) for q in plan.outputs)
    return {(q.tensor, q.like) for q in plan.outputs}


def test_an_output_is_quantised_where_it_is_made_on_the_grid_of_what_reads_it() -> None:
    assert outputs_of("a = Relu(c0)", "d = Sigmoid(c1)") == {("a", "a"), ("c1", None), ("y", None)}
    pooled = outputs_of("r = Relu(c0) a = MaxPool<kernel_shape=[2,2]>(r)", "d = Reshape(c1, shape)", 7)
    assert pooled == {("r", "a"), ("c1", "d"), ("y", None)}
    shared = outputs_of("r = Relu(c0) a = MaxPool<kernel_shape=[1,1]>(r)", "d = Add(c1, r)")
    assert shared == {("r", None), ("c1", None), ("y", None)}


def test_no_output_is_quantised_where_no_integer_kernel_would_take_it() -> None:
    relu = ("a = Relu(c0)", "d = Relu(c1)")
    assert outputs_of(*relu, activations=16) == outputs_of(*relu, activations=32) == set()
    assert outputs_of(*relu, weights=16) == set()
    assert outputs_of(*relu, weights=4, container="int4") == {("a", "a"), ("y", None)}  # c1 holds int4
    for container in ("packed", "int8"):
        assert outputs_of(*relu, weights=4, container=container) == {("a", "a"), ("d", "d"), ("y", None)}
    assert outputs_of(*relu, weights=4, activations=4) == {("y", None)}  # a second grid would stand before 4 bits
    computed = "a = Relu(c0) m = ReduceMean(a) n = Reshape(m, one) k = Add(b1, n) f = Conv<pads=[1,1,1,1]>(a, w1, k)"
    assert ("a", None) not in outputs_of(computed, "d = Add(c1, f)")  # a layer in float reads it


def test_a_model_without_layers_is_refused_with_what_stands_in_the_way() -> None:
    with pytest.raises(UnsupportedError, match="holds no Conv"):
        plan_of(build("(float[N,6] x) => (float[N,6] y) { y = Relu(x) }"))
    with pytest.raises(UnsupportedError, match=r"y: its weight is computed"):
        plan_of(build("(float[N,6] x, float[6,6] z) => (float[N,6] y) { y = Gemm(x, z) }"))
