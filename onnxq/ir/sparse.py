"""Sparse constants as dense ones: a layer's weight is dense once it is quantized, and little else reads sparse ones."""

from __future__ import annotations

import math

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxq.errors import UnsupportedError
from onnxq.ir.topological_sort import subgraphs

LARGEST = 2**31
"""Bytes of a dense constant that a sparse one may become."""


def make_dense(graph: onnx.GraphProto) -> None:
    """Write the sparse constants of a graph and of its subgraphs as dense ones, in place.

    Raises:
        UnsupportedError: one would take more than 2 GiB.
    """
    for sparse in graph.sparse_initializer:
        graph.initializer.append(numpy_helper.from_array(_dense(sparse), sparse.values.name))
    del graph.sparse_initializer[:]
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.name == "sparse_value" and node.op_type == "Constant":
                values = _dense(attribute.sparse_tensor)
                attribute.Clear()
                attribute.name, attribute.type = "value", onnx.AttributeProto.TENSOR
                attribute.t.CopyFrom(numpy_helper.from_array(values, node.output[0]))
        for subgraph in subgraphs(node):
            make_dense(subgraph)


def _dense(sparse: onnx.SparseTensorProto) -> NDArray[np.generic]:
    values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
    shape = tuple(int(d) for d in sparse.dims)
    if math.prod(shape) * values.itemsize > LARGEST:
        raise UnsupportedError(
            f"sparse constant {sparse.values.name!r} of shape {list(shape)} would take more than 2 GiB as a dense one: "
            "leave it out, or write it as what it is computed from."
        )
    dense = np.zeros(shape, values.dtype)
    if places.ndim == 2:  # one row of coordinates a value
        dense[tuple(places.T)] = values
    else:
        dense.reshape(-1)[places] = values
    return dense
