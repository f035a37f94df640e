"""Equalized channels: the same function on every input, and a noise formula that experiment confirms."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from small_models import build, normal, weight

from onnxq.calibration.channels import RARE, ChannelExtremes, ChannelStatistics, channel_extremes
from onnxq.config import make_config
from onnxq.ir.layer import find_layers
from onnxq.ir.linear_form import weight_matrix
from onnxq.ir.load import load
from onnxq.ir.model import Model
from onnxq.ir.save import to_outline, to_proto
from onnxq.passes.equalize import equalize, find_groups, observed_ranks
from onnxq.passes.prepare import prepare
from onnxq.plan.make_plan import make_plan
from onnxq.preprocess.cross_layer_equalization import (
    LARGEST_FACTOR,
    PROPAGATED,
    best_factors,
    equalize_layers,
    input_step,
    relative_noise,
    weight_noise,
)
from onnxq.preprocess.smoothquant import migrate_ranges
from onnxq.runtime.session import Session

BLOCK = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,3,8,8] x) => (float[N,5,4,4] y) {
    a = Conv<pads=[1,1,1,1]>(x, w0, b0)
    r = Relu(a)
    m = Conv<pads=[1,1,1,1], group=8>(r, w1, b1)
    c = Clip(m, zero, six)
    p = Conv(c, w2, b2)
    s = Add(p, r)
    q = MaxPool<kernel_shape=[2,2], strides=[2,2]>(s)
    y = Conv(q, w3, b3)
}"""
"""A residual block with a depthwise convolution, a ReLU6 and a pooling: r, s and q must be scaled alike."""


def block() -> Model:
    rng = np.random.default_rng(0)
    model = parser.parse_model(BLOCK)
    reach = np.geomspace(0.02, 1.0, 8).astype(np.float32)  # channels of very different ranges
    shapes = {"w0": (8, 3, 3, 3), "w1": (8, 1, 3, 3), "w2": (8, 8, 1, 1), "w3": (5, 8, 1, 1)}
    values = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    values |= {f"b{i}": rng.normal(size=len(values[f"w{i}"])).astype(np.float32) for i in range(4)}
    values["w0"] *= reach[:, None, None, None]
    values["b0"] *= reach
    values |= {"zero": np.zeros((), np.float32), "six": np.full((), 6, np.float32)}
    model.graph.initializer.extend(numpy_helper.from_array(v, n) for n, v in values.items())
    return prepare(load(model))


def images(count: int = 32, seed: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(count, 3, 8, 8)).astype(np.float32)}


def run(model: Model, feed: dict[str, np.ndarray], names: tuple[str, ...] = ("y",)) -> dict[str, np.ndarray]:
    proto = to_proto(model)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name != "y")
    return Session(proto, "a network").run(feed, list(names))


def test_tensors_that_share_channels_are_found_with_all_who_make_and_read_them() -> None:
    model = block()
    found = {frozenset(la.output for la in g.makers): g for g in find_groups(model, find_layers(model)[0])}
    around = found[frozenset({"a", "p"})]
    assert {la.output for la in around.readers} == {"m", "y"}
    assert not around.clips and len(found[frozenset({"m"})].clips) == 1 and len(found) == 2


def test_any_factors_leave_the_function_as_it_was() -> None:
    model, feed = block(), images()
    groups = find_groups(model, find_layers(model)[0])
    rng = np.random.default_rng(2)
    factors = [rng.uniform(1.0 if g.clips else 0.1, 10, 8).astype(np.float32) for g in groups]
    changed = equalize(model, groups, factors)
    (before,), (after,) = run(model, feed).values(), run(changed, feed).values()
    # Float32 products in another order: a few units in the last place of the largest term.
    np.testing.assert_allclose(after, before, rtol=0, atol=3e-6 * np.abs(before).max())
    assert not np.array_equal(model.constant("w0"), changed.constant("w0"))


@pytest.mark.parametrize("bits", [(8, 8), (4, 4)])
def test_an_equalised_network_computes_the_same_also_beyond_the_samples_it_was_equalised_on(
    bits: tuple[int, int],
) -> None:
    model = block()
    config = make_config({"weights": bits[0], "activations": bits[1], "edge_bits": "same"})
    changed = equalize_layers(model, make_plan(model, config), [images()])
    other = images(64, seed=9)
    (before,), (after,) = run(model, other).values(), run(changed, other).values()
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())


CLIPS = {
    "ReLU6": "c = Clip(m, zero, six)",
    "ReLU6 in two": "n = Relu(m)  c = Min(n, six)",
    "HardTanh": "c = Clip(m, lowest, six)",
    "HardSigmoid": "c = HardSigmoid(m)",
    "no end": "c = Clip(m, zero)",
    "LeakyRelu": "c = LeakyRelu(m)",
}
"""What may lie between two convolutions; two of them let a factor of a channel pass."""


@pytest.mark.parametrize("form", CLIPS)
@pytest.mark.parametrize("samples", [2, 5, 64])
def test_every_rewrite_computes_the_same_ten_times_beyond_the_samples(form: str, samples: int) -> None:
    text = f"""(float[N, 6, 8, 8] x) => (float[N, 5, 8, 8] y) {{
        a = Conv(x, w0, b0)  m = Relu(a)  {CLIPS[form]}  p = Conv<group = 8>(c, w1, b1)
        d = Clip(p, zero, six)  q = Conv(d, w2, b2)  y = Conv(q, w3, b3)
    }}"""
    reach = np.geomspace(0.01, 1.0, 8).astype(np.float32)
    ws = [weight(0, 8, 6, 1, 1) * reach[:, None, None, None], weight(1, 8, 1, 1, 1), weight(2, 8, 8, 1, 1)]
    values = {f"w{i}": w for i, w in enumerate([*ws, weight(3, 5, 8, 1, 1)])}
    values |= {f"b{i}": np.float32(0.1) * normal(9 + i, len(w)) for i, w in enumerate(values.copy().values())}
    values |= {"zero": np.float32(0), "six": np.float32(6), "lowest": np.float32(-6)}
    model = prepare(load(build(text, **values)))
    feed, far = {"x": normal(4, samples, 6, 8, 8)}, {"x": 10 * normal(5, 64, 6, 8, 8)}
    ready = equalize_layers(model, make_plan(model, make_config({"edge_bits": "same"})), [feed])
    ready = migrate_ranges(ready, make_plan(ready, make_config({"edge_bits": "same"})), [feed])
    (before,), (after,) = run(model, far).values(), run(ready, far).values()
    # Float32 products in another order, with weights rounded once more for each factor.
    np.testing.assert_allclose(after, before, rtol=0, atol=2e-5 * np.abs(before).max())


def test_channels_come_towards_one_range() -> None:
    model, feed = block(), images()
    config = make_config({"weights": 16, "edge_bits": "same"})  # weights of steps enough for any factors
    changed = equalize_layers(model, make_plan(model, config), [feed])
    before, after = (run(m, feed, ("r",)) for m in (model, changed))

    def spread(values: np.ndarray) -> float:
        reach = np.abs(values).max(axis=(0, 2, 3))
        return float(reach.max() / reach.min())

    assert spread(before["r"]) > 2 * spread(after["r"])


def test_channels_of_few_samples_do_not_end_where_the_largest_value_was_seen() -> None:
    """Otherwise a new sample would be cut off in all channels at once."""
    rng = np.random.default_rng(0)
    extremes = [rng.gumbel(1.0, 0.3, (n, 400)).astype(np.float32) for n in (8, 8, 4000)]
    few, other = (ChannelExtremes(-e, e, np.square(e)).over() for e in extremes[:2])
    # Half as many new samples go further as beyond the largest of eight, which is one in nine.
    assert (extremes[2] > few.high).mean() < 0.06
    assert (extremes[2] > extremes[0].max(axis=0)).mean() > 0.08
    # Two sets of eight samples agree on where channels end within what eight samples can tell.
    mean, deviation = 1.0 + 0.3 * np.euler_gamma, 0.3 * np.pi / np.sqrt(6)
    np.testing.assert_allclose(few.high.mean(), mean + RARE * deviation, rtol=0.06)
    assert np.std(few.high - other.high) < 1.5 * np.std(extremes[0].max(axis=0) - extremes[1].max(axis=0))


def test_factors_are_at_least_one_and_bounded_and_fall_with_the_bits_of_the_weights() -> None:
    model = block()
    layers = find_layers(model)[0]
    (group,) = [g for g in find_groups(model, layers) if not g.clips]
    extremes = channel_extremes(to_outline(model), observed_ranks(model, [group]), [images()])
    weights = {r.name: weight_matrix(r, model.constant(r.weight)) for r in group.readers}

    def factors(weight_bits: int) -> np.ndarray:
        config = make_config({"weights": weight_bits, "activations": 8, "edge_bits": "same"})
        planned = {p.layer.name: p for p in make_plan(model, config).layers}
        return best_factors(group, extremes, planned, weights)

    eight, two = factors(8), factors(2)
    assert eight.min() >= 1 and eight.max() <= LARGEST_FACTOR
    assert two.max() < eight.max()


def test_noise_of_a_layer_is_that_of_rounding_its_inputs_and_weights() -> None:
    model = block()
    layer = next(la for la in find_layers(model)[0] if la.output == "y")
    plan = next(p for p in make_plan(model, make_config({"edge_bits": "same"})).layers if p.layer.output == "y")
    rng = np.random.default_rng(3)
    weight = rng.uniform(-1, 1, (1, 8, 1000)).astype(np.float32)  # of many channels, for the errors' average
    x = rng.uniform(0, np.linspace(0.5, 2, 8), (2000, 8)).astype(np.float32)
    factors = np.geomspace(4, 1, 8).astype(np.float32)
    statistics = ChannelStatistics(x.min(axis=0), x.max(axis=0), np.square(x).mean(axis=0))
    scaled, w = x * factors, weight[0] / factors[:, None]
    step, steps = scaled.max() / 255, np.abs(w).max(axis=0) / 127
    error = (np.rint(scaled / step) * step) @ (np.rint(w / steps) * steps) - scaled @ w
    signal = (np.square(weight[0]) * statistics.power[:, None]).sum() * len(x)
    # The largest weight of each channel has no error of its own, one in eight.
    expected = float(np.square(error).sum() / signal)
    assert relative_noise(layer, weight, statistics, factors, plan) == pytest.approx(expected, rel=0.1)


def test_a_grid_of_few_bits_ends_before_the_largest_value_and_one_of_eight_at_it() -> None:
    zero, ten, power = (np.array([v], np.float32) for v in (0.0, 10.0, 0.5))
    statistics = ChannelStatistics(zero, ten, power)
    assert input_step(statistics, 8) == pytest.approx(10 / 255)
    assert input_step(statistics, 32) == 0.0
    # Banner et al. give the best end at 4 bits as 5.03 b for values of both signs: one bit of ours is their sign.
    assert 15 * input_step(statistics, 4) < 10
    assert 3 * input_step(statistics, 2) < 15 * input_step(statistics, 4)
    assert input_step(ChannelStatistics(-ten, ten, power), 8) == pytest.approx(20 / 255)


def test_noise_of_weights_is_a_twelfth_of_their_squared_step_for_each_power() -> None:
    weight = np.array([[[1.0, -0.5], [0.25, 0.5]]], np.float32)
    power = np.array([[2.0, 3.0]], np.float32)
    expected = 5 * ((1.0 / 7) ** 2 + (0.5 / 7) ** 2) / 12
    assert weight_noise(weight, power, 4) == pytest.approx(expected, rel=1e-6)


def test_noise_of_few_bits_counts_for_the_part_that_propagation_leaves() -> None:
    model = block()
    layer = next(la for la in find_layers(model)[0] if la.output == "y")
    weight = weight_matrix(layer, model.constant(layer.weight))
    statistics = ChannelStatistics(np.zeros(8, np.float32), np.ones(8, np.float32), np.full(8, 0.25, np.float32))
    none = np.ones(8, np.float32)

    def noise(bits: int, share: float) -> float:
        config = make_config({"weights": bits, "activations": 32, "edge_bits": "same"})
        plan = next(p for p in make_plan(model, config).layers if p.layer.output == "y")
        return relative_noise(layer, weight, statistics, none, plan, share)

    assert noise(4, PROPAGATED) / noise(8, PROPAGATED) == pytest.approx(PROPAGATED * (127 / 7) ** 2, rel=1e-5)
    assert noise(4, 1.0) / noise(8, 1.0) == pytest.approx((127 / 7) ** 2, rel=1e-5)


BOTTLENECK = """(float[N, 3, 8, 8] x) => (float[N, 5, 8, 8] y) {
    a = Conv(x, w0, b0)  r = Relu(a)  p = Conv(r, w1, b1)
    m = Conv(p, w2, b2)  i = Relu(m)  q = Conv(i, w3, b3)  s = Add(p, q)  y = Conv<pads=[1,1,1,1]>(s, w4, b4)
}"""
"""A bottleneck of linear tensors, p and s, whose channels lean to one side or the other."""


def bottleneck() -> Model:
    shapes = {"w0": (8, 3, 1, 1), "w1": (8, 8, 1, 1), "w2": (8, 8, 1, 1), "w3": (8, 8, 1, 1), "w4": (5, 8, 3, 3)}
    values = {name: weight(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    side = np.array([1, -1] * 4, np.float32)
    values["w1"] = np.abs(values["w1"]) * side[:, None, None, None]
    values |= {f"b{i}": np.float32(0.1) * normal(9 + i, len(values[f"w{i}"])) for i in range(5)}
    return prepare(load(build(BOTTLENECK, **values)))


def test_leaning_channels_of_linear_tensors_come_to_one_side() -> None:
    model, feed = bottleneck(), images()
    plan = make_plan(model, make_config({"weights": 16, "edge_bits": "same"}))
    groups = {frozenset(la.output for la in g.makers): g for g in find_groups(model, [p.layer for p in plan.layers])}
    assert {makers: g.linear for makers, g in groups.items()} == {
        frozenset({"a"}): False,
        frozenset({"m"}): False,
        frozenset({"p", "q"}): True,
    }
    changed = equalize_layers(model, plan, [feed])
    before, after = (run(m, feed, ("y", "p", "s")) for m in (model, changed))
    # Float32 products in another order: a few units in the last place of the largest term.
    np.testing.assert_allclose(after["y"], before["y"], rtol=0, atol=1e-5 * np.abs(before["y"]).max())

    def needed(values: np.ndarray) -> float:
        return float((values.max() - values.min()) / np.abs(values).max())  # 2 where both sides are needed alike

    assert needed(before["p"]) > 1.8 and needed(after["p"]) < 1.3
    assert needed(after["s"]) < needed(before["s"])


@pytest.mark.parametrize("activations", [4, 32])
def test_no_sign_changes_for_grids_of_few_bits_nor_for_none(activations: int) -> None:
    model, feed = bottleneck(), images()
    config = make_config({"weights": 8, "activations": activations, "edge_bits": "same"})
    before, after = (run(m, feed, ("p",)) for m in (model, equalize_layers(model, make_plan(model, config), [feed])))
    assert (np.einsum("nchw,nchw->c", before["p"], after["p"]) > 0).all()


def test_factors_of_either_sign_leave_a_linear_group_as_it_was() -> None:
    model, feed = bottleneck(), images()
    groups = find_groups(model, find_layers(model)[0])
    rng = np.random.default_rng(4)
    factors = [rng.uniform(0.1, 10, 8) * np.where(g.linear, rng.choice([-1, 1], 8), 1) for g in groups]
    changed = equalize(model, groups, [f.astype(np.float32) for f in factors])
    (before,), (after,) = run(model, feed).values(), run(changed, feed).values()
    # Float32 products in another order: a few units in the last place of the largest term.
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5 * np.abs(before).max())


def test_statistics_of_multiplied_channels_are_those_of_the_tensor_multiplied() -> None:
    model, factors = bottleneck(), np.array([1, -2, 3, -4, 0.5, -0.5, 1, 1], np.float32)
    found = channel_extremes(to_outline(model), {"p": 4}, [images()])["p"]
    p = run(model, images(), ("p",))["p"]
    np.testing.assert_allclose(found.low, p.min(axis=(2, 3)), rtol=1e-6)
    np.testing.assert_allclose(found.high, p.max(axis=(2, 3)), rtol=1e-6)
    changed, scaled = found.over().multiplied(factors), p * factors[:, None, None]
    other = ChannelExtremes(
        scaled.min(axis=(2, 3)), scaled.max(axis=(2, 3)), np.square(scaled).mean(axis=(2, 3))
    ).over()
    for name in ("low", "high", "power"):
        np.testing.assert_allclose(getattr(changed, name), getattr(other, name), rtol=1e-5)
    np.testing.assert_array_equal(changed.largest, np.maximum(changed.high, -changed.low))


GATES = {
    "pool": "m = GlobalAveragePool(r)",
    "mean": "m = ReduceMean<axes=[2, 3]>(r)",
}


@pytest.mark.parametrize("order", ["g, r", "r, g"])
@pytest.mark.parametrize("pool", GATES)
def test_channels_are_scaled_alike_before_and_behind_a_gate(pool: str, order: str) -> None:
    text = f"""(float[N, 3, 8, 8] x) => (float y) {{
        a = Conv(x, w0, b0)  r = Relu(a)  {GATES[pool]}  h = Conv(m, w1, b1)  i = Relu(h)
        k = Conv(i, w2, b2)  g = Sigmoid(k)  p = Mul({order})  z = Resize<mode="linear">(p, , scales)
        y = Conv(z, w3, b3)
    }}"""
    shapes = {"w0": (8, 3, 1, 1), "w1": (2, 8, 1, 1), "w2": (8, 2, 1, 1), "w3": (5, 8, 1, 1)}
    values = {name: weight(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    values |= {f"b{i}": normal(9 + i, len(values[f"w{i}"])) for i in range(4)}
    model = prepare(load(build(text, scales=np.array([1, 1, 2, 2], np.float32), **values)))
    groups = find_groups(model, find_layers(model)[0])
    found = {g.makers[0].output: {la.output for la in g.readers} for g in groups}
    assert found == {"a": {"h", "y"}, "h": {"k"}}
    rng = np.random.default_rng(1)
    factors = [rng.uniform(0.1, 10, g.makers[0].channels).astype(np.float32) for g in groups]
    feed = {"x": normal(5, 4, 3, 8, 8)}
    (before,), (after,) = run(model, feed).values(), run(equalize(model, groups, factors), feed).values()
    # Float32 products in another order: a few units in the last place of the largest term.
    np.testing.assert_allclose(after, before, rtol=0, atol=3e-6 * np.abs(before).max())


def test_a_gate_that_layers_make_is_not_scaled_with_what_it_opens() -> None:
    text = """(float[N, 3, 8, 8] x) => (float y) {
        a = Conv(x, w0)  r = Relu(a)  m = GlobalAveragePool(x)  k = Conv(m, w1)  g = Relu(k)  p = Mul(r, g)
        y = Conv(p, w2)
    }"""
    model = prepare(load(build(text, w0=weight(0, 8, 3, 1, 1), w1=weight(1, 8, 3, 1, 1), w2=weight(2, 5, 8, 1, 1))))
    groups = find_groups(model, find_layers(model)[0])
    assert [{la.output for la in g.makers} for g in groups] == [{"a"}]


@pytest.mark.parametrize(("op", "gates", "kept"), [("LSTM", 4, 1), ("LSTM", 4, 2), ("GRU", 3, 1), ("RNN", 1, 1)])
def test_outputs_that_a_recurrence_leaves_out_do_not_keep_channels_from_being_scaled(
    op: str, gates: int, kept: int
) -> None:
    model = build(
        f"""(float[N,4,12] x) => (float[1,N,5] y) {{
            c = Conv<pads=[1,1]>(x, w0)
            r = Relu(c)
            d = Conv<pads=[1,1]>(r, w1)
            t = Transpose<perm=[2,0,1]>(d)
            q, h{", z" if op == "LSTM" else ""} = {op}<hidden_size=6>(t, w, u)
            y = MatMul({"qhz"[kept]}, w2) }}""",
        w0=weight(1, 8, 4, 3),
        w1=weight(2, 8, 8, 3),
        w=0.3 * normal(3, 1, 6 * gates, 8),
        u=0.3 * normal(4, 1, 6 * gates, 6),
        w2=weight(5, 6, 5),
    )
    recurrence = next(node for node in model.graph.node if node.op_type == op)
    for i, name in enumerate(recurrence.output):
        recurrence.output[i] = name if i == kept else ""
    prepared = prepare(load(model))
    (group,) = find_groups(prepared, find_layers(prepared)[0])
    assert group.tensors == ("c", "r")
    moved = equalize(prepared, [group], [np.geomspace(0.5, 2, 8).astype(np.float32)])
    feed = {"x": normal(6, 3, 4, 12)}
    np.testing.assert_allclose(run(moved, feed)["y"], run(prepared, feed)["y"], atol=1e-5)
