"""Who comes before whom in a graph: first and last layers, and what a tensor reaches."""

from __future__ import annotations

from collections.abc import Container, Sequence

import onnx_graphsurgeon as gs

from onnxq.ir.layer import LAYER_OPS, Layer
from onnxq.ir.model import Model
from onnxq.ir.stage import read_by_subgraphs, reads

TRANSPARENT = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
"""Operators that only move values or pick the largest: quantising before them or behind them is the same."""

MOVING = (*TRANSPARENT, "Slice", "Identity", "Cast", "Dropout")
"""Operators past which onnxruntime moves a DequantizeLinear, or which it takes out."""

CARRYING = (*MOVING, "Relu", "Clip", "Pad", "Concat", "Split")
"""Operators whose outputs hold values of their inputs as they are, beside limits and constants."""


def edge_layers(model: Model, layers: Sequence[Layer]) -> tuple[set[str], set[str]]:
    """Names of the layers that no layer precedes, and of those that no layer follows."""
    names = {layer.name for layer in layers}
    behind: dict[str, set[str]] = {}  # tensor -> last layers on the paths to it
    first: set[str] = set()
    followed: set[str] = set()
    for node in model.graph.nodes:
        before = set().union(*(behind.get(t.name, set()) for t in reads(node)))
        if node.name in names:
            followed |= before
            if not before:
                first.add(node.name)
            before = {node.name}
        behind.update({t.name: before for t in node.outputs})
    return first, names - followed


def reaches_float_layer(model: Model, tensor: str, layers: Container[str]) -> bool:
    """Whether a node that could be a layer but is none of ``layers`` reads a tensor's values."""
    in_float = {id(n) for n in model.graph.nodes if n.op in LAYER_OPS and n.name not in layers}
    return _reaches(model.graph.tensors()[tensor], in_float)


def moved_into_subgraph(model: Model, tensor: str) -> bool:
    """Whether a subgraph reads what operators that only move values make of a tensor."""
    return _moved_into(model.graph.tensors()[tensor], read_by_subgraphs(model))


def carried_to(model: Model, tensor: str, inputs: Container[str]) -> str | None:
    """The layer input that a tensor's values reach unchanged and alone, if there is one.

    Args:
        model: prepared.
        tensor: where to start.
        inputs: names of the tensors that layers read.
    """
    at, final = model.graph.tensors()[tensor], {t.name for t in model.graph.outputs}
    while at.name not in final and len(at.outputs) == 1:
        node = at.outputs[0]
        if node.op not in TRANSPARENT or node.inputs[0] is not at or len(node.outputs) != 1:
            return None
        at = node.outputs[0]
        if at.name in inputs:
            return str(at.name)
    return None


def carried_into(model: Model, tensor: str, wanted: Container[str]) -> set[str]:
    """Those of some tensors that a tensor's values reach first, moved, picked or clipped but not computed with."""
    open_ones, found = [model.graph.tensors()[tensor]], set[str]()
    while open_ones:
        at = open_ones.pop()
        if at.name in wanted:
            found.add(str(at.name))
        else:
            open_ones += [made for node in at.outputs if node.op in CARRYING for made in node.outputs]
    return found


def behind_clipping(model: Model, tensor: str) -> str:
    """What a ReLU or Clip makes of a tensor that nothing else reads; otherwise the tensor itself."""
    readers = list(model.graph.tensors()[tensor].outputs)
    only = len(readers) == 1 and tensor not in {t.name for t in model.graph.outputs}
    return str(readers[0].outputs[0].name) if only and readers[0].op in ("Relu", "Clip") else tensor


def _reaches(tensor: gs.Tensor, wanted: set[int]) -> bool:
    """Whether one of these nodes reads a tensor, directly or behind operators that only move values."""
    return any(
        id(node) in wanted or (node.op in MOVING and any(_reaches(t, wanted) for t in node.outputs))
        for node in tensor.outputs
    )


def _moved_into(tensor: gs.Tensor, wanted: set[str]) -> bool:
    """Whether operators that only move values, at least one of them, lead from a tensor to one of these names."""
    return any(
        node.op in MOVING and any(t.name in wanted or _moved_into(t, wanted) for t in node.outputs)
        for node in tensor.outputs
    )
