"""Models without their large constants: nothing is copied, nothing is lost, and onnxruntime finds them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_models import build, images, normal, relu_chain

from onnxq.ir import size
from onnxq.ir.load import load
from onnxq.ir.save import to_outline, to_proto
from onnxq.passes.prepare import prepare
from onnxq.runtime.session import Session

BRANCH = """(float[1,3] x, bool p) => (float[1,3] y) {
    a = Mul(x, w)
    y = If (p) <then_branch = t () => (float[1,3] t1) { t0 = Relu(a) t1 = Mul(t0, w) },
                else_branch = e () => (float[1,3] e1) { e1 = Sub(x, k) }>
}"""


@pytest.fixture(autouse=True)
def all_are_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size, "LITTLE", 1)


def test_arrays_are_those_of_the_graph() -> None:
    model = prepare(load(relu_chain()))  # a graph that was just read has no arrays yet
    outline = to_outline(model)
    assert {"w0", "w1", "w2"} <= set(outline.constants)
    assert all(np.shares_memory(array, model.constant(name)) for name, array in outline.arrays().items())
    assert all(not tensor.raw_data for tensor in outline.proto.graph.initializer)


def test_filled_model_is_the_one_that_never_lacked_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(relu_chain())
    filled = to_outline(model).filled()
    monkeypatch.undo()
    assert filled == to_proto(model)
    assert not to_outline(model).constants


def test_outline_runs_as_the_model_does() -> None:
    model = load(relu_chain())
    feed = {"x": images()}
    (wanted,) = Session(to_proto(model), "it").run(feed).values()
    (found,) = Session(to_outline(model), "it").run(feed).values()
    np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("taken", [False, True])
def test_branch_reads_constants_from_outside_and_of_its_own(taken: bool) -> None:
    model = load(build(BRANCH, w=normal(0, 3), k=normal(1, 3)))
    feed = {"p": np.array(taken), "x": normal(2, 1, 3)}
    assert set(to_outline(model).constants) == {"w"}
    (wanted,) = Session(to_proto(model), "it").run(feed).values()
    (found,) = Session(to_outline(model), "it").run(feed).values()
    np.testing.assert_array_equal(found, wanted)


def test_default_that_a_caller_may_override_stays_in_the_message() -> None:
    proto = build("(float[1,3] x) => (float[1,3] y) { y = Mul(x, w) }", w=normal(0, 3))
    proto.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3]))
    outline = to_outline(load(proto))
    assert not outline.constants
    session, x = Session(outline, "it"), normal(1, 1, 3)
    np.testing.assert_array_equal(session.run({"x": x})["y"], x * normal(0, 3))
    np.testing.assert_array_equal(session.run({"x": x, "w": normal(2, 3)})["y"], x * normal(2, 3))


def test_what_nothing_reads_is_taken_out_and_what_was_added_is_found() -> None:
    outline = to_outline(load(build("(float[1,3] x) => (float[1,3] y) { y = Mul(x, w) }", w=normal(0, 3))))
    outline.proto.graph.node[0].input[1] = "other"
    outline.add("other", normal(1, 3))
    outline.drop_unread()
    assert [t.name for t in outline.proto.graph.initializer] == ["other"] == list(outline.constants)
    x = normal(2, 1, 3)
    np.testing.assert_array_equal(Session(outline, "it").run({"x": x})["y"], x * normal(1, 3))
    onnx.checker.check_model(outline.filled())
