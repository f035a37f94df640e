"""What a model file says besides its graph, taken before onnx-graphsurgeon drops it and put back when it is written."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import onnx

from onnxq.ir.model import Header, Properties
from onnxq.ir.topological_sort import subgraphs

OWN = ("tensor_type", "sequence_type")
"""Kinds of values that onnx-graphsurgeon writes back as it read them."""


def read_header(proto: onnx.ModelProto) -> Header:
    """The header of a model as it came."""
    graph = proto.graph
    return Header(
        ir_version=proto.ir_version,
        producer_name=proto.producer_name,
        producer_version=proto.producer_version,
        domain=proto.domain,
        model_version=proto.model_version,
        doc_string=proto.doc_string,
        metadata=_properties(proto.metadata_props),
        graph_metadata=_properties(graph.metadata_props),
        ends={v.name: v.SerializeToString() for v in (*graph.input, *graph.output)},
        nodes=_notes(graph.node),
        constants=_notes(graph.initializer),
    )


def write_header(proto: onnx.ModelProto, header: Header) -> None:
    """Put a header back on a model, in place; the IR version is raised, never lowered."""
    proto.ir_version = max(proto.ir_version, header.ir_version)
    proto.producer_name, proto.producer_version = header.producer_name, header.producer_version
    proto.domain, proto.model_version, proto.doc_string = header.domain, header.model_version, header.doc_string
    _add_properties(proto, header.metadata)
    _add_properties(proto.graph, header.graph_metadata)
    for value in (*proto.graph.input, *proto.graph.output):
        if value.name in header.ends:
            _restore(value, onnx.ValueInfoProto.FromString(header.ends[value.name]))
    for node in proto.graph.node:
        _restore_notes(node, header.nodes.get(node.name))
    write_notes_of_constants(proto, header, ())


def write_notes_of_constants(proto: onnx.ModelProto, header: Header, suffixes: Iterable[str]) -> None:
    """Put the documentation of constants back, in place, also on those of the same name with a suffix behind it."""
    for tensor in proto.graph.initializer if header.constants else ():
        names = [tensor.name, *(tensor.name.removesuffix(s) for s in suffixes if tensor.name.endswith(s))]
        _restore_notes(tensor, next((header.constants[n] for n in names if n in header.constants), None))


def without_foreign_types(graph: onnx.GraphProto) -> None:
    """Take the types of maps and optional values off a graph and its subgraphs, in place: no other type can be read."""
    for index in [i for i, value in enumerate(graph.value_info) if _is_foreign(value)][::-1]:
        del graph.value_info[index]
    for value in (*graph.input, *graph.output):
        if _is_foreign(value):
            value.ClearField("type")
    for node in graph.node:
        for subgraph in subgraphs(node):
            without_foreign_types(subgraph)


def _is_foreign(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.WhichOneof("value")
    if kind == "sequence_type":
        return bool(value.type.sequence_type.elem_type.WhichOneof("value") != "tensor_type")
    return kind is not None and kind not in OWN


def _restore(value: onnx.ValueInfoProto, original: onnx.ValueInfoProto) -> None:
    """What an input or output said of itself; its type and shape too where they were said and still hold."""
    kind = original.type.WhichOneof("value")
    now, before = value.type.tensor_type, original.type.tensor_type
    holds = before.HasField("shape") and before.elem_type == now.elem_type
    if kind not in (None, "tensor_type") or (kind == "tensor_type" and holds):
        value.type.CopyFrom(original.type)
    if original.type.denotation:
        value.type.denotation = original.type.denotation
    if original.doc_string:
        value.doc_string = original.doc_string
    if not value.metadata_props:
        value.metadata_props.extend(original.metadata_props)


def _notes(messages: Iterable[Any]) -> Mapping[str, tuple[str, Properties]]:
    """Documentation and metadata properties, by name, of what has any."""
    found = ((m.name, m.doc_string, _properties(m.metadata_props)) for m in messages)
    return {name: (text, properties) for name, text, properties in found if text or properties}


def _restore_notes(message: Any, notes: tuple[str, Properties] | None) -> None:
    if notes is None:
        return
    text, properties = notes
    if text and not message.doc_string:
        message.doc_string = text
    if not message.metadata_props:
        _add_properties(message, properties)


def _properties(entries: Iterable[Any]) -> Properties:
    return tuple((p.key, p.value) for p in entries)


def _add_properties(message: Any, properties: Properties) -> None:
    del message.metadata_props[:]
    for key, value in properties:
        message.metadata_props.add(key=key, value=value)
