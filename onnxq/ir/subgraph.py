"""Some nodes of a model as a model of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from onnxq.ir.external_weights import Outline, outline_of
from onnxq.ir.model import Model

Kind: TypeAlias = np.dtype[Any] | onnx.TypeProto
"""The element type of a tensor, or the type of what is no tensor."""


def kind_of(value: Any) -> Kind:
    """The type of a value that onnxruntime gave back: an array, a list of them, or a list of mappings."""
    if isinstance(value, np.ndarray):
        dtype: np.dtype[Any] = value.dtype
        return dtype
    kind = onnx.TypeProto()
    first = value[0] if isinstance(value, list) and value else np.zeros(0, np.float32)
    if isinstance(first, dict):
        key, number = next(iter(first.items()), (0, 0.0))
        inner = kind.sequence_type.elem_type.map_type
        inner.key_type = onnx.TensorProto.STRING if isinstance(key, str) else onnx.TensorProto.INT64
        whole = isinstance(number, int)
        inner.value_type.CopyFrom(_type_of(np.dtype(np.int64 if whole else np.float32)))
    else:
        kind.sequence_type.elem_type.CopyFrom(_type_of(np.asarray(first).dtype))
    return kind


def _type_of(kind: Kind) -> onnx.TypeProto:
    if isinstance(kind, onnx.TypeProto):
        return kind
    text = kind.kind in "OUS"
    return helper.make_tensor_type_proto(
        onnx.TensorProto.STRING if text else helper.np_dtype_to_tensor_dtype(kind), shape=None
    )


def part_model(model: Model, nodes: Collection[str], name: str) -> Outline:
    """Nodes with their constants; what goes in and out of them is given by :func:`set_ends`.

    A part is written once for each model, and copied: its large constants are not in the message.

    Args:
        model: the whole model.
        nodes: names of those wanted.
        name: of the new graph.
    """
    wanted = frozenset(nodes)
    if wanted not in model.parts:
        model.parts[wanted] = _written(model, wanted, name)
    return model.parts[wanted].copied()


def _written(model: Model, nodes: frozenset[str], name: str) -> Outline:
    graph = gs.Graph(
        nodes=[node for node in model.graph.nodes if node.name in nodes],
        opset=model.graph.opset,
        import_domains=model.graph.import_domains,
        name=name,
    )
    return outline_of(graph)


def set_ends(proto: onnx.ModelProto, inputs: Mapping[str, Kind], outputs: Iterable[str]) -> None:
    """Name what a part reads, with its element types, and what it gives back; the shapes it knew go."""
    del proto.graph.value_info[:]
    proto.graph.input.extend(onnx.ValueInfoProto(name=name, type=_type_of(kind)) for name, kind in inputs.items())
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
