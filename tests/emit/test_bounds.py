"""Upper ends that were raised with their channels: carried exactly, and gone where a grid ends before them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import build, normal, weight

import onnxq
from onnxq.config import make_config
from onnxq.emit.bounds import drop_superfluous_bounds
from onnxq.emit.qdq import emit
from onnxq.ir.ceiling import find_ceilings
from onnxq.ir.layer import find_layers
from onnxq.ir.load import load
from onnxq.passes.prepare import prepare
from onnxq.plan.make_plan import make_plan
from onnxq.preprocess.cross_layer_equalization import equalize_layers
from onnxq.runtime.session import Session
from onnxq.solve.making import Ranges
from onnxq.validation.rewrites import solve_plain

BETWEEN = {
    "nothing": ("", "m"),
    "a pooling": ("p = MaxPool<kernel_shape = [2, 2], pads = [0, 0, 1, 1]>(m)", "p"),
    "a copy": ("p = Transpose<perm = [0, 2, 3, 1]>(m)", "p"),
}


def before_a_grid(least: float, between: str, also: str = "") -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """A minimum before a grid that ends at 2.55, and what is left of both."""
    text, last = BETWEEN[between]
    outputs = "float[N, a, b, c] y" + (", float[N, a, b, c] z" if also else "")
    graph = f"""(float[N, 3, 4, 4] x) => ({outputs}) {{
        r = Relu(x)  m = Min(r, bounds)  {text}
        q = QuantizeLinear({last}, scale, zero)  y = DequantizeLinear(q, scale, zero)  {also}
    }}"""
    bounds = np.array([least, 4, 30], np.float32).reshape(3, 1, 1)
    before = build(graph, bounds=bounds, scale=np.float32(0.01), zero=np.uint8(0))
    after = onnx.ModelProto()
    after.CopyFrom(before)
    drop_superfluous_bounds(after.graph, {"m"})
    return before, after


def holds_minimum(model: onnx.ModelProto) -> bool:
    return "Min" in [node.op_type for node in model.graph.node]


@pytest.mark.parametrize("between", BETWEEN)
@pytest.mark.parametrize("least", [2.546, 2.6, 6.0])
def test_a_minimum_before_a_grid_that_ends_first_goes_and_no_answer_changes(least: float, between: str) -> None:
    before, after = before_a_grid(least, between)
    assert holds_minimum(before) and not holds_minimum(after)
    feed = {"x": 20 * normal(0, 16, 3, 4, 4)}
    ours, theirs = (Session(model, "a grid").run(feed, ["y"])["y"] for model in (after, before))
    np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("least", "also"), [(2.54, ""), (6.0, "z = Identity(r)"), (6.0, "z = Neg(m)")], ids=["lower", "beside", "behind"]
)
def test_a_minimum_that_something_else_sees_or_that_ends_before_the_grid_stays(least: float, also: str) -> None:
    assert holds_minimum(before_a_grid(least, "nothing", also)[1])


def test_a_raised_clip_keeps_its_name_and_the_end_at_which_grids_stop() -> None:
    text = """(float[N, 6, 8, 8] x) => (float[N, 5, 8, 8] y) {
        a = Conv(x, w0, b0)  c = Clip(a, zero, six)  y = Conv(c, w1, b1)
    }"""
    reach = np.geomspace(0.01, 1.0, 8).astype(np.float32)
    values = {"w0": normal(0, 8, 6, 1, 1) * reach[:, None, None, None], "w1": normal(1, 5, 8, 1, 1)}
    values |= {"b0": np.zeros(8, np.float32), "b1": np.zeros(5, np.float32)}
    model = prepare(load(build(text, **values, zero=np.float32(0), six=np.float32(6))))
    assert find_ceilings(model) == {"c": 6.0}
    raised = equalize_layers(
        model, make_plan(model, make_config({"edge_bits": "same"})), [{"x": normal(2, 8, 6, 8, 8)}]
    )
    first = find_layers(raised)[0][0]
    assert (first.low, first.high, first.activated) == (0.0, 6.0, "c")
    assert find_ceilings(raised) == {"c": 6.0}
    (minimum,) = [node for node in raised.graph.nodes if node.op == "Min"]
    bounds = raised.constant(minimum.inputs[1].name)
    assert bounds.shape == (8, 1, 1) and bounds.min() >= 6 and bounds.max() > 12
    config = make_config({"edge_bits": "same"})
    plan, network = solve_plain(raised, config, None, Ranges.SEARCHED, [{"x": normal(2, 8, 6, 8, 8)}])
    assert not holds_minimum(emit(raised, plan, network, config))


@pytest.mark.parametrize("bounds", [np.full((1, 4, 256, 256), 9), np.full((1, 1, 256, 256), 90)], ids=["large", "wide"])
def test_a_minimum_of_the_model_s_own_is_left_whatever_its_constant(bounds: np.ndarray) -> None:
    """One of a mebibyte is not in the message that is rewritten; one wider than what it bounds makes that wider."""
    pooled = "p = GlobalAveragePool(a)" if bounds.shape[1] == 1 else "p = Identity(a)"
    text = f"""(float[N, 4, 256, 256] x) => (float[N, 4, 256, 256] y) {{
        a = Conv(x, w0)  {pooled}  r = Relu(p)  m = Min(r, bounds)  y = Conv(m, w1)
    }}"""
    model = build(text, w0=weight(0, 4, 4, 1, 1), w1=weight(1, 4, 4, 1, 1), bounds=bounds.astype(np.float32))
    result = onnxq.quantize(model, normal(2, 2, 4, 256, 256), onnxq.Config(edge_bits="same"))
    assert holds_minimum(result.model)
    assert all(check.error is None for check in result.report.loads)
