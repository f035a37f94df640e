"""How large a model is, told without writing it: protobuf can neither write nor measure more than 2 GiB."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import TensorProto, helper
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from onnxq.ir.topological_sort import subgraphs

PROTOBUF_LIMIT = 2**31 - 2**20
"""Bytes above which a model cannot be serialized in one piece (2 GiB, less room for the rest of the message)."""

LITTLE = 2**20
"""Bytes of a tensor that is not worth a look at what it really holds: looking copies it."""

TWO_BITS = {TensorProto.INT2, TensorProto.UINT2}
FOUR_BITS = {TensorProto.INT4, TensorProto.UINT4, TensorProto.FLOAT4E2M1}


def fits_one_message(proto: onnx.ModelProto) -> bool:
    """Whether a model can be serialized in one piece."""
    weights = weight_bytes(proto.graph)
    # Measuring costs a copy, so it is left out where the weights alone decide.
    return weights < PROTOBUF_LIMIT // 4 or (weights < PROTOBUF_LIMIT and proto.ByteSize() < PROTOBUF_LIMIT)


def weight_bytes(graph: onnx.GraphProto) -> int:
    """Bytes of a graph's stored tensors, those of its subgraphs and those in other files included."""
    return sum(tensor_bytes(tensor) for tensor in tensors_of(graph))


def model_bytes(model: str | Path | onnx.ModelProto) -> int:
    """Bytes of a model: the length of its file and of the files its weights are in, each counted once."""
    if isinstance(model, onnx.ModelProto):
        return model.ByteSize() if fits_one_message(model) else weight_bytes(model.graph)
    path = Path(model)
    proto = onnx.load(path, format="protobuf", load_external_data=False)
    files = {ExternalDataInfo(t).location for t in tensors_of(proto.graph) if uses_external_data(t)}
    return sum(file.stat().st_size for file in (path, *(path.parent / name for name in files)))


def without_large_weights(proto: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which large initializers are inputs of their shape: what can be said of the graph can be said of it."""
    light = onnx.ModelProto(ir_version=proto.ir_version, opset_import=proto.opset_import, functions=proto.functions)
    graph = light.graph
    graph.name, graph.doc_string = proto.graph.name, proto.graph.doc_string
    graph.node.extend(proto.graph.node)
    graph.value_info.extend(proto.graph.value_info)
    graph.input.extend(proto.graph.input)
    graph.output.extend(proto.graph.output)
    graph.sparse_initializer.extend(proto.graph.sparse_initializer)
    listed = {value.name for value in proto.graph.input}
    for tensor in proto.graph.initializer:
        if not _is_large(tensor):
            graph.initializer.append(tensor)
        elif tensor.name not in listed:
            graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return light


def put_large_weights_back(light: onnx.ModelProto, proto: onnx.ModelProto) -> None:
    """Make initializers again, in place and in their order, of what :func:`without_large_weights` left out."""
    kept = {t.name: onnx.TensorProto.FromString(t.SerializeToString()) for t in light.graph.initializer}
    large = {t.name: t for t in large_weights(proto)}
    unlisted = large.keys() - {value.name for value in proto.graph.input}
    inputs = light.graph.input
    for index in [i for i, value in enumerate(inputs) if value.name in unlisted][::-1]:
        del inputs[index]
    del light.graph.initializer[:]
    known = [t.name for t in proto.graph.initializer]
    for name in (*known, *(n for n in kept if n not in known)):
        if name in large or name in kept:
            light.graph.initializer.append(large[name] if name in large else kept[name])


def large_weights(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """The initializers that :func:`without_large_weights` leaves out."""
    return (tensor for tensor in proto.graph.initializer if _is_large(tensor))


def _is_large(tensor: onnx.TensorProto) -> bool:
    return _claimed(tensor) >= LITTLE


def tensors_of(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor of a graph: initializers and those in nodes, of its subgraphs too."""
    yield from graph.initializer
    for node in graph.node:
        yield from (a.t for a in node.attribute if a.HasField("t"))
        for subgraph in subgraphs(node):
            yield from tensors_of(subgraph)


def tensor_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes that a tensor takes; what its shape claims is believed only where that is little, or not yet loaded."""
    claimed = _claimed(tensor)
    if claimed < LITTLE or uses_external_data(tensor):
        return claimed
    return len(tensor.raw_data) or 8 * (len(tensor.float_data) + len(tensor.int32_data) + len(tensor.int64_data))


def _claimed(tensor: onnx.TensorProto) -> int:
    elements = max(math.prod(int(d) for d in tensor.dims), 0)
    if tensor.data_type in FOUR_BITS:
        return -(-elements // 2)
    if tensor.data_type in TWO_BITS:
        return -(-elements // 4)
    try:
        return elements * int(helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    except KeyError:  # no element type at all: the checker will say so
        return 0
