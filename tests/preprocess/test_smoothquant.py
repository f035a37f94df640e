"""Migration of range from activations into weights: exact, absorbed where it can be, and only where it pays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import build, normal, weight
from small_transformer import DECOMPOSED, FUSED, encoder, sentences

from onnxq.config import Config
from onnxq.ir.load import load
from onnxq.ir.model import Model
from onnxq.ir.save import to_proto
from onnxq.passes.migrate import find_sites, migrate
from onnxq.passes.prepare import prepare
from onnxq.plan.make_plan import make_plan
from onnxq.preprocess.smoothquant import channel_factors, migrate_ranges
from onnxq.runtime.session import Session


def prepared(model: onnx.ModelProto) -> Model:
    return prepare(load(model))


def answers(model: Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    return Session(to_proto(model), "the model").run(feed)["y"]


def multiplications(model: Model) -> int:
    return sum(node.op == "Mul" for node in model.graph.nodes)


@pytest.mark.parametrize("norm", [FUSED, DECOMPOSED], ids=["fused", "decomposed"])
@pytest.mark.parametrize("residual", ["x0", "x1"])
def test_migration_leaves_the_function_alone(norm: str, residual: str) -> None:
    model = prepared(encoder(norm=norm, residual=residual))
    sites = find_sites(model, [p.layer for p in make_plan(model, Config()).layers])
    rng = np.random.default_rng(0)
    widths = [site.readers[0].weight_shape[0] for site in sites]
    moved = migrate(model, sites, [np.exp(rng.normal(size=n)).astype(np.float32) for n in widths])
    feed = sentences(8)
    before = answers(model, feed)
    # Two roundings more for each weight and each entry of a tensor, in float32.
    np.testing.assert_allclose(answers(moved, feed), before, atol=2e-6 * np.abs(before).max())
    absorbed = next(site for site in sites if site.tensor == "x1").absorbed
    assert absorbed == (residual == "x0")
    assert multiplications(moved) == multiplications(model) + len(sites) - absorbed


def test_queries_keys_and_values_share_one_division() -> None:
    model = prepared(encoder())
    sites = find_sites(model, [p.layer for p in make_plan(model, Config()).layers])
    assert [[layer.name for layer in site.readers] for site in sites] == [["q0", "k0", "v0"], ["o0"], ["i0"], ["d0"]]


def test_an_outlying_channel_is_migrated() -> None:
    model = prepared(encoder(residual="x0", outlier=50.0))
    moved = migrate_ranges(model, make_plan(model, Config()), [sentences()])
    before, after = (m.graph.tensors()["g1"].values for m in (model, moved))
    assert before[3] / np.median(before) == 50
    assert after[3] / np.median(after) < 10


def test_range_of_a_graph_input_is_migrated_behind_it() -> None:
    model = prepared(build("(float[a, 5, 16] x) => (float y) { y = MatMul(x, w) }", w=weight(0, 16, 8)))
    x = normal(0, 40, 5, 16)
    x[..., 2] *= 40
    moved = migrate_ranges(model, make_plan(model, Config()), [{"x": x}])
    assert [n.op for n in moved.graph.nodes] == ["Mul", "MatMul"]
    np.testing.assert_allclose(answers(moved, {"x": x}), answers(model, {"x": x}), rtol=1e-4, atol=1e-4)


def test_the_scale_of_an_rms_normalization_takes_in_the_division() -> None:
    text = "(float[a, 5, 16] x) => (float y) { n = RMSNormalization(x, scale)  y = MatMul(n, w) }"
    model = prepared(build(text, 26, scale=normal(1, 16), w=weight(0, 16, 8)))
    (site,) = find_sites(model, [p.layer for p in make_plan(model, Config()).layers])
    assert site.tensor == "n" and site.absorbed
    moved = migrate(model, [site], [np.exp(normal(2, 16))])
    assert [node.op for node in moved.graph.nodes] == ["RMSNormalization", "MatMul"]
    before = answers(model, {"x": normal(3, 40, 5, 16)})
    # Two roundings more for each weight and each entry of a tensor, in float32.
    np.testing.assert_allclose(answers(moved, {"x": normal(3, 40, 5, 16)}), before, atol=2e-6 * np.abs(before).max())


def test_even_channels_are_left_alone() -> None:
    model = prepared(build("(float[a, 5, 16] x) => (float y) { u = Tanh(x)  y = MatMul(u, w) }", w=weight(0, 16, 8)))
    moved = migrate_ranges(model, make_plan(model, Config()), [{"x": normal(0, 40, 5, 16)}])
    assert [n.op for n in moved.graph.nodes] == ["Tanh", "MatMul"]


def test_float_activations_are_left_alone() -> None:
    model = prepared(encoder(outlier=50.0))
    assert migrate_ranges(model, make_plan(model, Config(weights=4, activations=32)), [sentences()]) is model


def test_factors_have_a_median_of_one_and_grow_with_range() -> None:
    rows = normal(0, 100, 5) * np.array([0, 1, 1, 1, 100], np.float32)
    factors = channel_factors(rows, 0.5)
    assert np.median(factors) == pytest.approx(1)
    reach = np.abs(rows).mean(axis=0) + 5 * np.abs(rows).std(axis=0)  # about the largest of some thousand rows
    assert factors[4] == pytest.approx(np.sqrt(reach[4] / np.median(reach[1:])), rel=1e-5)
    assert factors[0] == 1  # never seen: left alone
    np.testing.assert_array_equal(channel_factors(rows, 0.0), 1)


def test_channels_that_were_hardly_seen_are_left_alone() -> None:
    """A one-hot input: most channels are zero throughout, and the others are zero or one."""
    rows = np.eye(300, dtype=np.float32)[np.random.default_rng(0).geometric(0.05, 512).clip(max=299)]
    factors = channel_factors(rows, 1.0)
    seen = rows.sum(axis=0)
    np.testing.assert_array_equal(factors[seen < 8], 1)
    assert factors.max() < 10 and factors.min() > 0.1
    np.testing.assert_array_equal(channel_factors(np.zeros((512, 3), np.float32), 1.0), 1)


HARD_SWISH = {
    "PyTorch": "p = Add(a, three)  c = Clip(p, zero, six)  d = Div(c, divisor)  u = Mul(a, d)",
    "Paddle": "p = Add(a, three)  c = Clip(p, zero, six)  m = Mul(a, c)  u = Div(m, divisor)",
    "affine": "p = Add(a, three)  c = Clip(p, zero, six)  m = Mul(a, c)  e = Mul(m, two)  u = Add(e, b)",
    "one node": "u = HardSwish(a)",
    "SiLU": "s = Sigmoid(a)  u = Mul(a, s)",
}


def hard_swish(form: str, group: int = 1) -> Model:
    """A convolution of channels of very different ranges, a HardSwish in some form, and a convolution of 3 × 3."""
    text = f"""(float[N, 3, 8, 8] x) => (float y) {{
        a = Conv(x, w)  {HARD_SWISH[form]}  y = Conv<pads=[1,1,1,1], group={group}>(u, v)
    }}"""
    reach = np.geomspace(0.5, 50, 8).astype(np.float32)[:, None, None, None]
    numbers = {"zero": 0, "two": 2, "six": 6}
    constants = {name: np.full((), value, np.float32) for name, value in numbers.items()}
    constants |= {"three": np.full((1,), 3, np.float32), "divisor": np.full((1, 1, 1), 6, np.float32)}
    constants["b"] = normal(2, 8, 1, 1)
    return prepared(build(text, w=weight(0, 8, 3, 1, 1) * reach, v=weight(1, 4, 8 // group, 3, 3), **constants))


@pytest.mark.parametrize("form", HARD_SWISH)
@pytest.mark.parametrize("group", [1, 4])
def test_a_constant_behind_an_activation_function_takes_in_the_division(form: str, group: int) -> None:
    model = hard_swish(form, group)
    sites = [s for s in find_sites(model, [p.layer for p in make_plan(model, Config()).layers]) if s.tensor == "u"]
    if form in ("one node", "SiLU"):  # there is none: multiplying feature maps would take longer than it gains
        assert not sites
        return
    factor = np.exp(normal(3, 8)).astype(np.float32)
    moved = migrate(model, sites, [factor])
    assert [node.op for node in moved.graph.nodes] == [node.op for node in model.graph.nodes]
    feed = {"x": normal(4, 6, 3, 8, 8)}
    before = answers(model, feed)
    # Two roundings more for each weight and each entry of a tensor, in float32.
    np.testing.assert_allclose(answers(moved, feed), before, atol=2e-6 * np.abs(before).max())
    inside = [Session(with_output(m), "the model").run(feed)["u"] for m in (model, moved)]
    np.testing.assert_allclose(inside[1] * factor[:, None, None], inside[0], rtol=1e-5, atol=1e-5)


def with_output(model: Model) -> onnx.ModelProto:
    proto = to_proto(model)
    proto.graph.output.append(onnx.ValueInfoProto(name="u"))
    return proto


def test_outlying_channels_of_feature_maps_are_migrated() -> None:
    model, feed = hard_swish("Paddle"), {"x": normal(4, 16, 3, 8, 8)}
    moved = migrate_ranges(model, make_plan(model, Config(edge_bits="same")), [feed])

    def spread(m: Model) -> float:
        reach = np.abs(Session(with_output(m), "the model").run(feed)["u"]).max(axis=(0, 2, 3))
        return float(reach.max() / np.median(reach))

    assert spread(moved) < 0.7 * spread(model)


def test_equalised_and_quantised_tensors_are_left_alone() -> None:
    text = "(float[N, 3, 8, 8] x) => (float y) { a = Conv(x, w)  u = Relu(a)  y = Conv(u, v) }"
    model = prepared(build(text, w=weight(0, 8, 3, 1, 1), v=weight(1, 4, 8, 1, 1)))
    assert migrate_ranges(model, make_plan(model, Config()), [{"x": normal(4, 16, 3, 8, 8)}]) is model
