"""A model whose large constants stand beside it, the same arrays that the graph holds.

As a message the model would be a second copy of its weights, and could hold 2 GiB at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnxq.ir import size
from onnxq.ir.constant import is_plain

BESIDE = "beside"
"""Name of the file, which does not exist, that the message says its large constants are in."""


@dataclass(frozen=True)
class Outline:
    """A model without its large constants.

    Attributes:
        proto: the model; it says of its large constants that they are in another file.
        constants: the graph's own, by name; more than those that the model says so of, where some were taken out of it.
    """

    proto: onnx.ModelProto
    constants: Mapping[str, gs.Constant]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The values of the constants that the model lacks, by name."""
        missing = (t.name for t in self.proto.graph.initializer if t.name in self.constants)
        return {name: _array(self.constants[name]) for name in missing}

    def filled(self) -> onnx.ModelProto:
        """The model, with the constants that it lacks put into it."""
        for tensor in self.proto.graph.initializer:
            if tensor.name in self.constants:
                tensor.CopyFrom(OnnxExporter.export_tensor_proto(self.constants[tensor.name]))
        return self.proto


@contextmanager
def outlined(graph: gs.Graph) -> Iterator[dict[str, gs.Constant]]:
    """Let a graph be exported without its large constants for as long as the block lasts; they are given by name."""
    ends = {t.name for t in (*graph.inputs, *graph.outputs)}
    large = {t.name: t for t in graph.tensors().values() if t.name not in ends and _is_large(t)}
    held = {name: tensor._values for name, tensor in large.items()}
    constants = {name: gs.Constant(name, t._values, t.data_location, t._export_dtype) for name, t in large.items()}
    try:
        for tensor in large.values():
            tensor._values = LazyValues(_stub(tensor.name, tensor.dtype, tensor.shape))
        yield constants
    finally:
        for name, tensor in large.items():
            tensor._values = held[name]


def _is_large(tensor: gs.Tensor) -> bool:
    return is_plain(tensor) and math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize >= size.LITTLE


def _stub(name: str, dtype: np.dtype[np.generic], shape: Sequence[int]) -> TensorProto:
    stub = TensorProto(name=name, data_type=helper.np_dtype_to_tensor_dtype(np.dtype(dtype)), dims=shape)
    stub.data_location = TensorProto.EXTERNAL
    stub.external_data.add(key="location", value=BESIDE)
    return stub


def _array(tensor: gs.Constant) -> NDArray[np.generic]:
    values = tensor._values.load() if isinstance(tensor._values, LazyValues) else tensor._values
    return np.ascontiguousarray(values)
