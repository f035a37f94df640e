"""A copy of a graph that shares weights with the original and nothing else.

``gs.Graph.copy`` would not do: it forgets the type of sequence values, shares attribute lists with the
original, gives a subgraph its own twin of every outer constant, and fails on an output that no node makes.
"""

from __future__ import annotations

from typing import Any

import onnx_graphsurgeon as gs

from onnxq.ir.surgeon import copy_constant


def copy_graph(graph: gs.Graph) -> gs.Graph:
    """Copy nodes, tensors, attributes and subgraphs; the arrays behind constants are shared, so replace them whole."""
    return _copy(graph, {})


def _copy(graph: gs.Graph, twins: dict[int, gs.Tensor]) -> gs.Graph:
    """Copy a graph; ``twins`` holds the copies made so far, by the identity of the original."""

    def twin(tensor: gs.Tensor) -> gs.Tensor:
        if id(tensor) not in twins:
            twins[id(tensor)] = _copy_tensor(tensor)
        return twins[id(tensor)]

    inputs = [twin(t) for t in graph.inputs]
    nodes = []
    for node in graph.nodes:
        attributes = {name: _copy_attribute(value, twins) for name, value in node.attrs.items()}
        reads, makes = [twin(t) for t in node.inputs], [twin(t) for t in node.outputs]
        nodes.append(gs.Node(node.op, node.name, attributes, reads, makes, node.domain))
    return gs.Graph(
        nodes=nodes,
        inputs=inputs,
        outputs=[twin(t) for t in graph.outputs],
        name=graph.name,
        doc_string=graph.doc_string,
        opset=graph.opset,
        import_domains=None if graph.import_domains is None else list(graph.import_domains),
        producer_name=graph.producer_name,
        producer_version=graph.producer_version,
        functions=graph.functions,
        ir_version=graph.ir_version,
    )


def _copy_tensor(tensor: gs.Tensor) -> gs.Tensor:
    if isinstance(tensor, gs.Constant):
        return copy_constant(tensor)
    shape = None if tensor.shape is None else list(tensor.shape)
    return gs.Variable(tensor.name, tensor.dtype, shape, tensor.type)


def _copy_attribute(value: Any, twins: dict[int, gs.Tensor]) -> Any:
    if isinstance(value, gs.Graph):
        return _copy(value, twins)
    if isinstance(value, gs.Tensor):
        return _copy_tensor(value)
    return list(value) if isinstance(value, list) else value
