"""The one door to what onnx-graphsurgeon keeps to itself."""

from __future__ import annotations

import ast
from configparser import ConfigParser
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from onnx import TensorProto, numpy_helper
from packaging.requirements import Requirement
from tiny_model import tiny_model

from onnxq.ir.surgeon import constant_message, copy_constant, export_graph, import_graph, peek

ROOT = Path(__file__).parents[2]
DOOR = ROOT / "onnxq" / "ir" / "surgeon.py"
OURS = sorted(path for folder in ("onnxq", "models", "benchmarks") for path in (ROOT / folder).rglob("*.py"))
KEPT = {name for name in vars(gs.Constant("x", np.zeros(1))) if name.startswith("_")}
"""Attributes that onnx-graphsurgeon's constants keep to themselves."""


def private_uses(path: Path) -> list[str]:
    """Where a module reaches behind onnx-graphsurgeon's documented interface."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("onnx_graphsurgeon"):
            found.append(f"line {node.lineno} imports from {node.module}")
        elif isinstance(node, ast.Import):
            found += [
                f"line {node.lineno} imports {a.name}" for a in node.names if a.name.startswith("onnx_graphsurgeon.")
            ]
        elif isinstance(node, ast.Attribute) and node.attr in KEPT and ast.unparse(node.value) != "self":
            found.append(f"line {node.lineno} takes .{node.attr}")
    return found


def test_values_are_among_what_is_kept() -> None:
    assert "_values" in KEPT


@pytest.mark.parametrize("path", [p for p in OURS if p != DOOR], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_other_module_reaches_behind_the_interface(path: Path) -> None:
    assert private_uses(path) == []


def test_the_door_is_where_they_are() -> None:
    """Otherwise the tests above look for the wrong things."""
    assert len(private_uses(DOOR)) >= 5


def test_the_version_is_capped() -> None:
    setup = ConfigParser()
    setup.read(ROOT / "setup.cfg")
    needed = [Requirement(line) for line in setup["options"]["install_requires"].split("\n") if line[:1].isalpha()]
    (surgeon,) = (r for r in needed if r.name == "onnx-graphsurgeon")
    assert not surgeon.specifier.contains("0.7.0") and surgeon.specifier.contains("0.6.1")


def test_stand_ins_are_written_and_the_values_are_there_again() -> None:
    graph = import_graph(tiny_model())
    constant = graph.tensors()["w1"]
    stand_in = numpy_helper.from_array(np.zeros((8, 3, 3, 3), np.float32), "w1")
    before = peek(constant)
    written = {t.name: t for t in export_graph(graph, [(constant, stand_in)]).graph.initializer}
    assert not numpy_helper.to_array(written["w1"]).any() and numpy_helper.to_array(written["w2"]).any()
    np.testing.assert_array_equal(constant.values, before)


def test_peeking_keeps_the_message_and_a_copy_shares_it() -> None:
    """Types that numpy lacks are written as they came only as long as they are messages."""
    packed = onnx.helper.make_tensor("w", TensorProto.INT4, [3], [-8, 0, 7])
    node = onnx.helper.make_node("Identity", ["w"], ["y"], "n")
    result = onnx.helper.make_tensor_value_info("y", TensorProto.INT4, [3])
    proto = onnx.helper.make_model(onnx.helper.make_graph([node], "g", [], [result], [packed]))
    constant = import_graph(proto).tensors()["w"]
    twin = copy_constant(constant)
    assert peek(constant).astype(int).tolist() == [-8, 0, 7]
    assert constant_message(constant).data_type == constant_message(twin).data_type == TensorProto.INT4
