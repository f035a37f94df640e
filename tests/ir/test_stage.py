from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import pytest
from small_models import SAME, build, conv_constants, images, normal, relu_chain, weight

from onnxq.ir.layer import find_layers
from onnxq.ir.load import load
from onnxq.ir.model import Model
from onnxq.ir.save import to_proto
from onnxq.ir.stage import QUANTIZED_INPUT, Stage, split_stages, stage_model
from onnxq.passes.prepare import prepare
from onnxq.quant.affine import fake_quantize
from onnxq.quant.spec import QuantParams, activation_spec
from onnxq.runtime.session import Session

Arrays = dict[str, np.ndarray]


def stages_of(proto: onnx.ModelProto) -> tuple[Model, tuple[Stage, ...]]:
    model = prepare(load(proto))
    return model, split_stages(model, find_layers(model)[0])


def run_in_stages(model: Model, stages: tuple[Stage, ...], feeds: Arrays) -> Arrays:
    """The outputs, with nothing kept between two stages but what the frontier names."""
    kept = dict(feeds)
    for stage in stages:
        if stage.nodes:
            feed = {name: kept[name] for name in stage.reads}
            feed |= {QUANTIZED_INPUT.format(la.input, la.name): kept[la.input] for la in stage.layers}
            types = {name: value.dtype for name, value in feed.items()}
            proto = stage_model(model, stage, stage.makes, types, {}, {})
            kept |= Session(proto, "a stage").run(feed, stage.makes) if stage.makes else {}
        kept = {name: kept[name] for name in stage.frontier}
    return kept


CHAIN = f"c0 = Conv{SAME}(x, w0, b0) r0 = Relu(c0) c1 = Conv{SAME}(r0, w1, b1)"
MODELS = {
    "chain": f"(float[N,3,8,8] x) => (float[N,8,8,8] y) {{ {CHAIN} r1 = Relu(c1) y = Conv{SAME}(r1, w2, b2) }}",
    "residual": f"""(float[N,3,8,8] x) => (float[N,8,8,8] y) {{ {CHAIN} s = Add(c1, r0) r1 = Relu(s)
        c2 = Conv{SAME}(r1, w2, b2) t = Add(c2, s) y = Add(t, c0) }}""",
    "branches of different depth": f"""(float[N,3,8,8] x) => (float[N,24,8,8] y) {{ {CHAIN}
        c2 = Conv{SAME}(c1, w2, b2) d = Conv{SAME}(r0, w2, b0) m = MaxPool<kernel_shape=[3,3],pads=[1,1,1,1]>(r0)
        y = Concat<axis=1>(c2, d, m) }}""",
    "shared input": f"""(float[N,3,8,8] x) => (float[N,8,8,8] y) {{ {CHAIN} d = Conv{SAME}(r0, w2, b2)
        e = Mul(c1, d) y = Conv{SAME}(e, w1, b1) }}""",
    "shared weight": f"(float[N,3,8,8] x) => (float[N,8,8,8] y) {{ {CHAIN} y = Conv{SAME}(c1, w1, b1) }}",
    "outputs on the way": f"""(float[N,3,8,8] x) => (float[N,8,8,8] y, float[N,8,8,8] r0, float[N,8,8,8] c0,
        float[N,3,8,8] same) {{ {CHAIN} y = Conv{SAME}(c1, w2, b2) same = Identity(x) }}""",
    "nothing behind the last layer": f"(float[N,3,8,8] x) => (float[N,8,8,8] c1) {{ {CHAIN} }}",
    "work before the first layer": f"""(float[N,3,8,8] x) => (float[N,8,8,8] y) {{ a = Sigmoid(x) b = Mul(a, x)
        y = Conv{SAME}(b, w0, b0) }}""",
    "a late reader of the input": f"""(float[N,3,8,8] x) => (float[N,11,8,8] y) {{ {CHAIN}
        y = Concat<axis=1>(c1, x) }}""",
    "a layer that is left in float": f"""(float[N,3,8,8] x) => (float[N,8,8,8] y) {{ {CHAIN} k = ReduceMean(c1)
        m = Reshape(k, one) n = Add(m, b1) d = Conv{SAME}(c1, w2, n) y = Conv{SAME}(d, w1, b1) }}""",
    "several inputs and outputs": f"""(float[N,3,8,8] x, float[N,8,8,8] z, int64 k) => (float[N,8,8,8] y,
        float[N,8,8,8] q, int64 p) {{ {CHAIN} s = Add(c1, z) y = Conv{SAME}(s, w2, b2) q = Conv{SAME}(z, w1, b1)
        p = Add(k, k) }}""",
    "outer values in both branches": f"""(float[N,3,8,8] x, bool c) => (float[N,8,8,8] y) {{ {CHAIN}
        z = If(c)<then_branch = t () => (float[N,8,8,8] t1) {{ t0 = Mul(r0, c1) t1 = Add(t0, extra) }},
                  else_branch = e () => (float[N,8,8,8] e1) {{ e1 = Conv{SAME}(r0, w2, b2) }}>
        y = Conv{SAME}(z, w1, b1) }}""",
    "a loop": f"""(float[N,3,8,8] x) => (float[N,8,8,8] y) {{ {CHAIN}
        z = Loop(three, yes, c1)<body = b (int64 i, bool go, float[N,8,8,8] v) => (bool on, float[N,8,8,8] u) {{
            on = Identity(go) h = Add(v, r0) u = Mul(h, extra) }}>
        y = Conv{SAME}(z, w2, b2) }}""",
}
CONSTANTS = {"one": np.array([1]), "extra": np.float32(0.5), "three": np.array(3), "yes": np.array(True)}


def feeds_of(proto: onnx.ModelProto) -> Arrays:
    known = {"x": images(4), "z": normal(9, 4, 8, 8, 8), "k": np.array(7), "c": np.array(True)}
    return {value.name: known[value.name] for value in proto.graph.input}


@pytest.mark.parametrize("condition", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_running_the_stages_one_after_the_other_is_running_the_model(name: str, condition: bool) -> None:
    proto = build(MODELS[name], **conv_constants(), **CONSTANTS)
    feeds = feeds_of(proto)
    if "c" in feeds:
        feeds["c"] = np.array(condition)
    model, stages = stages_of(proto)
    found = run_in_stages(model, stages, feeds)
    wanted = Session(to_proto(model), "the model").run(feeds)
    assert set(found) == set(wanted)
    for output, value in wanted.items():
        # Fusions differ between a part and the whole, and with them the order of float32 sums.
        np.testing.assert_allclose(found[output], value, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_every_node_and_every_layer_is_in_one_stage_behind_what_it_reads(name: str) -> None:
    model, stages = stages_of(build(MODELS[name], **conv_constants(), **CONSTANTS))
    placed = [node for stage in stages for node in stage.nodes]
    assert sorted(placed) == sorted(node.name for node in model.graph.nodes)
    layers = [layer.name for stage in stages for layer in stage.layers]
    assert sorted(layers) == sorted(layer.name for layer in find_layers(model)[0])
    assert not stages[0].layers
    for before, stage in pairwise(stages):
        assert stage.layers
        assert set(stage.reads) <= set(before.frontier)
        assert {layer.input for layer in stage.layers} <= set(before.frontier)


def test_the_frontier_of_a_chain_is_one_tensor() -> None:
    _, stages = stages_of(relu_chain())
    assert [stage.frontier for stage in stages] == [("x",), ("a",), ("d",), ("y",)]


def test_a_long_chain_is_cut_without_recursion() -> None:
    nodes = " ".join(f"h{i} = Relu(h{i - 1})" for i in range(1, 1500))
    model = build(f"(float[N,4] h0) => (float[N,2] y) {{ {nodes} y = Gemm(h1499, w) }}", w=weight(0, 4, 2))
    _, stages = stages_of(model)
    assert [len(stage.nodes) for stage in stages] == [1499, 1]


def test_one_of_two_layers_that_share_a_weight_gets_its_own_values() -> None:
    model, stages = stages_of(build(MODELS["shared weight"], **conv_constants()))
    second, third = stages[2], stages[3]
    assert second.layers[0].weight == third.layers[0].weight
    weight_name = second.layers[0].weight
    x = normal(3, 2, 8, 8, 8)

    def run(stage: Stage, values: np.ndarray | None) -> np.ndarray:
        layer = stage.layers[0]
        read = QUANTIZED_INPUT.format(layer.input, layer.name)
        constants = {} if values is None else {(weight_name, second.layers[0].name): values}
        proto = stage_model(model, stage, [layer.output], {read: x.dtype}, constants, {})
        return Session(proto, "a stage").run({read: x})[layer.output]

    zeros = np.zeros((8, 8, 3, 3), np.float32)
    assert np.ptp(run(second, zeros), axis=(0, 2, 3)).max() == 0  # nothing but the bias is left
    np.testing.assert_array_equal(run(third, zeros), run(third, None))


def test_a_tensor_that_is_quantised_where_it_is_made_is_read_quantised_by_all() -> None:
    text = f"""(float[N,3,8,8] x) => (float[N,8,8,8] y, float[N,8,8,8] z) {{
        c0 = Conv{SAME}(x, w0, b0) r0 = Relu(c0) z = Sigmoid(r0) y = Conv{SAME}(r0, w1, b1) }}"""
    model, stages = stages_of(build(text, **conv_constants()))
    stage, x = stages[1], images(2)
    read = QUANTIZED_INPUT.format("x", stage.layers[0].name)
    plain, quantized = (
        Session(stage_model(model, stage, ["r0", "z"], {read: x.dtype}, {}, grids), "a stage").run({read: x})
        for grids in ({}, {"r0": QuantParams(activation_spec(8), np.float32(0.02), 3)})
    )
    wanted = fake_quantize(plain["r0"], QuantParams(activation_spec(8), np.float32(0.02), 3))
    np.testing.assert_allclose(quantized["r0"], wanted, atol=1e-6)
    np.testing.assert_allclose(quantized["z"], 1 / (1 + np.exp(-wanted)), atol=1e-6)
