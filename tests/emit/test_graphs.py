from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from small_models import SAME, Proof, build, conv_chain, conv_constants, images, normal, prove, relu_chain, weight

pytestmark = pytest.mark.slow

# Nearest rounding will do here: it is quick, and these tests are about the graph.
W8A8: dict[str, object] = {"weights": 8, "second_order": False}
W4A4: dict[str, object] = {"weights": 4, "activations": 4, "edge_bits": "same", "second_order": False}
BITS = pytest.mark.parametrize("options", [W8A8, W4A4], ids=["w8a8", "w4a4"])

# Nodes between three convolutions, and the size of the output image.
BETWEEN = {
    "add": ("a = Relu(c0)", "s = Add(a, c1) d = Relu(s)", 8),
    "concat": ("a = Relu(c0)", "r = Relu(c1) h = Concat<axis=2>(a, r) d = Concat<axis=3>(h, h)", 16),
    "multiply": ("a = Relu(c0)", "s = Sigmoid(c1) d = Mul(a, s)", 8),
    "max pool": (
        "r = Relu(c0) a = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r)",
        "d = MaxPool<kernel_shape=[2,2]>(c1)",
        3,
    ),
    "average pool": (
        "r = Relu(c0) a = AveragePool<kernel_shape=[2,2],strides=[2,2]>(r)",
        "d = AveragePool<kernel_shape=[2,2]>(c1)",
        3,
    ),
    "global pool": ("r = Relu(c0) g = GlobalAveragePool(r) a = Mul(r, g)", "d = Relu(c1)", 8),
    "padding": ('r = Relu(c0) a = Pad<mode="reflect">(r, pads)', 'd = Pad<mode="edge">(c1, pads)', 12),
    "resize": (
        'r = Relu(c0) a = Resize<mode="nearest">(r, , scales)',
        'd = Resize<mode="linear">(c1, , scales)',
        32,
    ),
    "transpose": ("r = Relu(c0) a = Transpose<perm=[0,1,3,2]>(r)", "d = Transpose<perm=[0,1,3,2]>(c1)", 8),
    "reshape": ("r = Relu(c0) a = Reshape(r, shape)", "s = Relu(c1) d = Reshape(s, square)", 8),
    "clip of both signs": ("a = Clip(c0, low, high)", "d = Clip(c1, low, high)", 8),
    "clip behind a move": ("r = Clip(c0, zero, high) a = Transpose<perm=[0,1,3,2]>(r)", "d = Relu(c1)", 8),
    "split": ("p, q = Split<axis=1>(c0, halves) a = Concat<axis=1>(q, p)", "d = Relu(c1)", 8),
}
CONSTANTS = {
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "scales": np.array([1, 1, 2, 2], np.float32),
    "shape": np.array([0, 8, 4, 16]),
    "square": np.array([0, 8, 8, 8]),
    "low": np.float32(-1),
    "zero": np.float32(0),
    "high": np.float32(1),
    "halves": np.array([4, 4]),
}


@BITS
@pytest.mark.parametrize("between", BETWEEN)
def test_every_operator_between_layers_loads_and_agrees(between: str, options: dict[str, object]) -> None:
    first, second, size = BETWEEN[between]
    prove(conv_chain(first, second, size, **CONSTANTS), images(), **options)


LAYERS = {
    "one-dimensional": (
        "(float[N,3,20] x) => (float[N,8,20] y) "
        "{ h = Conv<pads=[1,1]>(x, a) r = Relu(h) g = Conv<pads=[1,1],group=8>(r, b) y = Conv<pads=[1,1]>(g, c) }",
        {"a": weight(1, 8, 3, 3), "b": weight(2, 8, 1, 3), "c": weight(3, 8, 8, 3)},
        (3, 20),
    ),
    "three-dimensional": (
        "(float[N,3,4,4,4] x) => (float[N,8,4,4,4] y) { h = Conv<pads=[1,1,1,1,1,1]>(x, a) r = Relu(h)"
        "g = Conv<pads=[1,1,1,1,1,1],group=8>(r, b) y = Conv(g, c) }",
        {"a": weight(1, 8, 3, 3, 3, 3), "b": weight(2, 8, 1, 3, 3, 3), "c": weight(3, 8, 8, 1, 1, 1)},
        (3, 4, 4, 4),
    ),
    "transposed": (
        "(float[N,4,5,5] x) => (float[N,6,20,20] y) "
        "{ h = ConvTranspose<strides=[2,2],group=2,output_padding=[1,1],pads=[1,1,1,1]>(x, a, e) r = Relu(h)"
        "g = ConvTranspose<strides=[2,2]>(r, b) s = Relu(g) y = Conv<group=2>(s, c) }",
        {"a": weight(1, 4, 4, 3, 3), "b": weight(2, 8, 6, 2, 2), "c": weight(3, 6, 3, 1, 1), "e": normal(4, 8)},
        (4, 5, 5),
    ),
    "gemm": (
        "(float[N,12] x) => (float[N,6] y) "
        "{ h = Gemm<transB=1>(x, a, e) r = Relu(h) g = Gemm(r, b, e) s = Relu(g) y = Gemm<alpha=0.5>(s, c) }",
        {"a": weight(1, 16, 12), "b": weight(2, 16, 16), "c": weight(3, 6, 16).T.copy(), "e": normal(4, 16)},
        (12,),
    ),
    "product of two axes": (
        "(float[N,12] x) => (float[N,6] y) "
        "{ h = MatMul(x, a) i = Add(h, e) r = Relu(i) g = MatMul(r, b) j = Add(e, g) s = Relu(j) y = MatMul(s, c) }",
        {"a": weight(1, 16, 12).T.copy(), "b": weight(2, 16, 16), "c": weight(3, 6, 16).T.copy(), "e": normal(4, 16)},
        (12,),
    ),
    "product of three axes": (
        "(float[N,4,12] x) => (float[N,4,6] y) "
        "{ h = MatMul(x, a) i = Add(h, e) r = Relu(i) g = MatMul(r, b) j = Add(e, g) s = Tanh(j) y = MatMul(s, c) }",
        {"a": weight(1, 16, 12).T.copy(), "b": weight(2, 16, 16), "c": weight(3, 6, 16).T.copy(), "e": normal(4, 16)},
        (4, 12),
    ),
}


@BITS
@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_layer_holds_its_bits_and_agrees(kind: str, options: dict[str, object]) -> None:
    text, constants, shape = LAYERS[kind]
    proof = prove(build(text, **constants), normal(5, 64, *shape), **options)
    assert len(proof.bits) == 3
    if options is W8A8 and kind != "transposed":  # onnxruntime has no integer kernel for transposed convolutions
        assert None not in proof.fused.values()


@pytest.mark.parametrize("weights", [4, 8, 16])
@pytest.mark.parametrize("kind", LAYERS)
def test_activations_of_16_bits_stay_so_in_every_kind_of_layer(kind: str, weights: int) -> None:
    text, constants, shape = LAYERS[kind]
    options = {"weights": weights, "activations": 16, "second_order": False}
    proof = prove(build(text, **constants), normal(5, 64, *shape), drift=1e-4, **options)
    assert {activations for _, activations in proof.bits.values()} == {16}
    assert set(proof.fused.values()) == {None}


def test_a_dead_column_with_a_large_bias_does_not_overflow_in_a_product_of_two_axes() -> None:
    text, constants, shape = LAYERS["product of two axes"]
    constants = {**constants, "b": constants["b"].copy(), "e": constants["e"].copy()}
    constants["b"][:, 3], constants["e"][3] = 1e-12, 20
    for activations in (8, 16):
        prove(build(text, **constants), normal(5, 64, *shape), activations=activations, floor=31)


@BITS
@pytest.mark.parametrize("opset", [9, 11, 13, 17, 21, min(26, onnx.defs.onnx_opset_version())])
def test_every_opset_is_quantised(opset: int, options: dict[str, object]) -> None:
    proof = prove(relu_chain(opset), images(), **options)
    needed = 21 if options is W4A4 else 13
    assert proof.result.model.opset_import[0].version == max(opset, needed)


@BITS
@pytest.mark.parametrize("opset", [9, 17])
def test_a_half_precision_model_keeps_its_interface(opset: int, options: dict[str, object]) -> None:
    half = {name: value.astype(np.float16) for name, value in conv_constants().items()}
    text = f"""(float16[N,3,8,8] x) => (float16[N,8,8,8] y) {{
        h = Conv{SAME}(x, w0, b0) r = Relu(h) y = Conv{SAME}(r, w1, b1) }}"""
    proof = prove(build(text, opset, **half), images().astype(np.float16), **options)
    graph = proof.result.model.graph
    assert [v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)] == [TensorProto.FLOAT16] * 2
    assert len(proof.bits) == 2


@BITS
def test_two_layers_share_an_input(options: dict[str, object]) -> None:
    proof = prove(conv_chain("a = Relu(c0)", f"c2 = Conv{SAME}(a, w1, b0) d = Add(c1, c2)"), images(), **options)
    assert proof.maker("c1").input[0] == proof.maker("c2").input[0]


def test_two_layers_share_an_input_at_different_bits() -> None:
    text = f"""(float[N,3,8,8] x) => (float[N,8,8,8] y, float[N,8,8,8] z) {{
        c0 = Conv{SAME}(x, w0, b0) r0 = Relu(c0) c1 = Conv{SAME}(r0, w1, b1) y = Conv{SAME}(c1, w2, b2)
        z = Conv{SAME}(r0, w2, b2) }}"""
    proof = prove(build(text, **conv_constants()), images(), weights=4, activations=4)
    assert proof.bits == {"c0": (8, 8), "c1": (4, 4), "z": (8, 8), "y": (8, 8)}


@BITS
def test_two_layers_share_a_weight_and_a_bias(options: dict[str, object]) -> None:
    proof = prove(
        conv_chain("a = Relu(c0)", f"r = Relu(c1) c2 = Conv{SAME}(r, w1, b1) d = Relu(c2)"), images(), **options
    )
    assert len(proof.bits) == 4


def test_a_weight_that_is_read_elsewhere_stays_in_float_there() -> None:
    text = f"(float[N,3,8,8] x) => (float[N,8,8,8] y, float[8,3,3,3] v) {{ y = Conv{SAME}(x, w0, b0) v = Neg(w0) }}"
    proof = prove(build(text, **conv_constants()), images())
    assert proof.report.outputs[1].equal == 100


@BITS
def test_layer_outputs_that_are_graph_outputs_keep_their_names(options: dict[str, object]) -> None:
    text = f"""(float[N,3,8,8] x) => (float[N,8,8,8] y, float[N,8,8,8] r0, float[N,8,8,8] c1, float[N,3,8,8] same) {{
        c0 = Conv{SAME}(x, w0, b0) r0 = Relu(c0) c1 = Conv{SAME}(r0, w1, b1) r1 = Relu(c1) y = Conv{SAME}(r1, w2, b2)
        same = Identity(x) }}"""
    proof = prove(build(text, **conv_constants()), images(), **options)
    assert [o.name for o in proof.result.model.graph.output] == ["y", "r0", "c1", "same"]
    assert proof.report.outputs[3].equal == 100


@BITS
def test_several_inputs_and_outputs(options: dict[str, object]) -> None:
    text = f"""(float[N,3,8,8] a, float[N,8,8,8] b) => (float[N,8,8,8] y, float[N,8,8,8] z) {{
        c0 = Conv{SAME}(a, w0, b0) s = Add(c0, b) r = Relu(s) y = Conv{SAME}(r, w1, b1) z = Conv{SAME}(b, w2, b2) }}"""
    prove(build(text, **conv_constants()), {"a": images(), "b": normal(1, 16, 8, 8, 8)}, **options)


def branching(condition: bool) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A ReLU that is read by a layer and by both branches of an If, one of which holds a layer."""
    text = f"""(float[N,3,8,8] x, bool c) => (float[N,8,8,8] y, float[N,8,8,8] z) {{
        c0 = Conv{SAME}(x, w0, b0) r0 = Relu(c0)
        z = If(c)<then_branch = t () => (float[N,8,8,8] t1) {{ t1 = Mul(r0, r0) }},
                  else_branch = e () => (float[N,8,8,8] e1) {{ e1 = Conv{SAME}(r0, w2, b2) }}>
        y = Conv{SAME}(r0, w1, b1) }}"""
    return build(text, **conv_constants()), {"x": images(), "c": np.array(condition)}


@BITS
@pytest.mark.parametrize("condition", [True, False])
def test_a_relu_that_branches_read_survives_and_their_layers_stay_in_float(
    condition: bool, options: dict[str, object]
) -> None:
    proof = prove(*branching(condition), **options)
    assert set(proof.bits) == {"c0", "y"}
    assert [n.op_type for n in proof.result.model.graph.node].count("Relu") == 1
    assert any("inside a branch" in remark.reason for remark in proof.result.report.left_in_float)


@pytest.mark.parametrize(
    "move", ["MaxPool<kernel_shape=[1,1]>(c0)", "Transpose<perm=[0,1,3,2]>(c0)", "Reshape(c0, square)"]
)
def test_a_moved_layer_output_that_a_branch_reads_does_not_abort_the_runtime(move: str) -> None:
    text = f"""(float[N,3,8,8] x, bool c) => (float[N,8,8,8] y) {{ c0 = Conv{SAME}(x, w0, b0) m = {move}
        y = If(c)<then_branch = t () => (float[N,8,8,8] t1) {{ t1 = Relu(m) }},
                  else_branch = e () => (float[N,8,8,8] e1) {{ e1 = Neg(m) }}> }}"""
    prove(build(text, **conv_constants(), **CONSTANTS), {"x": images(), "c": np.array(True)})


@pytest.mark.parametrize(
    "middle",
    [
        'c1 = Conv<auto_pad="SAME_UPPER",strides=[2,2]>(r0, w1, b1)',
        'p = MaxPool<kernel_shape=[2,2]>(r0) c1 = Conv<auto_pad="SAME_UPPER",strides=[2,2]>(p, w1, b1)',
        f"m = ReduceMean(r0) n = Reshape(m, one) k = Add(b1, n) c1 = Conv{SAME}(r0, w1, k)",
    ],
)
def test_the_runtime_does_not_quantise_a_layer_that_was_left_in_float(middle: str) -> None:
    text = f"""(float[N,3,H,V] x) => (float[N,8,I,U] y) {{
        c0 = Conv{SAME}(x, w0, b0) r0 = Relu(c0) {middle} r1 = Relu(c1) y = Conv{SAME}(r1, w2, b2) }}"""
    proof: Proof = prove(build(text, **conv_constants(), one=np.array([1])), images(), drift=1e-6)
    assert set(proof.bits) == {"c0", "y"}
    assert proof.report.kernels.get("QLinearConv", 0) == 1


def test_tensor_names_that_the_writer_would_take_are_left_alone() -> None:
    model = relu_chain()
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [
                {"c0": "w0/quantized", "a": "x/scale", "c1": "w1"}.get(n, n) if n != "w1" else "v" for n in names
            ]
    next(t for t in model.graph.initializer if t.name == "w1").name = "v"
    assert len(prove(model, images()).bits) == 3
