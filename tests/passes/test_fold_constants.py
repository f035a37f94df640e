"""Weights that come from constants alone, and products whose weights stand elsewhere than a layer has them."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from small_models import build, normal, weight

import onnxq
from onnxq.ir.activation_matmul import find_products
from onnxq.ir.layer import find_layers
from onnxq.ir.load import load
from onnxq.ir.save import to_proto
from onnxq.passes.fold_constants import fold_constants
from onnxq.passes.prepare import prepare
from onnxq.verify import verify

W = weight(1, 8, 3, 3, 3)
FORMS: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "weight norm": (
        "n = ReduceL2<axes=[1,2,3],keepdims=1>(v) d = Div(v, n) k = Mul(d, g)",
        {"v": W, "g": np.ones((8, 1, 1, 1), np.float32)},
    ),
    "standardised": ("m = ReduceMean<axes=[1,2,3],keepdims=1>(v) k = Sub(v, m)", {"v": W}),
    "mask": ("k = Mul(v, m)", {"v": W, "m": (normal(3, *W.shape) > 0).astype(np.float32)}),
    "concat": ("k = Concat<axis=0>(v, u)", {"v": W[:3], "u": W[3:]}),
    "slice": ("k = Slice(v, a, b, a)", {"v": np.concatenate([W, W]), "a": np.array([0]), "b": np.array([8])}),
    "split": ("k, rest = Split<axis=0>(v, p)", {"v": np.concatenate([W, W]), "p": np.array([8, 8])}),
    "gather": ("k = Gather<axis=0>(v, i)", {"v": W, "i": np.arange(8)[::-1].copy()}),
    "tile": ("k = Tile(v, t)", {"v": W[:4], "t": np.array([2, 1, 1, 1])}),
    "integers": (
        "f = Cast<to=1>(q) k = Mul(f, s)",
        {"q": np.round(W * 100).astype(np.int8), "s": np.asarray(np.float32(0.01))},
    ),
    "fake quantisation": (
        "a = Div(v, s) b = Round(a) c0 = Clip(b, lo, hi) k = Mul(c0, s)",
        {
            "v": W,
            "s": np.full((8, 1, 1, 1), 0.01, np.float32),
            "lo": np.asarray(np.float32(-127)),
            "hi": np.asarray(np.float32(127)),
        },
    ),
    "a constant node": ("h = Constant<value_float=0.5>() k = Mul(v, h)", {"v": W}),
    "where": ("k = Where(t, v, u)", {"v": W, "u": 0 * W, "t": normal(3, *W.shape) > 0}),
}


def with_weight(form: str) -> onnx.ModelProto:
    text, constants = FORMS[form]
    return build(
        f"(float[N,3,6,6] x) => (float[N,4,6,6] y) {{ {text} c = Conv<pads=[1,1,1,1]>(x, k) r = Relu(c) "
        "y = Conv(r, w1) }",
        w1=weight(2, 4, 8, 1, 1),
        **constants,
    )


def run(model: onnx.ModelProto, **feed: np.ndarray) -> np.ndarray:
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[0]


@pytest.mark.parametrize("form", FORMS)
def test_a_weight_that_comes_from_constants_is_that_of_a_layer(form: str) -> None:
    model, x = with_weight(form), normal(4, 8, 3, 6, 6)
    prepared = prepare(fold_constants(load(model)))
    assert [la.name for la in find_layers(prepared)[0]] == ["c", "y"]
    np.testing.assert_allclose(run(to_proto(prepared), x=x), run(model, x=x), atol=1e-5)
    result = onnxq.quantize(model, normal(5, 24, 3, 6, 6))
    assert [la.name for la in result.report.layers] == ["c", "y"] and not result.report.left_in_float
    assert verify(model, result.model, [{"x": x}], latency=False).outputs[0].sqnr_db > 20


def test_what_a_caller_feeds_or_nobody_knows_is_not_folded() -> None:
    model = build("(float[N,3,6,6] x, float[8,1,1,1] g) => (float[N,8,4,4] y) { k = Mul(v, g) y = Conv(x, k) }", v=W)
    assert len(fold_constants(load(model)).graph.nodes) == 2
    drawn = build(
        "(float[N,3,6,6] x) => (float[N,8,4,4] y) { g = RandomNormal<shape=[8,1,1,1]>() k = Mul(v, g) y = Conv(x, k) }",
        v=W,
    )
    assert len(fold_constants(load(drawn)).graph.nodes) == 3


def test_nothing_is_folded_that_would_fill_the_file_or_the_memory() -> None:
    model = build(
        "(float[N,3] x) => (float[N,3] y, float[M,3] z) { e = Expand(v, s) z = Add(e, x) h = Gemm(x, w) b = Tile(u, t) "
        "y = MatMul(h, b) }",
        v=normal(1, 1, 3),
        s=np.array([5000, 3]),
        w=normal(2, 3, 3),
        u=normal(3, 1, 3),
        t=np.array([3, 1]),
    )
    del model.graph.output[1]
    folded = fold_constants(load(model))
    assert [n.op for n in folded.graph.nodes] == ["Expand", "Add", "Gemm", "MatMul"]  # only the small matrix


@pytest.mark.parametrize("bits", [8, 4, 2])
def test_parts_of_a_joint_matrix_are_layers_and_no_products(bits: int) -> None:
    model = build(
        "(float[N,6,16] x) => (float[N,6,8] y) { wq, wk = Split<axis=1>(w, sp) a = MatMul(x, wq) b = MatMul(x, wk) "
        "s = Mul(a, b) y = MatMul(s, wo) }",
        w=normal(1, 16, 32) / 4,
        sp=np.array([16, 16]),
        wo=normal(3, 16, 8) / 4,
    )
    result = onnxq.quantize(model, normal(5, 64, 6, 16), onnxq.Config(weights=bits, edge_bits="same"))
    assert [la.name for la in result.report.layers] == ["a", "b", "y"] and result.report.quantized_share == 1.0
    assert not [t for t in result.model.graph.initializer if t.data_type == 1 and len(t.dims) == 2]


@pytest.mark.parametrize(
    "moved", ["t = Transpose<perm=[1,0]>(d)", "u = Unsqueeze(d, nil) v = Squeeze(u, nil) t = Transpose(v)"]
)
def test_a_weight_that_is_quantised_already_is_not_quantised_again(moved: str) -> None:
    model = build(
        f"(float[N,16] x) => (float[N,4] y) {{ d = DequantizeLinear(wq, s, z) {moved} c = MatMul(x, t) r = Relu(c) "
        "y = MatMul(r, w1) }",
        wq=(20 * normal(1, 24, 16)).astype(np.int8),
        s=np.asarray(np.float32(0.01)),
        z=np.asarray(np.int8(0)),
        w1=normal(2, 24, 4) / 5,
        nil=np.array([0]),
    )
    assert not find_products(prepare(fold_constants(load(model))))
    result = onnxq.quantize(model, normal(3, 64, 16))
    assert [la.name for la in result.report.layers] == ["y"]
    assert {r.node: r.reason for r in result.report.left_in_float}["c"].startswith(
        "its input or weight is quantised already"
    )
    assert not [n for n in result.model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in ("t", "d")]


PRODUCTS = {
    "first, three axes": ("MatMul(w, x)", (16, 16), (16, 8), (16, 8)),
    "first, one matrix of three axes": ("MatMul(w, x)", (1, 16, 16), (16, 8), (16, 8)),
    "first, four axes": ("MatMul(w, x)", (12, 16), (3, 16, 8), (3, 12, 8)),
    "several": ("MatMul(x, w)", (4, 8, 16), (4, 6, 8), (4, 6, 16)),
    "one of three axes": ("MatMul(x, w)", (1, 8, 16), (4, 6, 8), (4, 6, 16)),
    "one of three axes, three": ("MatMul(x, w)", (1, 8, 16), (6, 8), (6, 16)),
}


@pytest.mark.parametrize("kind", PRODUCTS)
@pytest.mark.parametrize("weights", [8, 4])
def test_weights_that_stand_first_or_side_by_side_are_quantised(kind: str, weights: int) -> None:
    product, shape, before, behind = PRODUCTS[kind]
    sizes = [",".join(map(str, s)) for s in (before, behind)]
    model = build(
        f"(float[N,{sizes[0]}] x) => (float[N,{sizes[1]}] y) {{ a = {product} y = Relu(a) }}",
        w=normal(1, *shape) / 4,
    )
    x = normal(2, 5, *before)
    np.testing.assert_allclose(run(to_proto(prepare(load(model))), x=x), run(model, x=x), atol=1e-5)
    result = onnxq.quantize(model, normal(3, 48, *before), onnxq.Config(weights=weights, edge_bits="same"))
    assert [la.name for la in result.report.layers] == ["a"] and result.report.ok
    assert result.report.layers[0].stored_weight_bits == weights
    assert verify(model, result.model, [{"x": x}], latency=False).outputs[0].sqnr_db > (30 if weights == 8 else 15)


def test_products_of_other_shapes_stay_in_float_and_the_report_says_why() -> None:
    model = build(
        "(float[16,N] x, float[N,1,6,8] z) => (float[16,N] y, float[N,4,6,5] v, float[N,6,8] u) { y = MatMul(w, x) "
        "v = MatMul(z, several) s = Squeeze(z, one) u = MatMul(s, plain) }",
        w=normal(1, 16, 16),
        several=normal(2, 4, 8, 5),
        plain=normal(3, 8, 8),
        one=np.array([1]),
    )
    found = prepare(fold_constants(load(model)))
    layers, remarks = find_layers(found)
    told = {r.node: r.reason for r in remarks}
    assert [la.name for la in layers] == ["u"]
    assert "stands first" in told["y"] and "3 axes" in told["v"]
