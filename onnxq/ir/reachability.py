"""Who comes before whom in a graph: first and last layers, and what a tensor reaches."""

from __future__ import annotations

from collections.abc import Container, Sequence

from onnxq.ir.layer import LAYER_OPS, Layer
from onnxq.ir.model import Model
from onnxq.ir.operators import Trait, operators_with
from onnxq.ir.reads import reads

TRANSPARENT = operators_with(Trait.REARRANGES, Trait.PICKS)
"""Operators before and behind which quantizing is the same."""

PASSED = operators_with(Trait.PASSED)
"""Operators past which onnxruntime moves a DequantizeLinear, or which it takes out."""

CARRYING = operators_with(Trait.MOVES, Trait.PICKS, Trait.PARTS, Trait.CONVERTS, Trait.LIMITS, Trait.PADS)
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


def float_layers(model: Model, layers: Container[str]) -> set[int]:
    """The nodes that could be layers but are none of ``layers``, by identity."""
    return {id(n) for n in model.graph.nodes if n.op in LAYER_OPS and n.name not in layers}


def reaches(model: Model, tensor: str, wanted: Container[int]) -> bool:
    """Whether one of some nodes reads a tensor, directly or behind operators that only move values."""
    open_ones, known = [model.tensors[tensor]], {tensor}
    while open_ones:
        for node in open_ones.pop().outputs:
            if id(node) in wanted:
                return True
            if node.op in PASSED:
                open_ones += [t for t in node.outputs if t.name not in known]
                known.update(t.name for t in node.outputs)
    return False


def moved_into_subgraph(model: Model, tensor: str) -> bool:
    """Whether a subgraph reads what operators that only move values make of a tensor."""
    inner = model.read_inside
    open_ones = [model.tensors[tensor]] if inner else []
    while open_ones:
        made = [t for node in open_ones.pop().outputs if node.op in PASSED for t in node.outputs]
        if any(t.name in inner for t in made):
            return True
        open_ones += made
    return False


def carried_to(model: Model, tensor: str, inputs: Container[str]) -> str | None:
    """The layer input that a tensor's values reach unchanged and alone, if there is one.

    Args:
        model: prepared.
        tensor: where to start.
        inputs: names of the tensors that layers read.
    """
    at = model.tensors[tensor]
    while at.name not in model.final and len(at.outputs) == 1:
        node = at.outputs[0]
        if node.op not in TRANSPARENT or node.inputs[0] is not at or len(node.outputs) != 1:
            return None
        at = node.outputs[0]
        if at.name in inputs:
            return str(at.name)
    return None


def carried_into(model: Model, tensor: str, wanted: Container[str]) -> set[str]:
    """Those of some tensors that a tensor's values reach first, moved, picked or clipped but not computed with."""
    open_ones, found = [model.tensors[tensor]], set[str]()
    while open_ones:
        at = open_ones.pop()
        if at.name in wanted:
            found.add(str(at.name))
        else:
            open_ones += [made for node in at.outputs if node.op in CARRYING for made in node.outputs]
    return found


def behind_clipping(model: Model, tensor: str) -> str:
    """What a ReLU or Clip makes of a tensor that nothing else reads; otherwise the tensor itself."""
    readers = list(model.tensors[tensor].outputs)
    only = len(readers) == 1 and tensor not in model.final
    if not only or readers[0].op not in ("Relu", "Clip"):
        return tensor
    clipped = readers[0].outputs[0]
    raised = [str(t.name) for node in clipped.outputs for t in node.outputs if t.name in model.raised]
    return raised[0] if raised else str(clipped.name)
