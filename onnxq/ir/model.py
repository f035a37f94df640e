"""The model on its way through the passes: a graph, and everything about it that the graph cannot hold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import helper

from onnxq.ir.constant import is_plain
from onnxq.ir.copying import copy_graph
from onnxq.ir.external_weights import Outline, outline_of
from onnxq.ir.reads import reads
from onnxq.ir.tensor import TensorInfo
from onnxq.verify.selection import CHOSEN, not_comparable

Properties = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Header:
    """What a model file says about itself besides its graph; onnx-graphsurgeon would drop it.

    Attributes:
        model_version: the author's version number of the model.
        metadata: the model's metadata properties, in their order.
        graph_metadata: those of the graph.
        ends: each input and output as it was described, a serialized message, by name.
        nodes, constants: documentation and metadata properties of those that have any, by name.
        half: the model came in half precision.
    """

    ir_version: int
    producer_name: str = ""
    producer_version: str = ""
    domain: str = ""
    model_version: int = 0
    doc_string: str = ""
    metadata: Properties = ()
    graph_metadata: Properties = ()
    ends: Mapping[str, bytes] = field(default_factory=dict)
    nodes: Mapping[str, tuple[str, Properties]] = field(default_factory=dict)
    constants: Mapping[str, tuple[str, Properties]] = field(default_factory=dict)
    half: bool = False


@dataclass(frozen=True)
class Remark:
    """Something that was left as it is, and the reason in one sentence.

    Attributes:
        node: name of the node, or of the part of the network that is spoken of.
        reason: why, without a full stop.
    """

    node: str
    reason: str


@dataclass(frozen=True)
class Model:
    """A graph with its header, and what the passes recorded on the way; its nodes and tensors do not change any more.

    Attributes:
        graph: its nodes and tensors.
        header: what the file says besides.
        remarks: what was left alone, and why.
        in_float: names of nodes that are not quantized, whatever they are, with the reason.
        raised: tensors whose channels were multiplied together with their upper ends, each by 1 at least, and the end
            that they had in common before.
    """

    graph: gs.Graph
    header: Header
    remarks: tuple[Remark, ...] = ()
    in_float: Mapping[str, str] = field(default_factory=dict)
    raised: Mapping[str, float] = field(default_factory=dict)

    @property
    def opset(self) -> int:
        """Version of the standard operator set."""
        return int(self.graph.opset)

    @cached_property
    def tensors(self) -> Mapping[str, gs.Tensor]:
        """The tensors of the main graph, by name."""
        return self.graph.tensors()  # type: ignore[no-any-return]

    @cached_property
    def largest_tensor(self) -> int:
        """Bytes of the largest computed tensor of the main graph for one sample, as far as sizes are known."""
        sizes = (math.prod(d for d in t.shape if isinstance(d, int)) for t in self.tensors.values() if _is_computed(t))
        return 4 * max(sizes, default=0)

    @cached_property
    def final(self) -> frozenset[str]:
        """Names of the graph's outputs."""
        return frozenset(t.name for t in self.graph.outputs)

    @cached_property
    def read_inside(self) -> frozenset[str]:
        """Names of the tensors that nodes with subgraphs read, outside or inside of these."""
        return frozenset(t.name for node in self.graph.nodes if list(node.subgraphs()) for t in reads(node))

    @cached_property
    def chosen(self) -> frozenset[str]:
        """Names of the tensors whose length or choice of rows depends on what layers make."""
        return frozenset(name for name, why in self.not_comparable.items() if why == CHOSEN)

    @cached_property
    def not_comparable(self) -> Mapping[str, str]:
        """Tensors that two runs may make otherwise without a fault, and why, by name."""
        return not_comparable(outline_of(self.graph).proto.graph)

    @cached_property
    def parts(self) -> dict[frozenset[str], Outline]:
        """Parts of the graph that were written as messages so far, by the names of their nodes."""
        return {}

    @cached_property
    def order(self) -> Mapping[int, int]:
        """Places of the nodes in the graph's order, by their identity."""
        return {id(node): place for place, node in enumerate(self.graph.nodes)}

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The graph's inputs that a caller must feed; those with a default are constants and not among them."""
        return tuple(_info(t) for t in self.graph.inputs if not isinstance(t, gs.Constant))

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The graph's outputs."""
        return tuple(_info(t) for t in self.graph.outputs)

    def constant(self, name: str) -> NDArray[np.float32]:
        """The value of a constant of the main graph as float32.

        Raises:
            KeyError: there is none of that name.
        """
        return np.asarray(self.tensors[name].values, np.float32)

    def value(self, name: str) -> NDArray[Any] | None:
        """The value of a constant of the main graph that numpy knows; None of anything else."""
        tensor = self.tensors.get(name)
        return np.asarray(tensor.values) if tensor is not None and is_plain(tensor) else None

    def with_batch(self, size: int) -> Model:
        """The same model with the first axes of its inputs fixed."""
        graph = copy_graph(self.graph)
        for tensor in graph.inputs:
            if not isinstance(tensor, gs.Constant):
                tensor.shape = [size, *tensor.shape[1:]]
        return replace(self, graph=graph)

    def leaving_in_float(self, nodes: Mapping[str, str]) -> Model:
        """The same model with further nodes that are not quantized; names and reasons."""
        return replace(self, in_float={**nodes, **self.in_float})

    def with_graph(self, graph: gs.Graph, **changes: Any) -> Model:
        """The same model around another graph."""
        return replace(self, graph=graph, **changes)


def _info(tensor: gs.Tensor) -> TensorInfo:
    shape = tensor.shape
    return TensorInfo(
        name=tensor.name,
        dtype=_element_type(tensor),
        shape=None if shape is None else tuple(d if isinstance(d, int) and d > 0 else None for d in shape),
    )


def _is_computed(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, gs.Variable) and tensor.shape is not None


def _element_type(tensor: gs.Tensor) -> np.dtype[Any]:
    """A tensor's element type; that of Python's objects where it is no tensor, or of a type unknown."""
    if getattr(tensor, "type", "tensor_type") != "tensor_type" or tensor.dtype is None or tensor.dtype == 0:
        return np.dtype(object)
    kind = tensor.dtype
    return helper.tensor_dtype_to_np_dtype(kind) if isinstance(kind, int) else np.dtype(kind)
