"""A graph being rewritten: nodes and constants are added under names of their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxq.ir.external_weights import Outline
from onnxq.ir.topological_sort import reads, subgraphs


class GraphWriter:
    """A graph with its names at hand.

    Args:
        outline: whose graph is changed in place.
    """

    def __init__(self, outline: Outline) -> None:
        self.outline, self.graph = outline, outline.proto.graph
        self.nodes = {n.name: n for n in self.graph.node}
        self._names = {name for n in self.graph.node for name in (*n.input, *n.output, n.name)}
        self._names |= {t.name for t in (*self.graph.initializer, *self.graph.input, *self.graph.output)}

    def node(self, op: str, inputs: Sequence[str], output: str, *, fixed: bool = False, **attributes: Any) -> str:
        """Add a node; the name of what it makes, which is new unless it is fixed."""
        made = output if fixed else self.fresh(output)
        called = self.fresh(f"{made}/{op}") if fixed else made  # names take space where layers are many
        node = helper.make_node(op, list(inputs), [made], called, **attributes)
        self.graph.node.append(node)
        return made

    def constant(self, base: str, value: NDArray[np.generic]) -> str:
        """Add a constant; its name."""
        name = self.fresh(base)
        self.graph.initializer.append(numpy_helper.from_array(value, name))
        return name

    def fresh(self, name: str) -> str:
        """A name that nothing has, like the one given."""
        unique, count = name, 1
        while unique in self._names:
            count += 1
            unique = f"{name}_{count}"
        self._names.add(unique)
        return unique

    def has_one_reader(self, tensor: str) -> bool:
        """Whether one node alone reads a tensor, and reads it once."""
        return sum(name == tensor for n in self.graph.node for name in reads(n)) == 1


def redirect(node: onnx.NodeProto, old: str, new: str) -> None:
    """Let a node and its subgraphs read another tensor."""
    for i, name in enumerate(node.input):
        if name == old:
            node.input[i] = new
    for graph in subgraphs(node):
        for inner in graph.node:
            redirect(inner, old, new)
