"""Which layer, table or product a node or constant of an emitted model stands for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import onnx

from onnxq.allocation.choices import Part
from onnxq.ir.layer import Layer
from onnxq.ir.table import Table


def added_for(proto: onnx.ModelProto, parts: Sequence[Part], kept: Collection[str]) -> dict[str, str]:
    """The part that each constant and each added node serves, by its name.

    What stands before a part (its weights, bias and input quantizers) is the part's, the first one's where
    several read it; a quantizer that leads to none belongs to the layer that makes its tensor.

    Args:
        proto: an emitted model, or the float model.
        parts: layers, tables and products, each kind in graph order.
        kept: names of the float model's own nodes.
    """
    makers = {name: node for node in proto.graph.node for name in node.output}
    constants = {t.name for t in proto.graph.initializer}
    nodes = {node.name: node for node in proto.graph.node}
    owner: dict[str, str] = {}
    for part in parts:
        ends = [nodes[part.name]] if part.name in nodes else []  # the Gather of a quantised table is gone
        if isinstance(part, Table) or (isinstance(part, Layer) and part.bias and part.op == "MatMul"):
            ends.append(makers[part.output])
        owner |= {node.name: part.name for node in ends if node.name not in kept}
        todo = [name for node in ends for name in node.input]
        while todo:
            name = todo.pop()
            maker = makers.get(name)
            if name in constants:
                owner.setdefault(name, part.name)
            elif maker is not None and maker.name not in kept and maker.name not in owner:
                owner[maker.name] = part.name
                todo += maker.input
    _add_behind(proto, [part for part in parts if isinstance(part, Layer)], kept, owner)
    return owner


def computed_for(proto: onnx.ModelProto, parts: Sequence[Part], kept: Collection[str]) -> dict[str, str]:
    """The part in whose time each node runs: what was added for it, itself, and the activation that it may take in.

    onnxruntime names some of the nodes it fuses after the tensor they make, so the parts' tensors are listed too.
    """
    makers = {name: node.name for node in proto.graph.node for name in node.output}
    owner = added_for(proto, parts, kept)
    for part in parts:
        made = (part.output, part.activated) if isinstance(part, Layer) else (part.output,)
        owner |= {makers[t]: part.name for t in made if t in makers and makers[t] in kept}
        owner |= dict.fromkeys((part.name, *made), part.name)
    return owner


def _add_behind(proto: onnx.ModelProto, layers: Sequence[Layer], kept: Collection[str], owner: dict[str, str]) -> None:
    """Give the quantizers that lead to no layer, with their constants, to the layer before them."""
    constants = {t.name for t in proto.graph.initializer}
    before: dict[str, str] = {t: layer.name for layer in layers for t in (layer.output, layer.activated)}
    before |= _renamed(proto, kept, before)
    for node in proto.graph.node:
        if node.name in kept or node.name in owner:
            continue
        layer = before.get(node.input[0])
        if layer is not None:
            owner[node.name] = layer
            before |= dict.fromkeys(node.output, layer)
            for name in node.input:
                if name in constants:
                    owner.setdefault(name, layer)


def _renamed(proto: onnx.ModelProto, kept: Collection[str], before: Mapping[str, str]) -> dict[str, str]:
    """Tensors of layers whose names a quantizer took over because they are outputs of the model."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    found = {}
    for tensor, layer in before.items():
        node = makers.get(tensor)
        while node is not None and node.name not in kept and node.input:
            found[node.input[0]] = layer
            node = makers.get(node.input[0])
    return found
