"""A model whose large constants stand beside it, the same arrays that the graph holds.

As a message the model would be a second copy of its weights, and could hold 2 GiB at most.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxq.ir import size
from onnxq.ir.constant import is_plain
from onnxq.ir.surgeon import constant_message, export_graph, peek
from onnxq.ir.topological_sort import reads, subgraphs

# The IR version that introduced what an operator set may hold; a model must state at least this one.
IR_OF_OPSET = ((25, 13), (24, 12), (23, 11), (21, 10), (19, 9), (15, 8), (12, 7), (11, 6), (10, 5), (0, 4))

BESIDE = "beside"
"""Name of the file, which does not exist, that the message says its large constants are in."""


@dataclass(frozen=True)
class Outline:
    """A model without its large constants.

    Attributes:
        proto: the model; it says of its large constants that they are in another file.
        constants: what it lacks, by name: the graph's own, and arrays that were added.
    """

    proto: onnx.ModelProto
    constants: dict[str, gs.Constant | NDArray[np.float32]]

    def copied(self) -> Outline:
        """A message of its own beside the same large constants."""
        proto = onnx.ModelProto()
        proto.CopyFrom(self.proto)
        return Outline(proto, dict(self.constants))

    def add(self, name: str, values: NDArray[np.float32]) -> None:
        """Take in one more constant."""
        if values.nbytes >= size.LITTLE:
            self.constants[name] = values
            self.proto.graph.initializer.append(_stub(name, values.dtype, values.shape))
        else:
            self.proto.graph.initializer.append(numpy_helper.from_array(values, name))

    def drop_unread(self) -> None:
        """Take out the constants that nothing reads."""
        graph = self.proto.graph
        read = {name for node in graph.node for name in reads(node)} | {output.name for output in graph.output}
        for index in [i for i, tensor in enumerate(graph.initializer) if tensor.name not in read][::-1]:
            self.constants.pop(graph.initializer[index].name, None)
            del graph.initializer[index]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The values of the constants that the model lacks, by name."""
        return {name: _array(constant) for name, constant in self.constants.items()}

    def filled(self) -> onnx.ModelProto:
        """The model, with the constants that it lacks put into it."""
        for tensor in self.proto.graph.initializer:
            if tensor.name in self.constants:
                tensor.CopyFrom(_message(tensor.name, self.constants[tensor.name]))
        return self.proto


def outline_of(graph: gs.Graph) -> Outline:
    """A graph as a message, and its large constants."""
    ends = {t.name for t in (*graph.inputs, *graph.outputs)}
    large = {t.name: t for t in graph.tensors().values() if t.name not in ends and _is_large(t)}
    proto = export_graph(graph, [(t, _stub(name, t.dtype, t.shape)) for name, t in large.items()])
    _drop_twins(proto.graph, set())
    proto.ir_version = next(ir for opset, ir in IR_OF_OPSET if graph.opset >= opset)
    return Outline(proto, dict(large))


def _drop_twins(graph: onnx.GraphProto, outer: set[str]) -> None:
    """Drop the copies of outer constants that onnx-graphsurgeon writes into every subgraph that reads them."""
    kept = [t for t in graph.initializer if t.name not in outer]
    if len(kept) < len(graph.initializer):
        kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
        del graph.initializer[:]
        graph.initializer.extend(kept)
    for node in graph.node:
        for subgraph in subgraphs(node):
            _drop_twins(subgraph, outer | {t.name for t in graph.initializer})


def _is_large(tensor: gs.Tensor) -> bool:
    return is_plain(tensor) and math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize >= size.LITTLE


def _stub(name: str, dtype: np.dtype[np.generic], shape: Sequence[int]) -> TensorProto:
    stub = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dims=shape)
    stub.data_location = TensorProto.EXTERNAL
    stub.external_data.add(key="location", value=BESIDE)
    return stub


def _array(constant: gs.Constant | NDArray[np.float32]) -> NDArray[np.generic]:
    return np.ascontiguousarray(peek(constant) if isinstance(constant, gs.Constant) else constant)


def _message(name: str, constant: gs.Constant | NDArray[np.float32]) -> TensorProto:
    if isinstance(constant, gs.Constant):
        return constant_message(constant)
    return numpy_helper.from_array(constant, name)
