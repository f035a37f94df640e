"""Raising a model's operator set with onnx's converter, whose gaps are closed before and behind it.

1. Up to operator set 10 a Resize reads the input at output index / scale, rounded down. Since 11 that is one of several
   rules, and not the one that holds where none is named; the converter names none.
2. It infers shapes on the way, and onnx misreads the one that a ConvTranspose gives its output: only the shapes that
   were there are kept.
3. Before 11 a Pad may carry a value that its mode has no use for; the converter takes it for an error.
4. It copies a model several times over, and takes 2 GiB at most: large weights are kept from it.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import checker, helper, numpy_helper, version_converter

from onnxq.errors import UnsupportedError
from onnxq.ir.size import put_large_weights_back, without_large_weights
from onnxq.ir.topological_sort import subgraphs

RULES_SINCE = 11
"""Operator set in which Resize was given its rules, and Pad its value as an input."""


def raise_opset(proto: onnx.ModelProto, present: int, wanted: int, name: str) -> onnx.ModelProto:
    """The model at a newer operator set, which computes the same.

    Args:
        proto: with IR version 4 or later; nodes may be rewritten in place.
        present: its operator set.
        wanted: a newer one.
        name: what to call the model in a message.

    Raises:
        UnsupportedError: the converter does not know an operator, or is defeated by it.
    """
    try:
        if present < RULES_SINCE:
            _drop_idle_values(proto.graph)
        raised = version_converter.convert_version(without_large_weights(proto), wanted)
        if present < RULES_SINCE:
            _name_resizing(raised.graph)
        raised.graph.ClearField("value_info")
        raised.graph.value_info.extend(proto.graph.value_info)
        checker.check_model(raised)
        put_large_weights_back(raised, proto)
    except (RuntimeError, ValueError, IndexError, version_converter.ConvertError, checker.ValidationError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise UnsupportedError(
            f"{name} has opset {present} and cannot be raised to opset {wanted}, which the asked bits need ({reason}); "
            f"export it with opset {wanted}, or ask for 8 bits."
        ) from error
    return raised


def _name_resizing(graph: onnx.GraphProto) -> None:
    """Name the old rules on every Resize of a graph, in place."""
    scales = {t.name: t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    for node in _nodes(graph):
        if node.op_type == "Resize" and not any(a.name == "coordinate_transformation_mode" for a in node.attribute):
            shrinks = any((numpy_helper.to_array(scales[n]) < 1).any() for n in node.input[2:3] if n in scales)
            node.attribute.append(helper.make_attribute("coordinate_transformation_mode", "asymmetric"))
            # What onnxruntime does for these operator sets; the standard leaves it open.
            node.attribute.append(helper.make_attribute("nearest_mode", "ceil" if shrinks else "floor"))


def _drop_idle_values(graph: onnx.GraphProto) -> None:
    """Take the value from every Pad that repeats what is there and has no use for one, in place."""
    for node in _nodes(graph):
        if node.op_type == "Pad" and any(a.name == "mode" and a.s != b"constant" for a in node.attribute):
            kept = [onnx.AttributeProto.FromString(a.SerializeToString()) for a in node.attribute if a.name != "value"]
            del node.attribute[:]
            node.attribute.extend(kept)


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Every node of a graph, those of its subgraphs included."""
    for node in graph.node:
        yield node
        for subgraph in subgraphs(node):
            yield from _nodes(subgraph)
