"""Where a value of a graph comes from, through subgraphs and operators that leave it as it is."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

_PRESERVING: Final = frozenset(
    {
        "Cast",
        "DepthToSpace",
        "Dropout",
        "Expand",
        "Flatten",
        "Gather",
        "Identity",
        "MaxPool",
        "Pad",
        "Reshape",
        "Slice",
        "SpaceToDepth",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
    }
)
"""Operators whose output holds values of their first input only (``Pad`` adds one constant)."""


class Scope:
    """The names of one graph and, through ``outer``, of the graphs around it.

    Args:
        graph: main graph or subgraph.
        folder: where external data lie, None if there are none.
        outer: scope that holds the node that the subgraph belongs to.
    """

    def __init__(self, graph: onnx.GraphProto, folder: Path | None = None, outer: Scope | None = None) -> None:
        self.folder = folder
        self.outer = outer
        self.makers = {output: node for node in graph.node for output in node.output if output}
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.tensors |= {node.output[0]: tensor for node in graph.node if (tensor := _constant(node)) is not None}
        self.types = {value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)}
        self.graph = graph

    def value(self, name: str) -> Value:
        """The value that a node of this graph means by a name."""
        scope = self
        while name not in scope.makers and name not in scope.tensors and name not in scope.types:
            if scope.outer is None:
                break
            scope = scope.outer
        return Value(scope, name)

    def nodes(self) -> Iterator[tuple[Scope, onnx.NodeProto]]:
        """Every node here and in subgraphs, each with the scope that its inputs are read in."""
        for node in self.graph.node:
            yield self, node
            for attribute in node.attribute:
                for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                    yield from Scope(graph, self.folder, self).nodes()


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor of a graph, seen from the scope that defines it."""

    scope: Scope
    name: str

    @property
    def maker(self) -> onnx.NodeProto | None:
        """The node that computes it; None for inputs, initializers and unknown names."""
        return self.scope.makers.get(self.name)

    @property
    def tensor(self) -> onnx.TensorProto | None:
        """The stored tensor, None where it is computed or fed."""
        return self.scope.tensors.get(self.name)

    @property
    def element_type(self) -> int:
        """ONNX element type, 0 where the model does not say."""
        return self.tensor.data_type if self.tensor is not None else self.scope.types.get(self.name, 0)

    def array(self) -> NDArray[Any] | None:
        """The stored values, in their own dtype; None where it is computed or fed."""
        if self.tensor is None:
            return None
        return numpy_helper.to_array(self.tensor, str(self.scope.folder or ""))

    def input(self, index: int) -> Value | None:
        """An input of the maker; None where there is no such input or it is left out."""
        maker = self.maker
        if maker is None or index >= len(maker.input) or not maker.input[index]:
            return None
        return self.scope.value(maker.input[index])

    def origin(self) -> Value:
        """The value before all operators that leave values as they are."""
        value = self
        while (maker := value.maker) is not None and maker.op_type in _PRESERVING:
            before = value.input(0)
            if before is None or (maker.op_type == "Gather" and _is_computed(value.input(1))):
                break
            value = before
        return value


def _is_computed(value: Value | None) -> bool:
    """Whether a value is neither stored nor made of nothing but stored values by operators that leave them."""
    return value is not None and value.origin().tensor is None


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node, None of any other node."""
    if node.op_type != "Constant":
        return None
    for attribute in node.attribute:
        if attribute.name == "value":
            tensor: onnx.TensorProto = attribute.t
            return tensor
        if attribute.name in ("value_float", "value_floats"):
            return numpy_helper.from_array(np.asarray(onnx.helper.get_attribute_value(attribute), np.float32))
        if attribute.name in ("value_int", "value_ints"):
            return numpy_helper.from_array(np.asarray(onnx.helper.get_attribute_value(attribute), np.int64))
    return None
