"""Migration of range from activations into weights: exact, absorbed where it can be, and only where it pays."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import build, normal, weight
from small_transformer import DECOMPOSED, FUSED, encoder, sentences

from onnxq.config import Config
from onnxq.execute.ort import Session
from onnxq.ir.load import load
from onnxq.ir.model import Model
from onnxq.ir.save import to_proto
from onnxq.migration import channel_factors, migrated
from onnxq.passes.migrate import find_sites, migrate
from onnxq.passes.prepare import prepare
from onnxq.plan import make_plan


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
    moved = migrated(model, make_plan(model, Config()), [sentences()])
    before, after = (m.graph.tensors()["g1"].values for m in (model, moved))
    assert before[3] / np.median(before) == 50
    assert after[3] / np.median(after) < 10


def test_range_of_a_graph_input_is_migrated_behind_it() -> None:
    model = prepared(build("(float[a, 5, 16] x) => (float y) { y = MatMul(x, w) }", w=weight(0, 16, 8)))
    x = normal(0, 40, 5, 16)
    x[..., 2] *= 40
    moved = migrated(model, make_plan(model, Config()), [{"x": x}])
    assert [n.op for n in moved.graph.nodes] == ["Mul", "MatMul"]
    np.testing.assert_allclose(answers(moved, {"x": x}), answers(model, {"x": x}), rtol=1e-4, atol=1e-4)


def test_even_channels_are_left_alone() -> None:
    model = prepared(build("(float[a, 5, 16] x) => (float y) { u = Tanh(x)  y = MatMul(u, w) }", w=weight(0, 16, 8)))
    moved = migrated(model, make_plan(model, Config()), [{"x": normal(0, 40, 5, 16)}])
    assert [n.op for n in moved.graph.nodes] == ["Tanh", "MatMul"]


def test_float_activations_are_left_alone() -> None:
    model = prepared(encoder(outlier=50.0))
    assert migrated(model, make_plan(model, Config(weights=4, activations=32)), [sentences()]) is model


def test_factors_have_a_median_of_one_and_grow_with_range() -> None:
    rows = normal(0, 100, 5) * np.array([0, 1, 1, 1, 100], np.float32)
    factors = channel_factors(rows, 0.5)
    assert np.median(factors) == pytest.approx(1)
    assert factors[4] == pytest.approx(np.sqrt(np.abs(rows[:, 4]).max() / np.median(np.abs(rows).max(axis=0))))
    assert factors[0] > 0
    np.testing.assert_array_equal(channel_factors(rows, 0.0), 1)
