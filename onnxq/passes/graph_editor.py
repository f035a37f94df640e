"""A pass at work: its own copy of the graph, and the few questions and edits that every rewrite needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxq.ir.constant import is_plain
from onnxq.ir.copying import copy_graph
from onnxq.ir.model import Model, Remark


class Draft:
    """The copy of a model that one pass rewrites; `finish` makes a model of it.

    Attributes:
        graph: the copy; the pass may change its nodes and tensors.
    """

    def __init__(self, model: Model) -> None:
        self.graph = copy_graph(model.graph)
        self._model = model
        self._remarks: list[Remark] = []
        self._dropped: set[int] = set()
        self._outputs = {t.name for t in self.graph.outputs}
        self._overridable = {t.name for t in self.graph.inputs if isinstance(t, gs.Constant)}
        self._inner = reads_of_subgraphs(self.graph)
        self._names: set[str] = set()

    @property
    def nodes(self) -> list[gs.Node]:
        """The nodes of the main graph that are still there, in topological order."""
        return [node for node in self.graph.nodes if id(node) not in self._dropped]

    def value(self, tensor: gs.Tensor) -> NDArray[Any] | None:
        """The value of a constant that no caller can override; None for anything else.

        Nor is there one for element types that numpy lacks and for sparse tensors: reading those would
        keep onnx-graphsurgeon from writing them back.
        """
        if tensor.name in self._overridable or not is_plain(tensor):
            return None
        return np.asarray(tensor.values)

    def is_known(self, tensor: gs.Tensor) -> bool:
        """Whether `value` has something for a tensor."""
        return tensor.name not in self._overridable and is_plain(tensor)

    def why_no_value(self, tensor: gs.Tensor) -> str:
        """Why `value` has nothing for a tensor, to stand behind "because" in a remark."""
        if tensor.name in self._overridable:
            return f"{tensor.name!r} is also a graph input, which a caller may override"
        if isinstance(tensor, gs.Constant):
            return f"{tensor.name!r} is sparse or of an element type that onnxq does not rewrite"
        return f"{tensor.name!r} is computed, not a constant"

    def is_output(self, tensor: gs.Tensor) -> bool:
        """Whether a tensor is an output of the graph."""
        return tensor.name in self._outputs

    def is_read_inside(self, tensor: gs.Tensor) -> bool:
        """Whether a subgraph (a branch of If, the body of Loop or Scan) reads a tensor of the main graph."""
        return tensor.name in self._inner

    def sees_only_nodes(self, tensor: gs.Tensor) -> bool:
        """Whether the nodes of the main graph are the only ones to see a tensor."""
        return not (self.is_output(tensor) or self.is_read_inside(tensor))

    def has_one_reader(self, tensor: gs.Tensor) -> bool:
        """Whether one node of the main graph reads a tensor, once, and nothing else sees it."""
        return len(tensor.outputs) == 1 and self.sees_only_nodes(tensor)

    def set_constant(self, node: gs.Node, index: int, values: NDArray[Any], name: str) -> None:
        """Give a node's input a constant value, without touching what other nodes read.

        Args:
            node: the node.
            index: which of its inputs; inputs left out before it become empty ones.
            values: the constant.
            name: its name where the node had none there; a constant keeps its name, with
                the node's name behind it if others read it too.
        """
        while len(node.inputs) <= index:
            node.inputs.append(gs.Variable.empty())
        current = node.inputs[index]
        if isinstance(current, gs.Constant):
            if self.has_one_reader(current) and current.name not in self._overridable:
                current.values = values
                return
            name = f"{current.name}/{node.name}"
        node.inputs[index] = gs.Constant(self.new_name(name), values)

    def drop(self, node: gs.Node) -> None:
        """Take a node out of the graph."""
        node.inputs.clear()
        node.outputs.clear()
        self._dropped.add(id(node))

    def replace_output(self, node: gs.Node, last: gs.Node) -> None:
        """Let a node make the first output of `last`, which is dropped: the name that others read survives."""
        output = last.outputs[0]
        self.drop(last)
        node.outputs[0] = output

    def remark(self, node: gs.Node, reason: str) -> None:
        """Record why a rewrite left a node as it is."""
        self._remarks.append(Remark(node.name, reason))

    def finish(self, **changes: Any) -> Model:
        """The rewritten model."""
        self.graph.nodes = self.nodes
        return self._model.with_graph(self.graph, remarks=(*self._model.remarks, *self._remarks), **changes)

    def new_name(self, name: str) -> str:
        """A name that no tensor and no node of the graph has yet: the given one, or that with a number behind it."""
        if not self._names:
            self._names = {*self.graph.tensors(), *self._inner, *self._outputs, *(n.name for n in self.graph.nodes)}
        free = name
        count = 1
        while free in self._names:
            count += 1
            free = f"{name}_{count}"
        self._names.add(free)
        return free


def op_of(node: gs.Node) -> str:
    """The operator of a node of the standard domain; an empty text for operators of other makers."""
    return str(node.op) if node.domain in (None, "", "ai.onnx") else ""


def reads_of_subgraphs(graph: gs.Graph) -> set[str]:
    """Names of every tensor that a subgraph reads or hands out; its own ones do no harm, as names are unique."""
    names: set[str] = set()
    for node in graph.nodes:
        names.update(reads_inside(node))
    return names


def reads_inside(node: gs.Node) -> set[str]:
    """Names of every tensor that the subgraphs of one node read or hand out."""
    names: set[str] = set()
    for subgraph in node.subgraphs(recursive=True):
        names.update(t.name for inner in subgraph.nodes for t in inner.inputs)
        names.update(t.name for t in subgraph.outputs)
    return names
