from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from passes_oracle import build, constant, norm_constants, normal, ops, reasons, rewrite

from onnxq.ir.load import load
from onnxq.passes.fold_batchnorm import fold_batchnorm

NORM = "BatchNormalization<epsilon = 0.001>"


def test_a_batchnorm_behind_a_conv_becomes_its_weight_and_a_bias_made_for_it() -> None:
    text = f"""(float[2,3,6,6] x) => (float[2,4,6,6] y) {{
        [conv] c = Conv<pads = [1,1,1,1]>(x, w)
        [norm] y = {NORM}(c, s, b, m, v)
    }}"""
    norm = norm_constants(4)
    model = rewrite(build(text, w=normal(0, 4, 3, 3, 3), **norm), fold_batchnorm)
    assert ops(model) == ["Conv"] and model.remarks == ()
    assert [t.name for t in model.graph.nodes[0].inputs] == ["x", "w", "conv/bias"]


@settings(max_examples=25, deadline=None)
@given(
    op=st.sampled_from(["Conv", "ConvTranspose"]),
    groups=st.integers(1, 3),
    inner=st.integers(1, 3),
    outer=st.integers(1, 3),
    axes=st.integers(1, 3),
    bias=st.booleans(),
    seed=st.integers(0, 99),
)
def test_every_grouped_convolution_takes_in_a_batchnorm(
    op: str, groups: int, inner: int, outer: int, axes: int, bias: bool, seed: int
) -> None:
    shape = (groups * outer, inner) if op == "Conv" else (groups * inner, outer)
    size, found = ",".join(["5"] * axes), ",".join("hwd"[:axes])
    weights = {"w": normal(seed, *shape, *[2] * axes), **norm_constants(groups * outer, seed=seed)}
    if bias:
        weights["d"] = normal(seed + 1, groups * outer)
    text = f"""(float[2,{groups * inner},{size}] x) => (float[2,{groups * outer},{found}] y) {{
        c = {op}<group = {groups}>(x, w{", d" if bias else ""})
        y = {NORM}(c, s, b, m, v)
    }}"""
    model = rewrite(build(text, **weights), fold_batchnorm)
    assert ops(model) == [op]


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (4,), (1, 4), (1,), ()])
def test_a_gemm_takes_in_a_batchnorm_with_its_scalars(transposed: int, bias: tuple[int, ...] | None) -> None:
    weights = {"w": normal(0, *((4, 3) if transposed else (3, 4))), **norm_constants(4)}
    if bias is not None:
        weights["d"] = normal(1, *bias)
    text = f"""(float[N,3] x) => (float[N,4] y) {{
        g = Gemm<alpha = 0.5, beta = 2.0, transB = {transposed}>(x, w{"" if bias is None else ", d"})
        y = {NORM}(g, s, b, m, v)
    }}"""
    model = rewrite(build(text, **weights), fold_batchnorm)
    assert ops(model) == ["Gemm"]


def test_a_matmul_with_a_bias_keeps_its_add() -> None:
    text = f"""(float[N,3] x) => (float[N,4] y) {{
        [fc] g = MatMul(x, w)
        a = Add(d, g)
        y = {NORM}(a, s, b, m, v)
    }}"""
    model = rewrite(build(text, w=normal(0, 3, 4), d=normal(1, 4), **norm_constants(4)), fold_batchnorm)
    assert ops(model) == ["MatMul", "Add"] and model.graph.nodes[0].name == "fc"


def test_a_matmul_without_a_bias_becomes_a_gemm_of_the_same_name() -> None:
    text = f"(float[N,3] x) => (float[N,4] y) {{ [fc] g = MatMul(x, w) y = {NORM}(g, s, b, m, v) }}"
    model = rewrite(build(text, w=normal(0, 3, 4), **norm_constants(4)), fold_batchnorm)
    assert [(n.op, n.name) for n in model.graph.nodes] == [("Gemm", "fc")]


def test_a_matmul_of_three_axes_is_left_because_its_channels_lie_elsewhere() -> None:
    text = f"(float[N,4,3] x) => (float[N,4,5] y) {{ g = MatMul(x, w) y = {NORM}(g, s, b, m, v) }}"
    model = rewrite(build(text, w=normal(0, 3, 5), **norm_constants(4)), fold_batchnorm)
    assert ops(model) == ["MatMul", "BatchNormalization"] and "two axes" in reasons(model)


def test_two_batchnorms_fold_one_after_the_other() -> None:
    text = f"""(float[1,3,4,4] x) => (float[1,4,4,4] y) {{
        c = Conv(x, w)
        n = {NORM}(c, s, b, m, v)
        y = {NORM}(n, qs, qb, qm, qv)
    }}"""
    second = norm_constants(4, "q", seed=8)
    model = rewrite(build(text, w=normal(0, 4, 3, 1, 1), **norm_constants(4), **second), fold_batchnorm)
    assert ops(model) == ["Conv"]


def test_a_shared_weight_is_copied_for_the_layer_and_left_to_the_other() -> None:
    text = f"""(float[1,3,4,4] x) => (float[1,3,4,4] y, float[1,3,4,4] z) {{
        [one] c = Conv(x, w, d)
        y = {NORM}(c, s, b, m, v)
        [two] z = Conv(x, w, d)
    }}"""
    weight, bias = normal(0, 3, 3, 1, 1), normal(1, 3)
    model = rewrite(build(text, w=weight, d=bias, **norm_constants(3)), fold_batchnorm)
    one, two = model.graph.nodes
    assert [t.name for t in one.inputs] == ["x", "w/one", "d/one"]
    assert [t.name for t in two.inputs] == ["x", "w", "d"]
    np.testing.assert_array_equal(constant(model, "w"), weight)


def test_a_new_constant_never_takes_a_name_that_is_in_use() -> None:
    text = f"""(float[1,3,4,4] x) => (float[1,3,4,4] y, float[1,3,4,4] z) {{
        [conv] c = Conv(x, w)
        y = {NORM}(c, s, b, m, v)
        z = Add(y, "conv/bias")
    }}""".replace('"conv/bias"', "taken")
    proto = build(text, w=normal(0, 3, 3, 1, 1), taken=normal(1, 3, 1, 1), **norm_constants(3))
    for tensor in proto.graph.initializer:
        tensor.name = tensor.name.replace("taken", "conv/bias")
    proto.graph.node[2].input[1] = "conv/bias"
    model = rewrite(proto, fold_batchnorm)
    assert [t.name for t in model.graph.nodes[0].inputs] == ["x", "w", "conv/bias_2"]


def test_a_layer_whose_weight_the_caller_may_override_is_left() -> None:
    text = f"""(float[1,3,4,4] x, float[3,3,1,1] w) => (float[1,3,4,4] y) {{
        c = Conv(x, w)
        y = {NORM}(c, s, b, m, v)
    }}"""
    proto = build(text, w=normal(0, 3, 3, 1, 1), **norm_constants(3))
    model = rewrite(proto, fold_batchnorm, feeds={"w": normal(5, 3, 3, 1, 1)})
    assert ops(model) == ["Conv", "BatchNormalization"] and "'w' is also a graph input" in reasons(model)


def test_a_weight_from_an_old_file_where_every_constant_is_listed_as_input_is_folded() -> None:
    # Before IR version 4 every initializer had to be listed and none could be overridden.
    text = f"""(float[1,3,4,4] x, float[3,3,1,1] w, float[3] s, float[3] b, float[3] m, float[3] v)
        => (float[1,3,4,4] y) {{ c = Conv(x, w) y = {NORM}(c, s, b, m, v) }}"""
    proto = build(text, ir=3, w=normal(0, 3, 3, 1, 1), **norm_constants(3))
    assert ops(rewrite(proto, fold_batchnorm)) == ["Conv"]


def test_a_layer_whose_output_leaves_the_graph_is_left() -> None:
    text = f"""(float[1,3,4,4] x) => (float[1,3,4,4] y, float[1,3,4,4] c) {{
        c = Conv(x, w)
        y = {NORM}(c, s, b, m, v)
    }}"""
    model = rewrite(build(text, w=normal(0, 3, 3, 1, 1), **norm_constants(3)), fold_batchnorm)
    assert ops(model) == ["Conv", "BatchNormalization"] and "'c' is also read elsewhere" in reasons(model)


@pytest.mark.parametrize("taken", [False, True])
def test_a_layer_whose_output_a_branch_reads_is_left(taken: bool) -> None:
    text = f"""(float[1,3,4,4] x, bool p) => (float[1,3,4,4] y, float[1,3,4,4] z) {{
        c = Conv(x, w)
        y = {NORM}(c, s, b, m, v)
        z = If (p) <then_branch = t () => (float[1,3,4,4] t1) {{ t1 = Relu(c) }},
                    else_branch = e () => (float[1,3,4,4] e1) {{ e1 = Neg(c) }}>
    }}"""
    proto = build(text, w=normal(0, 3, 3, 1, 1), **norm_constants(3))
    model = rewrite(proto, fold_batchnorm, feeds={"p": np.array(taken)})
    assert ops(model) == ["Conv", "BatchNormalization", "If"]


@pytest.mark.parametrize("taken", [False, True])
def test_a_weight_that_a_branch_reads_too_is_copied(taken: bool) -> None:
    text = f"""(float[1,3,4,4] x, bool p) => (float[1,3,4,4] y, float[1,3,4,4] z) {{
        [conv] c = Conv(x, w)
        y = {NORM}(c, s, b, m, v)
        z = If (p) <then_branch = t () => (float[1,3,4,4] t1) {{ t1 = Conv(x, w) }},
                    else_branch = e () => (float[1,3,4,4] e1) {{ e1 = Neg(y) }}>
    }}"""
    proto = build(text, w=normal(0, 3, 3, 1, 1), **norm_constants(3))
    model = rewrite(proto, fold_batchnorm, feeds={"p": np.array(taken)})
    assert ops(model) == ["Conv", "If"] and model.graph.nodes[0].inputs[1].name == "w/conv"


@pytest.mark.parametrize(
    ("norm", "constants", "reason"),
    [
        ("BatchNormalization<training_mode = 1>", {}, "training mode"),
        (NORM, {"v": np.full(3, -1, np.float32)}, "negative variance"),
        (NORM, {"s": np.array([1, np.nan, 1], np.float32)}, "not finite"),
    ],
)
def test_a_batchnorm_that_has_no_fixed_finite_map_is_left(
    norm: str, constants: dict[str, np.ndarray], reason: str
) -> None:
    outputs = "y, rm, rv" if "training" in norm else "y"
    text = f"(float[1,3,4,4] x) => (float[1,3,4,4] y) {{ c = Conv(x, w) {outputs} = {norm}(c, s, b, m, v) }}"
    proto = build(text, **{"w": normal(0, 3, 3, 1, 1), **norm_constants(3), **constants})
    model = fold_batchnorm(load(proto))  # not run: what is computed is not finite, or follows the batch
    assert ops(model) == ["Conv", "BatchNormalization"] and reason in reasons(model)


def test_a_batchnorm_of_another_width_than_its_neighbours_is_left() -> None:
    text = f"""(float[1,4,4,4] x) => (float[1,4,4,4] y) {{
        c = Conv(x, w)
        n = {NORM}(c, s, b, m, v)
        y = Conv(n, w)
    }}"""
    model = fold_batchnorm(load(build(text, w=normal(0, 4, 4, 1, 1), **norm_constants(3))))  # nothing runs it
    assert ops(model) == ["Conv", "BatchNormalization", "Conv"]
    assert "it has 3 channels and Conv 'Conv_0' has 4 and it has 3 channels and Conv 'Conv_2' reads 4" in reasons(model)


def test_a_batchnorm_with_computed_constants_is_left_and_says_which() -> None:
    text = f"(float[1,3,4,4] x, float[3] s) => (float[1,3,4,4] y) {{ c = Conv(x, w) y = {NORM}(c, s, b, m, v) }}"
    norm = norm_constants(3)
    del norm["s"]
    model = rewrite(build(text, w=normal(0, 3, 3, 1, 1), **norm), fold_batchnorm)
    assert "'s' is computed, not a constant" in reasons(model)


@pytest.mark.parametrize("groups", [1, 2])
def test_a_batchnorm_before_an_unpadded_conv_folds_into_it(groups: int) -> None:
    text = f"""(float[1,4,5,5] x) => (float[1,6,3,3] y) {{
        n = {NORM}(x, s, b, m, v)
        [conv] y = Conv<group = {groups}>(n, w, d)
    }}"""
    proto = build(text, w=normal(0, 6, 4 // groups, 3, 3), d=normal(1, 6), **norm_constants(4))
    model = rewrite(proto, fold_batchnorm)
    assert ops(model) == ["Conv"] and model.remarks == ()


@pytest.mark.parametrize("padding", ["pads = [1,1,1,1]", 'auto_pad = "SAME_UPPER"'])
def test_a_batchnorm_before_a_padded_conv_is_left_unless_it_only_scales(padding: str) -> None:
    text = f"""(float[1,4,5,5] x) => (float[1,6,5,5] y) {{
        n = {NORM}(x, s, b, m, v)
        y = Conv<{padding}>(n, w)
    }}"""
    norm = norm_constants(4)
    kept = rewrite(build(text, w=normal(0, 6, 4, 3, 3), **norm), fold_batchnorm)
    assert ops(kept) == ["BatchNormalization", "Conv"] and "pads with zeros" in reasons(kept)
    scaling = norm | {"b": np.zeros(4, np.float32), "m": np.zeros(4, np.float32)}
    assert ops(rewrite(build(text, w=normal(0, 6, 4, 3, 3), **scaling), fold_batchnorm)) == ["Conv"]


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        ("Gemm(n, w, d)", ["Gemm"]),
        ("Gemm<alpha = 0.3, beta = 0.2>(n, w, d)", ["Gemm"]),
        ("MatMul(n, w)", ["Gemm"]),
    ],
)
def test_a_batchnorm_before_a_matrix_product_folds_into_it(layer: str, found: list[str]) -> None:
    text = f"(float[N,4] x) => (float[N,3] y) {{ n = {NORM}(x, s, b, m, v) y = {layer} }}"
    weights = {"w": normal(0, 4, 3), **norm_constants(4)} | ({"d": normal(1, 3)} if "d)" in layer else {})
    assert ops(rewrite(build(text, **weights), fold_batchnorm)) == found


def test_a_batchnorm_before_a_matmul_with_a_bias_uses_its_add() -> None:
    text = f"(float[N,4] x) => (float[N,3] y) {{ n = {NORM}(x, s, b, m, v) g = MatMul(n, w) y = Add(g, d) }}"
    proto = build(text, w=normal(0, 4, 3), d=normal(1, 3), **norm_constants(4))
    assert ops(rewrite(proto, fold_batchnorm)) == ["MatMul", "Add"]


def test_a_batchnorm_before_two_layers_with_one_weight_folds_into_both() -> None:
    text = f"""(float[1,3,4,4] x) => (float[1,3,4,4] y, float[1,3,2,2] z) {{
        n = {NORM}(x, s, b, m, v)
        y = Conv(n, w)
        z = Conv<strides = [2,2]>(n, w)
    }}"""
    assert ops(rewrite(build(text, w=normal(0, 3, 3, 1, 1), **norm_constants(3)), fold_batchnorm)) == ["Conv", "Conv"]


def test_a_batchnorm_whose_output_something_else_reads_stays_before_its_layer() -> None:
    text = f"""(float[1,3,4,4] x) => (float[1,3,4,4] y, float[1,3,4,4] z) {{
        n = {NORM}(x, s, b, m, v)
        y = Conv(n, w)
        z = Relu(n)
    }}"""
    model = rewrite(build(text, w=normal(0, 3, 3, 1, 1), **norm_constants(3)), fold_batchnorm)
    assert ops(model) == ["BatchNormalization", "Conv", "Relu"]
    (remark,) = model.remarks
    assert remark.reason == (
        "BatchNormalization is not folded because no node makes its input 'x'"
        " and Relu 'Relu_2' is no layer with weights"
    )


def test_a_scattered_batchnorm_folds_like_a_whole_one() -> None:
    text = """(float[2,3,4,4] x) => (float[2,4,4,4] y) {
        c = Conv(x, w)
        a = Sub(c, mean)
        d = Div(a, deviation)
        e = Mul(gamma, d)
        y = Add(e, beta)
    }"""
    proto = build(
        text,
        w=normal(0, 4, 3, 1, 1),
        mean=normal(1, 1, 4, 1, 1),
        deviation=np.abs(normal(2, 4, 1, 1)) + 1,
        gamma=normal(3, 4, 1, 1),
        beta=normal(4, 1, 4, 1, 1),
    )
    model = rewrite(proto, fold_batchnorm)
    assert ops(model) == ["Conv"]


def test_arithmetic_behind_a_folded_batchnorm_is_folded_too() -> None:
    text = f"""(float[2,3,4,4] x) => (float[2,4,4,4] y) {{
        c = Conv(x, w)
        n = {NORM}(c, s, b, m, v)
        d = Mul(n, two)
        y = Sub(shift, d)
    }}"""
    constants = {"two": np.array(2, np.float32), "shift": normal(3, 4, 1, 1)}
    proto = build(text, w=normal(0, 4, 3, 1, 1), **constants, **norm_constants(4))
    assert ops(rewrite(proto, fold_batchnorm)) == ["Conv"]


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 4, 1), (1, 1, 1, 4), (2, 4, 1, 1)])
def test_arithmetic_that_is_not_channel_by_channel_stays(shape: tuple[int, ...]) -> None:
    text = "(float[2,4,4,4] x) => (float[2,4,4,4] y) { c = Conv(x, w) y = Mul(c, k) }"
    model = rewrite(build(text, w=normal(0, 4, 4, 1, 1), k=normal(1, *shape)), fold_batchnorm)
    assert ops(model) == ["Conv", "Mul"]


def test_arithmetic_that_raises_the_rank_stays() -> None:
    text = "(float[2,4,4,4] x) => (float[1,2,4,4,4] y) { c = Conv(x, w) y = Mul(c, k) }"
    model = rewrite(build(text, w=normal(0, 4, 4, 1, 1), k=normal(1, 1, 1, 1, 1, 1)), fold_batchnorm)
    assert ops(model) == ["Conv", "Mul"]


def test_an_omitted_optional_bias_is_filled_in_place() -> None:
    text = f"(float[N,3] x) => (float[N,4] y) {{ [fc] g = Gemm(x, w, d) y = {NORM}(g, s, b, m, v) }}"
    proto = build(text, w=normal(0, 3, 4), d=normal(1, 4), **norm_constants(4))
    proto.graph.node[0].input[2] = ""
    model = rewrite(proto, fold_batchnorm)
    assert [t.name for t in model.graph.nodes[0].inputs] == ["x", "w", "fc/bias"]


def test_folding_twice_changes_nothing_more() -> None:
    text = f"(float[1,3,4,4] x) => (float[1,4,4,4] y) {{ c = Conv(x, w) y = {NORM}(c, s, b, m, v) }}"
    proto = build(text, w=normal(0, 4, 3, 1, 1), **norm_constants(4))
    once, twice = rewrite(proto, fold_batchnorm), rewrite(proto, fold_batchnorm, fold_batchnorm)
    np.testing.assert_array_equal(constant(once, "w"), constant(twice, "w"))
