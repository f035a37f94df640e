"""Large constants that came as half floats and were not quantized go back to half floats, behind a Cast.

A half-precision model is widened when it is read (:mod:`onnxq.ir.half_to_float`), so whatever stays in float would take
twice the space it had. A constant is narrowed only where no value changes; onnxruntime works the Cast out once,
when it loads the model.
"""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

LEAST_SIZE = 4096
"""Elements of the smallest constant worth a node."""


def narrow_constants(proto: onnx.ModelProto) -> None:
    """Store large float constants as float16 wherever that is exact, in place."""
    graph = proto.graph
    exposed = {value.name for value in (*graph.input, *graph.output)}
    casts = []
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or tensor.name in exposed or math.prod(tensor.dims) < LEAST_SIZE:
            continue
        values = numpy_helper.to_array(tensor)
        with np.errstate(over="ignore"):
            narrow = values.astype(np.float16)
        if not np.array_equal(narrow.astype(np.float32), values):
            continue
        wide = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(narrow, f"{wide}/float16"))
        casts.append(helper.make_node("Cast", [tensor.name], [wide], f"{wide}/Cast", to=TensorProto.FLOAT))
    if casts:
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in (*casts, *graph.node)]
        del graph.node[:]
        graph.node.extend(nodes)
