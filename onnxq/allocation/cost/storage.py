"""Bytes that each part takes in the file, names and nodes included: read off emitted models."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import onnx

from onnxq.allocation.choices import Part
from onnxq.allocation.cost.ownership import added_for


def part_bytes(proto: onnx.ModelProto, parts: Sequence[Part], kept: Collection[str]) -> dict[str, int]:
    """Bytes of every part's node, of its constants and of the nodes that were added for it, by its name.

    Args:
        proto: an emitted model, or the float model.
        parts: layers, tables and products.
        kept: names of the float model's own nodes.
    """
    owner = {**added_for(proto, parts, kept), **{part.name: part.name for part in parts}}
    found = dict.fromkeys((part.name for part in parts), 0)
    for stored in (*proto.graph.initializer, *proto.graph.node):
        if stored.name in owner:
            size = stored.ByteSize()
            found[owner[stored.name]] += 1 + _varint(size) + size
    return found


def _varint(value: int) -> int:
    """Bytes of a length in the file."""
    return max(1, -(-value.bit_length() // 7))
