"""What is asked of onnx-graphsurgeon beyond its documented interface: the one door, so that a new version is met here.

It keeps the values of a constant as a message until they are read, and has no documented way to see, share or replace
that message. It also prints its remarks on the standard output, where a program may be reading JSON.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues
from onnx_graphsurgeon.logger import G_LOGGER


def import_graph(proto: onnx.ModelProto) -> gs.Graph:
    """The graph of a message; its constants refer to the message until :func:`detach_constants`."""
    with _quiet():
        return gs.import_onnx(proto)


def export_graph(graph: gs.Graph, stand_ins: Sequence[tuple[gs.Constant, onnx.TensorProto]]) -> onnx.ModelProto:
    """A graph as a message.

    Args:
        graph: what to write; constants that were not read yet are written as they came.
        stand_ins: constants of it, and what is written in place of each.
    """
    held = [(constant, constant._values) for constant, _ in stand_ins]
    try:
        for constant, stand_in in stand_ins:
            constant._values = LazyValues(stand_in)
        with _quiet():
            proto: onnx.ModelProto = gs.export_onnx(graph, do_type_check=False)
            return proto
    finally:
        for constant, values in held:
            constant._values = values


def node_message(node: gs.Node) -> onnx.NodeProto:
    """A node as a message."""
    message: onnx.NodeProto = OnnxExporter.export_node(node)
    return message


def constant_message(constant: gs.Constant) -> onnx.TensorProto:
    """A constant as a message: the one that it came in, where it was not read yet."""
    message: onnx.TensorProto = OnnxExporter.export_tensor_proto(constant)
    return message


def is_sparse(constant: gs.Constant) -> bool:
    """Whether a constant came as a sparse tensor and was not read yet."""
    return isinstance(constant._values, SparseValues)


def peek(constant: gs.Constant) -> NDArray[Any]:
    """The values of a constant, which does not keep an array of them where it had none; reading it would."""
    values = constant._values
    return np.asarray(values.load() if isinstance(values, LazyValues) else values)


def copy_constant(constant: gs.Constant) -> gs.Constant:
    """A constant that shares its values and is stored alike."""
    return gs.Constant(constant.name, constant._values, constant.data_location, constant._export_dtype)


def renamed_constant(constant: gs.Constant, name: str) -> gs.Constant:
    """A constant of another name that shares its values."""
    return gs.Constant(name, constant._values)


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


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep onnx-graphsurgeon from printing anything but errors that end a program, for as long as a block lasts."""
    before = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.CRITICAL
    try:
        yield
    finally:
        G_LOGGER.severity = before
