"""Operators that onnxruntime runs although the ONNX standard does not know them where they stand.

Graphs of onnxruntime's own tools hold some of its operators in the standard domain, and the standard domain may be
written out. onnx's checker, converter and shape inference take both for a breach of the standard: for as long as they
work, such operators are put in a domain of their own, which they leave alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import onnx
from onnx import defs

from onnxq.ir.operators import Trait, operators_with
from onnxq.ir.topological_sort import subgraphs

HIDDEN = "onnxq.beyond"
"""Domain of the operators while they are hidden."""

RUNTIME = operators_with(Trait.BEYOND)
"""Operators that onnxruntime has in the standard domain, at any version of it."""


def name_standard_domain(proto: onnx.ModelProto) -> None:
    """Write the standard domain as the empty text wherever its name is written out, in place."""
    for graph_nodes in (proto.graph.node, *(function.node for function in proto.functions)):
        for node in _nested(graph_nodes):
            if node.domain == "ai.onnx":
                node.domain = ""
    for imports in (proto.opset_import, *(function.opset_import for function in proto.functions)):
        known = {entry.domain for entry in imports}
        for entry in imports:
            if entry.domain == "ai.onnx" and "" not in known:
                entry.domain = ""


def hide(proto: onnx.ModelProto, opset: int) -> bool:
    """Put operators beyond the standard in a domain of their own, in place; tells whether there are any."""
    found = False
    for node in _nested(proto.graph.node):
        if node.domain == "" and node.op_type in RUNTIME and not defs.has(node.op_type, opset):
            node.domain, found = HIDDEN, True
    if found:
        proto.opset_import.add(domain=HIDDEN, version=1)
    return found


def show(proto: onnx.ModelProto) -> None:
    """Put them back, in place."""
    for node in _nested(proto.graph.node):
        if node.domain == HIDDEN:
            node.domain = ""
    for index in [i for i, entry in enumerate(proto.opset_import) if entry.domain == HIDDEN][::-1]:
        del proto.opset_import[index]


def _nested(nodes: object) -> Iterator[onnx.NodeProto]:
    for node in nodes:  # type: ignore[attr-defined]
        yield node
        for graph in subgraphs(node):
            yield from _nested(graph.node)
