from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from passes_oracle import build, constant, normal, ops, reasons, rewrite

from onnxq.ir.load import load
from onnxq.ir.save import to_proto
from onnxq.passes.drop_identity import drop_identity
from onnxq.passes.drop_unused import drop_unused
from onnxq.passes.lift_constants import lift_constants
from onnxq.passes.own_outputs import own_outputs


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("value = float[2] {1.5, 2}", np.array([1.5, 2], np.float32)),
        ("value_float = 2.5", np.array(2.5, np.float32)),
        ("value_floats = [2.5, 3.5]", np.array([2.5, 3.5], np.float32)),
    ],
)
def test_a_constant_node_becomes_an_initializer_of_the_same_name_and_value(form: str, expected: np.ndarray) -> None:
    model = rewrite(build(f"(float[2] x) => (float[2] y) {{ k = Constant<{form}>() y = Add(x, k) }}"), lift_constants)
    assert ops(model) == ["Add"]
    np.testing.assert_array_equal(constant(model, "k"), expected)
    assert constant(model, "k").dtype == np.float32


@pytest.mark.parametrize(("form", "shape"), [("value_int = 4", (4,)), ("value_ints = [2, 2]", (2, 2))])
def test_a_constant_node_of_integers_keeps_64_bits(form: str, shape: tuple[int, ...]) -> None:
    text = f"(float[4] x) => (float[{','.join(map(str, shape))}] y) {{ k = Constant<{form}>() y = Reshape(x, r) }}"
    if len(shape) == 1:
        text = text.replace("y = Reshape(x, r)", "r = Unsqueeze(k, zero) y = Reshape(x, r)")
        proto = build(text, zero=np.array([0], np.int64))
    else:
        proto = build(text.replace("(x, r)", "(x, k)"))
    model = rewrite(proto, lift_constants)
    assert "Constant" not in ops(model) and constant(model, "k").dtype == np.int64


def test_text_and_four_bit_constants_stay_nodes() -> None:
    proto = build("(float[2] x) => (float[2] y) { y = Relu(x) }", opset=21, ir=10)
    four = helper.make_tensor("four", TensorProto.INT4, [2], [1, -2])
    proto.graph.node.insert(0, helper.make_node("Constant", [], ["q"], value=four))
    scale = helper.make_tensor("scale", TensorProto.FLOAT, [], [0.5])
    proto.graph.initializer.append(scale)
    proto.graph.node.insert(1, helper.make_node("DequantizeLinear", ["q", "scale"], ["w"]))
    proto.graph.node.insert(2, helper.make_node("Constant", [], ["text"], value_string="hello"))
    proto.graph.node[3].CopyFrom(helper.make_node("Add", ["x", "w"], ["y"]))
    model = rewrite(proto, lift_constants)
    assert ops(model) == ["Constant", "DequantizeLinear", "Constant", "Add"]


def test_a_constant_that_a_branch_reads_or_that_leaves_the_graph_stays_a_node() -> None:
    text = """(float[2] x, bool p) => (float[2] y, float[2] out) {
        k = Constant<value_floats = [1.0, 2.0]>()
        out = Constant<value_floats = [3.0, 4.0]>()
        y = If (p) <then_branch = t () => (float[2] t1) { t1 = Add(x, k) },
                    else_branch = e () => (float[2] e1) { e1 = Sub(x, k) }>
    }"""
    assert ops(rewrite(build(text), lift_constants)) == ["Constant", "Constant", "If"]


def test_a_chain_of_moving_nodes_before_a_weight_is_worked_out() -> None:
    text = """(float[N,3] x) => (float[N,4] y) {
        k = Constant<value = int64[2] {-1, 3}>()
        wide = Cast<to = 1>(w)
        square = Reshape(wide, k)
        kept = Identity(square)
        turned = Transpose(kept)
        y = MatMul(x, turned)
    }"""
    weight = normal(0, 12).astype(np.float16)
    model = rewrite(build(text, w=weight), lift_constants)
    assert ops(model) == ["MatMul"]
    np.testing.assert_array_equal(constant(model, "turned"), weight.astype(np.float32).reshape(4, 3).T)


def test_constants_that_lead_to_no_layer_are_not_worked_out() -> None:
    text = """(int64[5] x) => (float[5,3] y) { table = Cast<to = 1>(t) y = Gather(table, x) }"""
    proto = build(text, t=np.arange(15, dtype=np.int8).reshape(5, 3))
    model = lift_constants(load(proto))
    assert ops(model) == ["Cast", "Gather"], "a widened table would make the file larger for nothing"


def test_a_weight_that_is_dequantized_stays_quantized() -> None:
    text = """(float[N,3] x) => (float[N,4] y) { f = DequantizeLinear(w, scale) y = MatMul(x, f) }"""
    proto = build(text, w=np.arange(12, dtype=np.int8).reshape(3, 4), scale=np.array(0.1, np.float32))
    assert ops(rewrite(proto, lift_constants)) == ["DequantizeLinear", "MatMul"]


def test_a_weight_that_the_caller_may_override_keeps_being_an_input_and_is_remarked() -> None:
    text = """(float[N,3] x, float[4,3] w) => (float[N,4] y) { t = Transpose(w) [fc] y = MatMul(x, t)
        [fc2] z = Gemm<transB = 1>(x, w) }"""
    proto = build(text, w=normal(0, 4, 3))
    model = rewrite(proto, lift_constants, feeds={"w": normal(9, 4, 3)})
    assert ops(model) == ["Transpose", "MatMul", "Gemm"]
    assert [t.name for t in model.inputs] == ["x"], "an input with a default need not be fed"
    assert "fc2: it stays in float because its weight 'w' is also a graph input" in reasons(model)


def test_an_identity_between_two_nodes_is_bypassed() -> None:
    text = "(float[2] x) => (float[2] y) { a = Relu(x) b = Identity(a) c = Identity(b) y = Add(b, c) }"
    model = rewrite(build(text), drop_identity)
    assert ops(model) == ["Relu", "Add"] and [t.name for t in model.graph.nodes[1].inputs] == ["a", "a"]


def test_an_identity_before_an_output_gives_its_name_to_the_node_before_it() -> None:
    text = "(float[2] x) => (float[2] y) { a = Relu(x) y = Identity(a) b = Neg(a) }"
    model = rewrite(build(text), drop_identity)
    assert ops(model) == ["Relu", "Neg"]
    assert [t.name for t in model.graph.nodes[0].outputs] == ["y"] == [t.name for t in model.graph.nodes[1].inputs]


@pytest.mark.parametrize(
    "text",
    [
        "(float[2] x) => (float[2] y) { y = Identity(x) }",
        "(float[2] x) => (float[2] y, float[2] z) { y = Identity(k) z = Add(x, y) }",
        "(float[2] x) => (float[2] a, float[2] y) { a = Relu(x) y = Identity(a) }",
    ],
)
def test_an_identity_that_alone_can_name_an_output_stays(text: str) -> None:
    constants = {"k": normal(0, 2)} if "k" in text else {}
    assert "Identity" in ops(rewrite(build(text, **constants), drop_identity))


@pytest.mark.parametrize("output", ["y", "b"])
def test_an_identity_that_a_branch_reads_stays(output: str) -> None:
    text = f"""(float[2] x, bool p) => (float[2] {output}, float[2] z) {{
        a = Relu(x)
        b = Identity(a)
        y = Neg(b)
        z = If (p) <then_branch = t () => (float[2] t1) {{ t1 = Neg({"b" if output == "y" else "a"}) }},
                    else_branch = e () => (float[2] e1) {{ e1 = Abs(a) }}>
    }}"""
    assert "Identity" in ops(rewrite(build(text), drop_identity))


def test_a_dropout_is_taken_out_only_where_it_does_nothing() -> None:
    text = """(float[2] x, bool training) => (float[2] y) {
        a = Dropout(x)
        b = Dropout(a, ratio)
        c, mask = Dropout(b, ratio, off)
        d = Dropout(c, , off)
        y = Relu(d)
    }"""
    model = rewrite(build(text, ratio=np.array(0.4, np.float32), off=np.array(False)), drop_identity)
    assert ops(model) == ["Relu"]


@pytest.mark.parametrize(
    "text",
    [
        "(float[2] x, bool t) => (float[2] y) { a = Dropout(x, ratio, t) y = Relu(a) }",
        "(float[2] x) => (float[2] y) { a = Dropout(x, ratio, on) y = Relu(a) }",
        "(float[2] x) => (float[2] y, bool[2] m) { a, m = Dropout(x, ratio) y = Relu(a) }",
    ],
)
def test_a_dropout_that_may_drop_or_whose_mask_is_used_stays(text: str) -> None:
    constants = {"ratio": np.array(0.0, np.float32)} | ({"on": np.array(True)} if "on)" in text else {})
    assert ops(rewrite(build(text, **constants), drop_identity))[0] == "Dropout"


def test_an_identity_of_another_maker_is_none_of_ours() -> None:
    proto = build("(float[2] x) => (float[2] y) { a = Relu(x) b = Identity(a) y = Neg(b) }")
    proto.graph.node[1].domain = "com.example"
    proto.opset_import.append(helper.make_opsetid("com.example", 1))
    assert ops(drop_identity(load(proto))) == ["Relu", "Identity", "Neg"]


def test_nodes_that_no_output_needs_are_dropped_and_those_a_branch_needs_are_kept() -> None:
    text = """(float[2] x, bool p) => (float[2] y) {
        used = Relu(x)
        unused = Neg(x)
        also, mask = Dropout(unused)
        y = If (p) <then_branch = t () => (float[2] t1) { t1 = Abs(used) },
                    else_branch = e () => (float[2] e1) { e1 = Sub(used, x) }>
    }"""
    assert ops(rewrite(build(text), drop_unused)) == ["Relu", "If"]


def test_thousands_of_nodes_in_a_row_are_walked_without_recursion() -> None:
    nodes = [helper.make_node("Relu", [f"t{i}"], [f"t{i + 1}"]) for i in range(3000)]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1]) for n in ("t0", "t3000")]
    graph = helper.make_graph(nodes, "long", ends[:1], ends[1:])
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    assert len(drop_unused(drop_identity(model)).graph.nodes) == 3000


def test_sequences_and_attributes_survive_the_copy_that_a_pass_works_on() -> None:
    text = """(float[4] x) => (seq(float[2]) s, float[2] y) {
        s = SplitToSequence<axis = 0>(x, two)
        y = SequenceAt(s, zero)
    }"""
    proto = build(text, two=np.array(2, np.int64), zero=np.array(0, np.int64))
    written = to_proto(drop_unused(load(proto)))
    assert written.graph.output[0].type.WhichOneof("value") == "sequence_type"
    onnx.checker.check_model(written)


def test_constants_that_are_outputs_come_from_a_node() -> None:
    text = "(float[2,4] x) => (float[2,4] y, float[4,4] w) { y = MatMul(x, w) }"
    model = rewrite(build(text, w=normal(1, 4, 4)), own_outputs)
    assert ops(model) == ["MatMul", "Identity"]
    assert [t.name for t in model.graph.outputs] == ["y", "w"] and len(model.graph.outputs[1].inputs) == 1
    assert model.graph.nodes[0].inputs[1].name == "w/constant"


def test_constant_that_a_caller_may_override_stays_an_output_as_it_is() -> None:
    text = "(float[2,4] x, float[4,4] w) => (float[2,4] y, float[4,4] w) { y = MatMul(x, w) }"
    model = rewrite(build(text, w=normal(1, 4, 4)), own_outputs)
    assert ops(model) == ["MatMul"] and model.graph.nodes[0].inputs[1].name == "w"
