"""Work that grows in proportion to the network: what is done for each layer looks at its surroundings alone.

Calls are counted, not seconds: they are the same on every machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxq.config import Config
from onnxq.ir.load import load
from onnxq.ir.pointwise import pointwise_behind
from onnxq.ir.stage import split_stages
from onnxq.passes.prepare import prepare
from onnxq.plan.make_plan import make_plan

W = np.random.default_rng(0).standard_normal((4, 4, 1, 1)).astype(np.float32)


def chain(layers: int, between: int = 1) -> onnx.ModelProto:
    """Convolutions in a row with so many element-wise operators behind each."""
    nodes, at = [], "x"
    for i in range(layers):
        nodes.append(helper.make_node("Conv", [at, "w"], [f"c{i}"], f"c{i}"))
        at = f"c{i}"
        for j in range(between):
            op = ("Sigmoid", "Mul", "Relu")[j % 3]
            nodes.append(helper.make_node(op, [at] * (1 + (op == "Mul")), [f"r{i}_{j}"], f"r{i}_{j}"))
            at = f"r{i}_{j}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4, 8, 8]) for name in ("x", at)]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [numpy_helper.from_array(W, "w")])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def calls(work: Callable[[], Any]) -> int:
    """Python functions entered during some work."""
    count = 0

    def see(frame: Any, event: str, argument: Any) -> None:
        nonlocal count
        count += event == "call"

    sys.setprofile(see)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("target", ["onnxruntime", "qnn"])
def test_a_plan_takes_time_in_proportion_to_the_layers(target: str) -> None:
    models = [prepare(load(chain(n))) for n in (60, 240)]
    few, many = (calls(partial(make_plan, m, Config(target=target))) for m in models)
    assert many < 4.6 * few


def test_stages_take_time_in_proportion_to_the_layers() -> None:
    models = [prepare(load(chain(n))) for n in (60, 240)]
    plans = [make_plan(m, Config()) for m in models]
    few, many = (
        calls(partial(split_stages, m, [q.layer for q in p.layers])) for m, p in zip(models, plans, strict=True)
    )
    assert many < 4.6 * few


def test_a_long_function_of_one_tensor_is_followed_in_proportion_to_its_length() -> None:
    models = [prepare(load(chain(2, n))) for n in (150, 600)]
    found = [pointwise_behind(m, "c0") for m in models]
    assert [len(f.nodes) for f in found if f] == [150, 600]
    few, many = (calls(partial(pointwise_behind, m, "c0")) for m in models)
    assert many < 4.6 * few
