"""Topological order of the nodes of a protobuf graph, without recursion."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import onnx

from onnxq.errors import ModelError


def sort_nodes(graph: onnx.GraphProto) -> None:
    """Put every node of a graph behind the nodes whose outputs it reads, subgraphs included, in place.

    The sort is stable: a graph that is in order stays as it is.

    Raises:
        ModelError: when the nodes form a cycle (one of its nodes is named).
    """
    for node in graph.node:
        for subgraph in subgraphs(node):
            sort_nodes(subgraph)
    maker = {name: i for i, node in enumerate(graph.node) for name in node.output if name}
    needs = [{maker[name] for name in reads(node) if name in maker} for node in graph.node]
    if all(max(need, default=-1) < i for i, need in enumerate(needs)):
        return
    readers: list[list[int]] = [[] for _ in needs]
    for i, need in enumerate(needs):
        for j in need:
            readers[j].append(i)
    waiting = [len(need) for need in needs]
    ready = deque(i for i, count in enumerate(waiting) if count == 0)
    order = []
    while ready:
        order.append(i := ready.popleft())
        for j in readers[i]:
            waiting[j] -= 1
            if waiting[j] == 0:
                ready.append(j)
    if len(order) < len(needs):
        stuck = graph.node[next(i for i, count in enumerate(waiting) if count)]
        raise ModelError(
            f"the graph has a cycle through node {stuck.name or stuck.output[0]!r}; an ONNX graph has none."
        )
    nodes = [graph.node[i] for i in order]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def subgraphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The graphs held by a node's attributes (the bodies of If, Loop and Scan)."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names of every tensor a node reads, those read by its subgraphs from outside included."""
    yield from (name for name in node.input if name)
    for subgraph in subgraphs(node):
        own = {value.name for value in subgraph.input} | {value.name for value in subgraph.initializer}
        for inner in subgraph.node:
            yield from (name for name in reads(inner) if name not in own)
            own.update(inner.output)
        yield from (value.name for value in subgraph.output if value.name not in own)
