"""Operands of their own for products of two activations.

The operands of a product are quantized where they are made, on grids chosen for that product. A tensor that
something else reads as well reaches the product through an Identity: the others keep reading it in float.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxq.ir.activation_matmul import is_product
from onnxq.ir.model import Model
from onnxq.passes.graph_editor import Draft


def own_operands(model: Model) -> Model:
    """Put an Identity before each operand of a product that is a graph input or that others see too."""
    draft = Draft(model)
    nodes = []
    for node in draft.nodes:
        if is_product(node):
            nodes += [
                _own(draft, node, i) for i, t in enumerate(node.inputs) if not t.inputs or not draft.has_one_reader(t)
            ]
        nodes.append(node)
    draft.graph.nodes = nodes
    return draft.finish()


def _own(draft: Draft, node: gs.Node, index: int) -> gs.Node:
    """An Identity that makes an operand for a node alone."""
    tensor = node.inputs[index]
    own = gs.Variable(draft.new_name(f"{node.name}/operand_{index}"), tensor.dtype, tensor.shape)
    node.inputs[index] = own
    return gs.Node("Identity", own.name, inputs=[tensor], outputs=[own])
