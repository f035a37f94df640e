"""The meaning of Resize and Upsample of old operator sets, kept when a model is raised to a newer one.

Up to operator set 10 a Resize reads the input at output index / scale, rounded down. Since 11 that is one of several
rules, and not the one that holds where none is named; onnx's converter names none.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import helper, numpy_helper

from onnxq.ir.order import subgraphs

RULES_SINCE = 11
"""Operator set in which Resize was given its rules."""


def keep_resizing(graph: onnx.GraphProto) -> None:
    """Name the old rules on every Resize of a graph that came from an operator set before 11, in place."""
    scales = {t.name: t for t in graph.initializer}
    for node in graph.node:
        if node.op_type == "Resize" and not any(a.name == "coordinate_transformation_mode" for a in node.attribute):
            shrinks = any((numpy_helper.to_array(t) < 1).any() for t in _constants(node, scales))
            node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
            # What onnxruntime does for these operator sets; the standard leaves it open.
            node.attribute.append(helper.make_attribute("nearest_mode", "ceil" if shrinks else "floor"))
        for subgraph in subgraphs(node):
            keep_resizing(subgraph)


def _constants(node: onnx.NodeProto, known: dict[str, onnx.TensorProto]) -> Iterator[onnx.TensorProto]:
    """The scales of a Resize, where they are an initializer."""
    for name in node.input[2:3]:
        if name in known and known[name].data_type == onnx.TensorProto.FLOAT:
            yield known[name]
