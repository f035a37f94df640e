"""Bytes that each layer takes in the file, names and nodes included: read off emitted models."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx

from onnxq.allocation.cost.ownership import added_for
from onnxq.ir.layer import Layer


def layer_bytes(proto: onnx.ModelProto, layers: Sequence[Layer], kept: Collection[str]) -> dict[str, int]:
    """Bytes of every layer's node, of its constants and of the nodes that were added for it, by its name.

    Args:
        proto: an emitted model, or the float model.
        layers: in graph order.
        kept: names of the float model's own nodes.
    """
    owner = {**added_for(proto, layers, kept), **{layer.name: layer.name for layer in layers}}
    found = dict.fromkeys((layer.name for layer in layers), 0)
    for part in (*proto.graph.initializer, *proto.graph.node):
        if part.name in owner:
            size = part.ByteSize()
            found[owner[part.name]] += 1 + _varint(size) + size
    return found


def _varint(value: int) -> int:
    """Bytes of a length in the file."""
    return max(1, -(-value.bit_length() // 7))
