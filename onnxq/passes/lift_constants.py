"""Turning Constant nodes, and short chains of nodes behind a constant, into initializers.

A layer's weight often stands behind a Transpose, Reshape or Cast that the exporter left in; what the
solver needs is the array that the layer multiplies with. Only nodes that move values about are worked
out, and only on the way to a layer: nothing grows, save where a Cast widens a weight that is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from onnxq.ir.constant import is_plain, is_plain_dtype
from onnxq.ir.layer import LAYER_OPS
from onnxq.ir.model import Model
from onnxq.ir.operators import Trait, operators_with
from onnxq.ir.surgeon import node_message
from onnxq.passes.graph_editor import Draft, op_of

MOVING = operators_with(Trait.REARRANGES, Trait.CONVERTS) - operators_with(Trait.DRAWS)
WORTH_LIFTING = operators_with(Trait.LAYER, Trait.AFFINE)
"""Nodes whose constants other passes look at."""


def lift_constants(model: Model) -> Model:
    """Make initializers of Constant nodes and of moved constants that a layer reads.

    A weight that is also a graph input stays one, as the caller may override it: the layer gets a remark.
    """
    draft = Draft(model)
    for node in draft.nodes:
        if op_of(node) == "Constant":
            _lift(draft, node, _constant_value(node))
    wanted = _wanted(draft)
    for node in draft.nodes:
        if op_of(node) in MOVING and node.outputs[0].name in wanted:
            _lift(draft, node, _moved_value(draft, node))
    for node in draft.nodes:
        if op_of(node) in LAYER_OPS and isinstance(node.inputs[1], gs.Constant) and draft.value(node.inputs[1]) is None:
            draft.remark(node, f"it stays in float because its weight {draft.why_no_value(node.inputs[1])}")
    return draft.finish()


def _lift(draft: Draft, node: gs.Node, value: NDArray[Any] | None) -> None:
    tensor = node.outputs[0]
    if value is None or not is_plain_dtype(value.dtype) or not draft.sees_only_nodes(tensor):
        return
    draft.drop(node)
    tensor.to_constant(value)


def _constant_value(node: gs.Node) -> NDArray[Any] | None:
    """The value in a Constant node; None for text, for sparse tensors and for types that numpy lacks."""
    for form, value in node.attrs.items():
        if form == "value" and is_plain(value):
            return np.asarray(value.values)
        if form in ("value_float", "value_floats"):
            return np.asarray(value, np.float32)
        if form in ("value_int", "value_ints"):
            return np.asarray(value, np.int64)
    return None


def _wanted(draft: Draft) -> set[str]:
    """Names of the tensors that reach a node worth lifting for through moving nodes alone."""
    wanted: set[str] = set()
    for node in reversed(draft.nodes):
        if op_of(node) in WORTH_LIFTING or (op_of(node) in MOVING and node.outputs[0].name in wanted):
            wanted.update(t.name for t in node.inputs)
    return wanted


def _moved_value(draft: Draft, node: gs.Node) -> NDArray[Any] | None:
    """What a moving node makes of constants; None if one of its inputs is none."""
    values = {t.name: draft.value(t) for t in node.inputs if not t.is_empty()}
    if any(value is None for value in values.values()):
        return None
    opset = {"": int(draft.graph.opset)}
    results: list[Any] = list(ReferenceEvaluator(node_message(node), opsets=opset).run(None, values))
    return np.asarray(results[0])
