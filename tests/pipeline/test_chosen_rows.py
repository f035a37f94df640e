"""Lengths and rows that depend on values, and tensors without elements."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import build, normal

from onnxq.api import quantize
from onnxq.config import Config
from onnxq.ir.load import load
from onnxq.passes.prepare import prepare
from onnxq.verify import verify
from onnxq.verify.selection import chosen_tensors

HEAD = {"w0": normal(1, 16, 24) / 4, "b0": 0.1 * normal(2, 24), "w1": normal(3, 24, 4) / 5}

ROWS = {
    "Compress": "s = ReduceSum(a, ax) k = Greater(s, zero) f = Reshape(k, flat) c = Compress<axis=0>(a, f)",
    "NonZero": "s = ReduceSum<keepdims=0>(a, ax) k = Greater(s, zero) n = NonZero(k) t = Transpose<perm=[1,0]>(n) "
    "c = GatherND(a, t)",
    "TopK": "s = ReduceSum<keepdims=0>(a, ax) v, i = TopK<axis=0>(s, three) c = Gather<axis=0>(a, i)",
    "ArgMax": "s = ReduceSum<keepdims=0>(a, ax) i = ArgMax<axis=0>(s) c = Gather<axis=0>(a, i)",
    "Range": "s = ReduceSum<keepdims=0>(a, ax) k = Greater(s, zero) n0 = Cast<to=7>(k) n = ReduceSum<keepdims=0>(n0) "
    "q = Range(none, n, step) c = Gather<axis=0>(a, q)",
    "Slice": "s = ReduceMax<keepdims=0>(a) f = Floor(s) l = Cast<to=7>(f) u = Reshape(l, flat) v = Add(u, one) "
    "c = Slice(a, first, v, first)",
}
CONSTANTS = {
    "ax": np.array([1]),
    "zero": np.float32(0).reshape(()),
    "flat": np.array([-1]),
    "first": np.array([0]),
    "one": np.array([1]),
    "three": np.array([3]),
    "none": np.array(0),
    "step": np.array(1),
}


def by_rows(kind: str) -> onnx.ModelProto:
    """Rows of the first layer's output, chosen by its values, through two more layers, beside an ordinary output."""
    constants = {**HEAD, **CONSTANTS, "w2": normal(5, 4, 3) / 2}
    return build(
        f"(float[N,16] x) => (float[M,3] y, float[N,24] a) {{ a = Gemm(x, w0, b0) {ROWS[kind]} r = Relu(c) "
        "b = Gemm(r, w1) d = Relu(b) y = Gemm(d, w2) }",
        **{k: np.asarray(v) for k, v in constants.items()},
    )


@pytest.mark.parametrize("kind", ROWS)
@pytest.mark.parametrize("preset", ["light", "advanced"])
def test_layers_behind_chosen_rows_are_quantised_and_their_outputs_not_compared(kind: str, preset: str) -> None:
    model = by_rows(kind)
    assert "y" in prepare(load(model)).chosen and "a" not in prepare(load(model)).chosen
    result = quantize(model, normal(4, 64, 16), Config(weights=4, edge_bits="same", preset=preset))
    assert {la.name for la in result.report.layers} == {"a", "b", "y"} and result.report.ok
    assert any("output y is not compared" in n.reason for n in result.report.notes)
    assert result.report.simulated_sqnr_db["y"] is None
    report = verify(model, result.model, [{"x": normal(6, 32, 16)}], latency=False)
    assert report.ok and report.outputs[0].left_out and report.outputs[0].sqnr_db is None
    assert report.outputs[1].left_out is None and report.outputs[1].sqnr_db > 15
    assert report.to_dict()["outputs"]["y"]["left_out"] == report.outputs[0].left_out


def test_what_depends_on_no_value_that_quantisation_changes_is_compared() -> None:
    model = build(
        "(float[N,16] x, int64[K] ids) => (float[N,4] y, float[K,4] z, float[N,2] v) { a = Gemm(x, w0, b0) r = Relu(a) "
        "y = Gemm(r, w1) z = Gather<axis=0>(y, ids) s = Shape(a) v, i = TopK<axis=1>(y, two) k = Greater(a, zero) "
        "m = Where(k, a, zero) }",
        **HEAD,
        two=np.array([2]),
        zero=np.asarray(np.float32(0)),
    )
    assert chosen_tensors(model.graph) == set()


def test_a_mask_and_a_table_looked_up_by_the_caller_choose_nothing() -> None:
    model = build(
        "(int64[N,5] ids, float[N,5] keep) => (float[N,5,4] y, float[M] n) { e = Gather(t, ids) y = MatMul(e, w1) "
        "k = Cast<to=9>(keep) z = NonZero(k) f = Cast<to=1>(z) n = Reshape(f, flat) }",
        t=normal(1, 30, 24),
        w1=HEAD["w1"],
        flat=np.array([-1]),
    )
    assert chosen_tensors(model.graph) == set()


def empty_path(cut: str, opset: int = 17) -> onnx.ModelProto:
    """A layer f that reads no element, beside two ordinary ones."""
    return build(
        f"(float[N,6,8] x) => (float[N,6,4] y) {{ a = MatMul(x, w0) {cut} f = MatMul(e, w2) c = Concat<axis=1>(f, a) "
        "r = Relu(c) y = MatMul(r, w1) }",
        opset,
        w0=normal(1, 8, 8) / 3,
        w2=normal(4, 8, 8) / 3,
        w1=normal(2, 8, 4) / 3,
        at=np.array([6]),
        ax=np.array([1]),
        parts=np.array([0, 6]),
        none=np.array([1, 0, 1]),
    )


@pytest.mark.parametrize("cut", ["e = Slice(a, at, at, ax)", "e, g = Split<axis=1>(a, parts)", "e = Tile(a, none)"])
@pytest.mark.parametrize(
    "config",
    [
        Config(),
        Config(weights=4, edge_bits="same"),
        Config(weights=4, activations=32),
        Config(activations=16),
        Config(target="qnn"),
        Config(mode="parallel"),
    ],
    ids=["w8a8", "w4a8", "w4", "a16", "qnn", "parallel"],
)
def test_a_layer_that_reads_no_element_stays_in_float_and_the_report_says_so(cut: str, config: Config) -> None:
    model = empty_path(cut)
    result = quantize(model, normal(3, 32, 6, 8), config)
    assert {la.name for la in result.report.layers} == {"a", "y"}
    assert [r.node for r in result.report.left_in_float if "is empty in each of 32" in r.reason] == ["f"]
    assert verify(model, result.model, [{"x": normal(5, 8, 6, 8)}], latency=False).ok


def test_a_state_of_no_length_leaves_the_layers_that_read_it_in_float() -> None:
    model = build(
        "(float[N,3,8] x, float[N,P,8] past) => (float[N,T,8] y) { a = MatMul(x, w0) p = MatMul(past, w1) "
        "y = Concat<axis=1>(p, a) }",
        w0=normal(1, 8, 8) / 3,
        w1=normal(2, 8, 8) / 3,
    )
    result = quantize(model, {"x": normal(3, 32, 3, 8), "past": np.zeros((32, 0, 8), np.float32)})
    assert [la.name for la in result.report.layers] == ["a"]


def test_a_choice_of_bits_passes_over_layers_that_read_no_element() -> None:
    config = Config(candidates=("w4a8", "w8a8"), budget=("loss=1",), edge_bits="same")
    result = quantize(empty_path("e = Slice(a, at, at, ax)"), normal(3, 64, 6, 8), config)
    assert {la.name for la in result.report.layers} == {"a", "y"} and result.report.ok


def test_a_detector_of_two_stages_whose_boxes_depend_on_scores() -> None:
    model = build(
        "(float[1,3,16,16] x) => (float[R,5] cls) { c = Conv<pads=[1,1,1,1],strides=[2,2]>(x,w0,b0) r = Relu(c) "
        "h = Conv(r,wr) f = Reshape(h,sh) t = Transpose<perm=[0,2,1]>(f) bx, sc = Split<axis=2>(t,sp) sb = Sigmoid(bx) "
        "lo, wh = Split<axis=2>(sb,s2) l8 = Mul(lo,k12) w8 = Mul(wh,k4) hi0 = Add(l8,w8) hi = Add(hi0,one) "
        "bb = Concat<axis=2>(l8,hi) ss = Sigmoid(sc) st = Transpose<perm=[0,2,1]>(ss) "
        "sel = NonMaxSuppression(bb,st,most,iou,least) bi = Gather<axis=1>(sel,ix) rois = GatherND(bb,bi) "
        "b1 = Gather<axis=1>(sel,nil) p = RoiAlign<output_height=3,output_width=3>(r,rois,b1) q = Conv(p,wq) "
        "u = Relu(q) v = Flatten(u) cls = Gemm(v,wc,bc) }",
        w0=normal(1, 16, 3, 3, 3) * np.float32(0.4),
        b0=0.1 * normal(2, 16),
        wr=normal(3, 5, 16, 1, 1) / 2,
        sh=np.array([0, 5, -1]),
        sp=np.array([4, 1]),
        s2=np.array([2, 2]),
        k12=np.asarray(np.float32(12)),
        k4=np.asarray(np.float32(4)),
        one=np.asarray(np.float32(1)),
        most=np.array([10]),
        iou=np.float32([0.6]),
        least=np.float32([0.62]),  # some samples have no box at all
        ix=np.array([0, 2]),
        nil=np.array(0),
        wq=normal(6, 16, 16, 3, 3) / 12,
        wc=normal(7, 16, 5) / 4,
        bc=0.1 * normal(8, 5),
    )
    result = quantize(model, normal(3, 24, 3, 16, 16), Config(weights=8, edge_bits="same"))
    assert {"q", "cls"} <= {la.name for la in result.report.layers} and result.report.ok
