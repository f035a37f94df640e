"""Minima with constants that a grid makes superfluous.

A QuantizeLinear puts everything beyond its last code on that code. Where it reads min(x, b) and no b lies below that
code, it makes the same of x: the minimum is taken out, and an integer kernel takes the layer before it. The bounds are
those of a Clip whose channels were raised (:mod:`onnxq.passes.equalize`).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxq.ir.ceiling import COPYING
from onnxq.ir.topological_sort import reads

SLACK = 0.49
"""Steps by which a bound may lie below the last code: it is rounded to that code all the same."""


def drop_superfluous_bounds(graph: onnx.GraphProto, raised: Collection[str]) -> None:
    """Take out every minimum that raising channels made, and behind which nothing but such grids reads, in place.

    Args:
        graph: with its pairs of QuantizeLinear and DequantizeLinear; its nodes need not be in order.
        raised: tensors that these minima make (:attr:`onnxq.ir.model.Model.raised`). A minimum of the model's own may
            widen what it reads, and stays.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    final = {output.name for output in graph.output}
    makers = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in set(reads(node)):
            readers.setdefault(name, []).append(node)
    for name in raised:
        minimum = makers[name]
        rectified, bounds = minimum.input
        least = numpy_helper.to_array(constants[bounds]).min()
        ends = list(_ends(name, readers, constants, final))
        if len(readers[rectified]) == 1 and all(end is not None and end <= least for end in ends):
            makers[rectified].output[0] = name
            graph.node.remove(minimum)


def _ends(
    tensor: str, readers: dict[str, list[onnx.NodeProto]], constants: dict[str, onnx.TensorProto], final: set[str]
) -> Iterator[float | None]:
    """Where each grid that a tensor is put on ends; None where something else reads it."""
    if tensor in final or tensor not in readers:
        yield None
        return
    for node in readers[tensor]:
        if node.op_type == "QuantizeLinear" and node.input[0] == tensor and len(node.input) > 2:
            scale, zero = (_value(name, constants) for name in node.input[1:3])
            if scale is None or zero is None or scale.ndim:
                yield None
            else:
                yield float(scale) * (np.iinfo(zero.dtype).max - int(zero) - SLACK)
        elif node.op_type == "Clip" and node.input[0] == tensor and len(node.input) > 2:
            high = _value(node.input[2], constants)
            yield None if high is None else float(high)
        elif node.op_type in COPYING and node.domain in ("", "ai.onnx") and len(node.output) == 1:
            yield from _ends(node.output[0], readers, constants, final)
        else:
            yield None


def _value(name: str, constants: dict[str, onnx.TensorProto]) -> NDArray[Any] | None:
    return numpy_helper.to_array(constants[name]) if name in constants else None
