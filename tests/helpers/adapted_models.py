"""How adapted models are held against those that were not: integers, and closeness to the float model."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import numpy_helper

from onnxq.verify import verify


def integers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Weights as they are stored; those in float before a quantizer as the codes that it makes of them."""
    stored = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    found = {}
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in stored:
            codes = stored[node.input[0]]
            if codes.dtype != np.int32:  # of biases, which move
                found[node.input[0]] = codes
        if node.op_type == "QuantizeLinear" and node.input[0] in stored:
            real, scale = stored[node.input[0]], stored[node.input[1]]
            axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
            along = [-1 if scale.ndim and i == axis else 1 for i in range(real.ndim)]
            found[node.input[0]] = np.rint(real / scale.reshape(along))
    return found


def require_same_integers(one: onnx.ModelProto, other: onnx.ModelProto) -> None:
    a, b = integers(one), integers(other)
    assert a.keys() == b.keys() and a
    for name, codes in a.items():
        np.testing.assert_array_equal(codes, b[name], err_msg=name)


def decibels(fp32: onnx.ModelProto, made: onnx.ModelProto, x: np.ndarray) -> float:
    """Of the first output, with the proof that all levels give it."""
    report = verify(fp32, made, [{fp32.graph.input[0].name: x}], latency=False)
    assert [check.error for check in report.loads] == [None] * 4
    assert max(check.relative_rms or 0.0 for check in report.loads) < 0.05
    found = report.outputs[0].sqnr_db
    assert found is not None
    return found
