"""Passes on pads, scalars and biases, and all passes in a row."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passes_oracle import build, constant, norm_constants, normal, ops, reasons, rewrite

from onnxq.passes.explicit_bias import explicit_bias
from onnxq.passes.explicit_padding import explicit_padding
from onnxq.passes.fold_pad import fold_pad
from onnxq.passes.plain_gemm import plain_gemm
from onnxq.passes.prepare import prepare


@settings(max_examples=30, deadline=None)
@given(
    size=st.integers(3, 9),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 3),
    mode=st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]),
)
def test_written_out_pads_compute_what_auto_pad_does(size: int, kernel: int, stride: int, mode: str) -> None:
    text = f"""(float[1,2,{size},7] x) => (float[1,3,h,w] y) {{
        y = Conv<auto_pad = "{mode}", strides = [{stride},2], kernel_shape = [{kernel},3]>(x, k)
    }}"""
    model = rewrite(build(text, k=normal(0, 3, 2, kernel, 3)), explicit_padding)
    assert "auto_pad" not in model.graph.nodes[0].attrs and len(model.graph.nodes[0].attrs["pads"]) == 4


def test_pads_of_an_open_size_are_written_out_where_the_stride_is_one_and_left_otherwise() -> None:
    text = """(float[1,2,H,W] x) => (float[1,3,h,w] y, float[1,3,i,j] z) {
        y = Conv<auto_pad = "SAME_LOWER">(x, k)
        z = Conv<auto_pad = "SAME_LOWER", strides = [2,2]>(x, k)
    }"""
    model = rewrite(build(text, k=normal(0, 3, 2, 2, 3)), explicit_padding)
    first, second = model.graph.nodes
    assert first.attrs["pads"] == [1, 1, 0, 1] and "auto_pad" not in first.attrs
    assert second.attrs["auto_pad"] == "SAME_LOWER" and "the size of 'x' is open" in reasons(model)


@pytest.mark.parametrize("own", ["", "<pads = [1,0,0,2]>", '<auto_pad = "VALID">', "<group = 2>"])
def test_zeros_written_by_a_pad_become_pads_of_every_conv_behind_it(own: str) -> None:
    text = f"""(float[1,2,5,5] x) => (float[1,4,h,w] y, float[1,4,i,j] z) {{
        p = Pad(x, amounts, , )
        y = Conv{own}(p, {"g" if "group" in own else "k"})
        z = Conv<strides = [2,2]>(p, k)
    }}"""
    proto = build(text, amounts=np.array([0, 0, 0, 1, 0, 0, 2, 1]), k=normal(0, 4, 2, 3, 3), g=normal(1, 4, 1, 3, 3))
    model = rewrite(proto, fold_pad)
    assert ops(model) == ["Conv", "Conv"]
    assert model.graph.nodes[1].attrs["pads"] == [0, 1, 2, 1]


def test_a_pad_with_axes_folds_too() -> None:
    text = "(float[1,2,5,5] x) => (float[1,4,h,w] y) { p = Pad(x, amounts, zero, axes) y = Conv(p, k) }"
    proto = build(
        text,
        opset=18,
        amounts=np.array([1, 2, 3, 4]),
        zero=np.array(0, np.float32),
        axes=np.array([-1, 2]),
        k=normal(0, 4, 2, 3, 3),
    )
    model = rewrite(proto, fold_pad)
    assert model.graph.nodes[0].attrs["pads"] == [2, 1, 4, 3]


@pytest.mark.parametrize(
    ("text", "amounts", "reason"),
    [
        ('p = Pad<mode = "edge">(x, amounts) y = Conv(p, k)', [0, 0, 1, 1, 0, 0, 1, 1], "its mode is edge"),
        ("p = Pad(x, amounts, one) y = Conv(p, k)", [0, 0, 1, 1, 0, 0, 1, 1], "not pad with zeros"),
        ("p = Pad(x, amounts) y = Conv(p, k)", [0, 0, -1, 1, 0, 0, 1, 1], "it crops"),
        ("p = Pad(x, amounts) y = Conv(p, k)", [1, 0, 0, 1, 0, 0, 1, 1], "batch or the channels"),
        ("p = Pad(x, amounts) y = Conv(p, k) z = Relu(p)", [0, 0, 1, 1, 0, 0, 1, 1], "Relu 'Relu_2' reads 'p' too"),
        ('p = Pad(x, amounts) y = Conv<auto_pad = "SAME_UPPER">(p, k)', [0, 0, 1, 1, 0, 0, 1, 1], "automatically"),
    ],
)
def test_a_pad_that_a_conv_cannot_express_stays_and_says_why(text: str, amounts: list[int], reason: str) -> None:
    constants = {"amounts": np.array(amounts), "k": normal(0, 4, 2, 3, 3)}
    if "one" in text:
        constants["one"] = np.array(1, np.float32)
    model = rewrite(build(f"(float[1,2,6,6] x) => (float[n,4,h,w] y) {{ {text} }}", **constants), fold_pad)
    assert ops(model)[:2] == ["Pad", "Conv"] and reason in reasons(model)


def test_a_pad_that_a_branch_or_an_output_sees_stays() -> None:
    text = """(float[1,2,5,5] x, bool c) => (float[1,4,h,w] y, float[1,2,a,b] z) {
        p = Pad(x, amounts)
        y = Conv(p, k)
        z = If (c) <then_branch = t () => (float[1,2,a,b] t1) { t1 = Relu(p) },
                    else_branch = e () => (float[1,2,a,b] e1) { e1 = Neg(p) }>
    }"""
    proto = build(text, amounts=np.array([0, 0, 1, 1, 0, 0, 1, 1]), k=normal(0, 4, 2, 3, 3))
    assert ops(rewrite(proto, fold_pad)) == ["Pad", "Conv", "If"]


def test_a_pad_before_pooling_is_nobodys_business() -> None:
    text = "(float[1,2,5,5] x) => (float[1,2,h,w] y) { p = Pad(x, a) y = MaxPool<kernel_shape = [3,3]>(p) }"
    model = rewrite(build(text, a=np.array([0, 0, 1, 1, 0, 0, 1, 1])), fold_pad)
    assert ops(model) == ["Pad", "MaxPool"] and model.remarks == ()


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (4,), (1, 4), (1,), ()])
def test_a_gemm_ends_up_without_scalars(transposed: int, bias: tuple[int, ...] | None) -> None:
    weights = {"w": normal(0, *((4, 3) if transposed else (3, 4)))}
    if bias is not None:
        weights["d"] = normal(1, *bias)
    arguments = "x, w" + ("" if bias is None else ", d")
    text = f"(float[N,3] x) => (float[N,4] y) {{ y = Gemm<alpha=0.5, beta=-2.0, transB={transposed}>({arguments}) }}"
    (node,) = rewrite(build(text, **weights), plain_gemm).graph.nodes
    assert node.attrs.get("alpha", 1.0) == 1.0 and node.attrs.get("transB", 0) == transposed
    if bias is not None:
        assert node.attrs.get("beta", 1.0) == 1.0 and node.inputs[2].shape == (4,)


def test_a_plain_gemm_is_left_bit_for_bit() -> None:
    weight = normal(0, 3, 4)
    model = rewrite(build("(float[N,3] x) => (float[N,4] y) { y = Gemm(x, w) }", w=weight), plain_gemm)
    np.testing.assert_array_equal(constant(model, "w"), weight)
    assert len(model.graph.nodes[0].inputs) == 2


@pytest.mark.parametrize(
    ("node", "reason"),
    [
        ("Gemm<transA = 1>(x, w)", "transposes its input"),
        ("Gemm<alpha = 2.0>(x, v)", "'v' is computed"),
        ("Gemm<beta = 2.0>(x, w, v)", "'v' is computed"),
        ("Gemm<beta = 2.0>(x, w, d)", "no value per channel"),
    ],
)
def test_a_gemm_whose_scalars_have_nowhere_to_go_keeps_them(node: str, reason: str) -> None:
    constants = {"w": normal(0, 4, 4)} if "w" in node else {}
    if "d)" in node:
        constants["d"] = normal(1, 4, 1)
    model = rewrite(build(f"(float[4,4] x, float[4,4] v) => (float[4,4] y) {{ y = {node} }}", **constants), plain_gemm)
    assert reason in reasons(model)


def test_scalars_go_into_a_copy_of_a_shared_weight() -> None:
    text = "(float[N,4] x) => (float[N,4] y, float[N,4] z) { [a] y = Gemm<alpha = 2.0>(x, w) z = MatMul(x, w) }"
    weight = normal(0, 4, 4)
    model = rewrite(build(text, w=weight), plain_gemm)
    np.testing.assert_array_equal(constant(model, "w"), weight)
    np.testing.assert_array_equal(constant(model, "w/a"), 2 * weight)


def test_every_layer_gets_a_bias_of_its_own() -> None:
    text = """(float[1,2,5,5] x) => (float[1,4,5,5] y, float[1,4,5,5] z, float[1,4,5,5] u) {
        [one] y = Conv(x, k)
        [two] z = Conv(x, l, d)
        [three] u = ConvTranspose<group = 2>(x, t, d)
    }"""
    proto = build(text, k=normal(0, 4, 2, 1, 1), l=normal(1, 4, 2, 1, 1), t=normal(2, 2, 2, 1, 1), d=normal(3, 4))
    model = rewrite(proto, explicit_bias)
    biases = [node.inputs[2] for node in model.graph.nodes]
    assert len({b.name for b in biases}) == 3 and all(b.shape == (4,) for b in biases)


def test_all_passes_in_a_row_leave_plain_layers() -> None:
    text = """(float[2,3,8,8] x) => (float[2,5] probabilities) {
        k = Constant<value = int64[8] {0, 0, 0, 0, 0, 0, 1, 1}>()
        p = Pad(x, k)
        [first] c = Conv<strides = [2,2]>(p, w1)
        ci = Identity(c)
        n = BatchNormalization(ci, as, ab, am, av)
        r = Relu(n)
        [second] d = Conv<auto_pad = "SAME_UPPER", group = 4>(r, w2, b2)
        e = BatchNormalization(d, bs, bb, bm, bv)
        f = Add(e, r)
        g = GlobalAveragePool(f)
        h = Flatten(g)
        i = Dropout(h)
        t = Transpose(w3)
        [head] j = Gemm<alpha = 0.5>(i, t, b3)
        unused = Neg(j)
        probabilities = Softmax(j)
    }"""
    proto = build(
        text,
        w1=normal(0, 4, 3, 3, 3),
        w2=normal(1, 4, 1, 3, 3),
        b2=normal(2, 4),
        w3=normal(3, 5, 4),
        b3=normal(4, 1, 5),
        **norm_constants(4, "a"),
        **norm_constants(4, "b", seed=9),
    )
    model = rewrite(proto, prepare)
    assert ops(model) == ["Conv", "Relu", "Conv", "Add", "GlobalAveragePool", "Flatten", "Gemm", "Softmax"]
    assert model.graph.nodes[0].attrs["pads"] == [0, 0, 1, 1]
    assert model.remarks == ()


def test_preparing_twice_changes_nothing_more() -> None:
    text = """(float[2,3,8,8] x) => (float[2,4,8,8] y) {
        c = Conv<auto_pad = "SAME_LOWER">(x, w)
        y = BatchNormalization(c, s, b, m, v)
    }"""
    proto = build(text, w=normal(0, 4, 3, 3, 3), **norm_constants(4))
    once, twice = rewrite(proto, prepare), rewrite(proto, prepare, prepare)
    assert ops(once) == ops(twice) == ["Conv"]
    np.testing.assert_array_equal(constant(once, "w"), constant(twice, "w"))


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.integers(1, 4),
    stride=st.integers(1, 3),
    dilation=st.integers(1, 2),
    extra=st.integers(0, 1),
    mode=st.sampled_from(["SAME_UPPER", "SAME_LOWER", "VALID"]),
)
def test_written_out_pads_cut_what_auto_pad_of_a_transposed_convolution_does(
    kernel: int, stride: int, dilation: int, extra: int, mode: str
) -> None:
    extra = min(extra, stride - 1)
    text = f"""(float[1,2,H,4] x) => (float[1,3,h,w] y) {{
        y = ConvTranspose<auto_pad = "{mode}", strides = [{stride},2], dilations = [{dilation},1],
            output_padding = [{extra},0]>(x, k)
    }}"""
    model = rewrite(build(text, k=normal(0, 2, 3, kernel, 2)), explicit_padding)
    (node,) = model.graph.nodes
    if mode != "VALID" and (kernel - 1) * dilation + 1 + extra < stride:
        assert node.attrs["auto_pad"] == mode and "the padding negative" in reasons(model)
    else:
        assert "auto_pad" not in node.attrs and len(node.attrs["pads"]) == 4


@settings(max_examples=40, deadline=None)
@given(
    kernel=st.integers(2, 4),
    stride=st.integers(1, 3),
    cut=st.integers(0, 3),
    extra=st.integers(0, 1),
    mode=st.sampled_from(["NOTSET", "SAME_UPPER", "SAME_LOWER"]),
)
def test_pads_stand_for_the_output_shape_of_a_transposed_convolution(
    kernel: int, stride: int, cut: int, extra: int, mode: str
) -> None:
    extra = min(extra, stride - 1)
    size = 4 * stride + kernel + extra - cut
    text = f"""(float[1,2,5,5] x) => (float[1,3,{size},w] y) {{
        y = ConvTranspose<auto_pad = "{mode}", strides = [{stride},{stride}], output_padding = [{extra},{extra}],
            output_shape = [{size},{size}]>(x, k)
    }}"""
    model = rewrite(build(text, k=normal(0, 2, 3, kernel, kernel)), explicit_padding)
    (node,) = model.graph.nodes
    assert "output_shape" not in node.attrs and sum(node.attrs["pads"]) == 2 * cut


def test_the_output_shape_of_one_transposed_convolution_is_known_to_the_next() -> None:
    text = """(float[N,2,5,5] x) => (float[N,h,v,w] y) {
        t = ConvTranspose<output_shape = [11,11], strides = [2,2]>(x, k)
        y = ConvTranspose<output_shape = [10,12]>(t, m)
    }"""
    model = rewrite(build(text, k=normal(0, 2, 3, 4, 4), m=normal(1, 3, 1, 3, 3)), explicit_padding)
    assert [sum(node.attrs["pads"]) for node in model.graph.nodes] == [2, 4]
    assert not any("output_shape" in node.attrs for node in model.graph.nodes)
