"""What a node reads, inside and outside of its subgraphs."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_graphsurgeon as gs


def reads(node: gs.Node) -> Iterator[gs.Tensor]:
    """Tensors that a node reads, those its subgraphs read from outside included; constants too."""
    yield from (t for t in node.inputs if t.name)
    for graph in node.subgraphs():
        inside = {t.name for n in graph.nodes for t in n.outputs} | {t.name for t in graph.inputs}
        for inner in graph.nodes:
            yield from (t for t in reads(inner) if t.name not in inside)
        yield from (t for t in graph.outputs if t.name not in inside)
