"""What is computed of a tensor's elements one by one behind it: the activation function of a layer, in any form."""

from __future__ import annotations

import math
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import onnx_graphsurgeon as gs

from onnxq.ir.layer import LAYER_OPS
from onnxq.ir.model import Model
from onnxq.ir.operators import STANDARD, Trait, operators_with

POINTWISE = operators_with(Trait.POINTWISE)
"""Operators that compute each element of their result from the same element of their operands."""


@dataclass(frozen=True)
class Pointwise:
    """A function of a tensor's elements.

    Attributes:
        tensor: its argument.
        nodes: names of the nodes that compute it, in their order.
        result: what they make; nothing else sees the argument or what is in between.
    """

    tensor: str
    nodes: tuple[str, ...]
    result: str


def pointwise_behind(model: Model, tensor: str) -> Pointwise | None:
    """The longest function of one tensor's elements that all who read the tensor agree on, if layers follow.

    Constants count where they are single numbers: every channel has the same function then. None where there is no
    such function, or no layer behind it: what becomes of a model's outputs is not known, and the scores of a detector
    are compared far below the values that weigh in a squared error.
    """
    start = model.tensors[tensor]
    outside = model.final | model.read_inside
    known: dict[int, gs.Tensor] = {id(start): start}
    left = {id(start): len({id(n) for n in start.outputs})}
    seen = {id(start)}  # known tensors that something reads which is not of the function
    nodes: list[gs.Node] = []
    found: tuple[gs.Tensor, int] | None = None
    waiting = {id(n): n for n in start.outputs}
    heap = [model.order[key] for key in waiting if key in model.order]  # others stand in subgraphs
    heapify(heap)
    while heap:
        node = model.graph.nodes[heappop(heap)]
        if not _is_pointwise(node, known):
            continue
        nodes.append(node)
        made = node.outputs[0]
        known[id(made)] = made
        left[id(made)] = len({id(n) for n in made.outputs})
        seen.add(id(made))
        for key in {id(t) for t in node.inputs if id(t) in known}:
            left[key] -= 1
            if not left[key] and known[key].name not in outside:
                seen.discard(key)
        for reader in made.outputs:
            if id(reader) not in waiting and id(reader) in model.order:
                waiting[id(reader)] = reader
                heappush(heap, model.order[id(reader)])
        if seen == {id(made)}:
            found = made, len(nodes)
    if found is None or not _reaches_layer(found[0]):
        return None
    return Pointwise(tensor, tuple(n.name for n in nodes[: found[1]]), str(found[0].name))


def _reaches_layer(tensor: gs.Tensor) -> bool:
    open_ones, known = [tensor], {id(tensor)}
    while open_ones:
        for node in open_ones.pop().outputs:
            if node.op in LAYER_OPS:
                return True
            open_ones += [t for t in node.outputs if id(t) not in known]
            known |= {id(t) for t in node.outputs}
    return False


def _is_pointwise(node: gs.Node, known: dict[int, gs.Tensor]) -> bool:
    if node.op not in POINTWISE or node.domain not in STANDARD or len(node.outputs) != 1:
        return False
    return all(id(t) in known or _is_number(t) for t in node.inputs if t.name)


def _is_number(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, gs.Constant) and math.prod(tensor.shape) == 1
