"""The value of what a graph makes of nothing but stored tensors, such as weights that are unpacked on the way."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxq.verify.session import start_session
from onnxq.verify.value_origin import Value

_GRIDS: Final = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
"""Operators that put values on a grid or take them off it: what stands behind them is not what is stored."""


class ConstantFolder:
    """Works out constants of a model, by onnxruntime without optimizations.

    Args:
        proto: the model, functions inlined.
    """

    def __init__(self, proto: onnx.ModelProto) -> None:
        self._ir_version, self._opsets = proto.ir_version, list(proto.opset_import)

    def array(self, value: Value) -> NDArray[Any] | None:
        """A stored tensor, or what is made of stored tensors alone; None of anything else."""
        if value.tensor is not None:
            return value.array()
        nodes: dict[str, onnx.NodeProto] = {}
        stored: dict[str, Value] = {}
        if not _collect(value, nodes, stored):
            return None
        graph = helper.make_graph(
            [node for name, node in nodes.items() if name == node.output[0]],
            "constant",
            [],
            [helper.make_empty_tensor_value_info(value.name)],
            [numpy_helper.from_array(np.asarray(v.array()), name) for name, v in stored.items()],
        )
        model = helper.make_model(graph, opset_imports=self._opsets, ir_version=self._ir_version)
        try:
            return np.asarray(start_session(model.SerializeToString(), "disable").run(None, {})[0])
        except Exception:  # a model that does not run has its sentence in the level checks
            return None


def _collect(value: Value, nodes: dict[str, onnx.NodeProto], stored: dict[str, Value]) -> bool:
    """Enter the nodes that make a value, in an order to run them, and what they read; False where that is not all."""
    if value.name in nodes or value.name in stored:
        return True
    if value.tensor is not None:
        stored[value.name] = value
        return True
    maker = value.maker
    if maker is None or maker.op_type in _GRIDS or any(a.HasField("g") or a.graphs for a in maker.attribute):
        return False
    if not all(_collect(value.scope.value(name), nodes, stored) for name in maker.input if name):
        return False
    nodes |= dict.fromkeys(maker.output, maker)
    return True
