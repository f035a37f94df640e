"""Products of two activations: the MatMul nodes without weights, such as attention scores and context."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.ir.model import Model
from onnxq.ir.operators import STANDARD, Trait, operators_with

DRAWING = operators_with(Trait.DRAWS)


@dataclass(frozen=True)
class Product:
    """A MatMul of two computed tensors.

    Attributes:
        name: the node's name.
        left, right: names of the tensors it multiplies, both computed by nodes and read by nothing else.
        output: name of the tensor it makes.
    """

    name: str
    left: str
    right: str
    output: str


def find_products(model: Model) -> tuple[Product, ...]:
    """The products of two activations of a prepared model whose operands are their own, in graph order."""
    kept = {t.name for t in model.graph.outputs}
    kept |= {t.name for n in model.graph.nodes for g in n.subgraphs(recursive=True) for i in g.nodes for t in i.inputs}
    live = _live(model)
    return tuple(
        Product(node.name, node.inputs[0].name, node.inputs[1].name, node.outputs[0].name)
        for node in model.graph.nodes
        if is_product(node) and node.name not in model.in_float and all(_is_own(t, kept) for t in node.inputs)
        if all(id(t) in live for t in node.inputs)
    )


def is_product(node: gs.Node) -> bool:
    """Whether a node multiplies two tensors of which neither is a constant, in single precision."""
    return (
        node.op == "MatMul"
        and node.domain in STANDARD
        and all(isinstance(t, gs.Variable) for t in node.inputs)
        and all(t.dtype in (None, np.float32) for t in node.inputs)
    )


def _live(model: Model) -> set[int]:
    """Tensors that depend on an input of the network, by identity; others are the same in every run."""
    live = {id(t) for t in model.graph.inputs if isinstance(t, gs.Variable)}
    for node in model.graph.nodes:
        drawn = node.op in DRAWING and node.domain in STANDARD
        if drawn or list(node.subgraphs()) or any(id(t) in live for t in node.inputs):
            live.update(id(t) for t in node.outputs)
    return live


def _is_own(tensor: gs.Tensor, kept: set[str]) -> bool:
    return bool(tensor.inputs) and len(tensor.outputs) == 1 and tensor.name not in kept
