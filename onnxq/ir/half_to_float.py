"""Half-precision models computed in single precision.

Every float16 or bfloat16 constant and value inside the graph becomes float32; the graph's own inputs
and outputs keep their element types behind a Cast. A quantized model has no use for half precision
inside: its scales would be half floats of three digits, and onnxruntime's CPU kernels widen them anyway.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from onnxq.ir.topological_sort import subgraphs

HALF = {TensorProto.FLOAT16, TensorProto.BFLOAT16}
# Attributes that hold an element type, by operator.
TYPE_ATTRIBUTES = {
    "Cast": "to",
    "EyeLike": "dtype",
    "RandomNormal": "dtype",
    "RandomNormalLike": "dtype",
    "RandomUniform": "dtype",
    "RandomUniformLike": "dtype",
    "Multinomial": "dtype",
    "Bernoulli": "dtype",
}


def widen_half_floats(model: onnx.ModelProto) -> bool:
    """Rewrite a half-precision model to single precision, in place; tells whether it changed."""
    if not _holds_half(model.graph):
        return False
    _widen_graph(model.graph)
    _cast_boundary(model.graph)
    return True


def _holds_half(graph: onnx.GraphProto) -> bool:
    values = (*graph.input, *graph.output, *graph.value_info)
    return (
        any(v.type.tensor_type.elem_type in HALF for v in values)
        or any(t.data_type in HALF for t in graph.initializer)
        or any(a.HasField("t") and a.t.data_type in HALF for n in graph.node for a in n.attribute)
        or any(_holds_half(g) for n in graph.node for g in subgraphs(n))
        or any(a.i in HALF for n in graph.node for a in n.attribute if a.name == TYPE_ATTRIBUTES.get(n.op_type))
    )


def _widen_graph(graph: onnx.GraphProto, *, inner: bool = False) -> None:
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                _widen_tensor(attribute.t)
            if attribute.name == TYPE_ATTRIBUTES.get(node.op_type) and attribute.i in HALF:
                attribute.i = TensorProto.FLOAT
        for subgraph in subgraphs(node):
            _widen_graph(subgraph, inner=True)
    boundary = (*graph.input, *graph.output) if inner else ()
    for value in (*graph.value_info, *boundary):
        if value.type.tensor_type.elem_type in HALF:
            value.type.tensor_type.elem_type = TensorProto.FLOAT


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type in HALF:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float32), tensor.name))


def _cast_boundary(graph: onnx.GraphProto) -> None:
    """Let the inside of the graph read and write float32 copies of its half-precision inputs and outputs."""
    constants = {t.name for t in graph.initializer}
    for value in graph.input:
        if value.name in constants:  # a weight that is listed as an input: its type follows the weight
            if value.type.tensor_type.elem_type in HALF:
                value.type.tensor_type.elem_type = TensorProto.FLOAT
        elif value.type.tensor_type.elem_type in HALF:
            wide = f"{value.name}/float32"
            _rename_reads(graph, value.name, wide)
            graph.node.insert(0, helper.make_node("Cast", [value.name], [wide], f"{wide}/cast", to=TensorProto.FLOAT))
    for value in graph.output:
        if value.type.tensor_type.elem_type in HALF:
            wide = f"{value.name}/float32"
            _rename_reads(graph, value.name, wide)
            for node in graph.node:
                for i, name in enumerate(node.output):
                    if name == value.name:
                        node.output[i] = wide
            half = value.type.tensor_type.elem_type
            graph.node.append(helper.make_node("Cast", [wide], [value.name], f"{wide}/cast", to=half))


def _rename_reads(graph: onnx.GraphProto, old: str, new: str) -> None:
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name == old:
                node.input[i] = new
        for subgraph in subgraphs(node):
            _rename_reads(subgraph, old, new)
