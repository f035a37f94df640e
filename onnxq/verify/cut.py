"""Models cut off behind some tensors: what is left of a graph once all that they do not need has gone."""

from __future__ import annotations

from collections.abc import Iterable

import onnx


class Cutter:
    """The main graph of a model, and what its tensors are made of.

    Args:
        proto: the model.

    Attributes:
        maker: node that computes a tensor, by the tensor's name.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._proto = proto
        nodes = proto.graph.node
        self.maker: dict[str, onnx.NodeProto] = {name: node for node in nodes for name in node.output if name}
        self._reads = {id(node): tuple(_reads(node)) for node in nodes}
        self._order = {name: i for i, node in enumerate(nodes) for name in node.output if name}

    def reads(self, node: onnx.NodeProto) -> tuple[str, ...]:
        """Names that a node of the main graph reads, its subgraphs included."""
        return self._reads[id(node)]

    def before(self, *tensors: str) -> list[str]:
        """Every computed tensor that some tensors are made of, in the order of the graph."""
        found: set[str] = set()
        waiting = list(tensors)
        while waiting:
            node = self.maker.get(waiting.pop())
            for name in () if node is None else self.reads(node):
                if name in self.maker and name not in found:
                    found.add(name)
                    waiting.append(name)
        return sorted(found, key=self._order.__getitem__)

    def live(self) -> set[str]:
        """The inputs of the model and all that is computed from them."""
        live = {i.name for i in self._proto.graph.input} - {t.name for t in self._proto.graph.initializer}
        for node in self._proto.graph.node:
            if live & set(self.reads(node)):
                live |= set(node.output)
        return live

    def cut(self, *tensors: str) -> onnx.ModelProto:
        """The model whose outputs are these computed tensors, and nothing else."""
        graph = self._proto.graph
        needed = {*self.before(*tensors), *tensors}
        nodes = [n for n in graph.node if needed & set(n.output)]
        read = {name for node in nodes for name in self.reads(node)}
        cut = onnx.ModelProto(ir_version=self._proto.ir_version, functions=self._proto.functions)
        cut.opset_import.extend(self._proto.opset_import)
        cut.graph.name = graph.name
        cut.graph.input.extend(graph.input)
        cut.graph.node.extend(nodes)
        cut.graph.initializer.extend(t for t in graph.initializer if t.name in read)
        cut.graph.sparse_initializer.extend(t for t in graph.sparse_initializer if t.values.name in read)
        cut.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors)
        return cut


def _reads(node: onnx.NodeProto) -> Iterable[str]:
    """Names that a node reads, its subgraphs included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for inner in graph.node:
                yield from _reads(inner)
            yield from (output.name for output in graph.output)
