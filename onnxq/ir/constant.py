"""What can be said of the constants of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues


def is_plain(tensor: gs.Tensor) -> bool:
    """Whether a tensor is a dense constant of numbers that numpy knows by itself."""
    if not isinstance(tensor, gs.Constant) or isinstance(tensor._values, SparseValues):
        return False
    # onnx-graphsurgeon gives the number of the ONNX type where it finds no numpy type.
    return not isinstance(tensor.dtype, int) and is_plain_dtype(np.dtype(tensor.dtype))


def is_plain_dtype(dtype: np.dtype[Any]) -> bool:
    """Whether numpy itself has a type of numbers, not one of its extensions (int4, bfloat16, float8)."""
    return dtype.isbuiltin == 1 and dtype.kind in "fiub"


def detach_constants(graph: gs.Graph) -> None:
    """Give what a graph took from a message a message of its own, in place.

    A part of a message keeps the whole of it: one forgotten constant would hold the weights of all layers.
    """
    graph.import_domains = [_copy(domain) for domain in graph.import_domains]
    _detach(graph, set())


def _detach(graph: gs.Graph, done: set[int]) -> None:
    attributes = [value for node in graph.nodes for value in node.attrs.values()]
    for tensor in (*graph.tensors().values(), *attributes):
        if isinstance(tensor, gs.Graph):
            _detach(tensor, done)
        elif isinstance(tensor, gs.Constant) and isinstance(tensor._values, LazyValues) and id(tensor) not in done:
            done.add(id(tensor))
            tensor._values = type(tensor._values)(_copy(tensor._values.tensor))


def _copy(message: Any) -> Any:
    own = type(message)()
    own.CopyFrom(message)
    return own
