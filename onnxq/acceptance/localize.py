"""Where an emitted model first computes something else than the solver simulated.

The simulation runs stage by stage, so what crosses from one stage into the next is known of both: the same tensors are
read out of the emitted model, unoptimized, and the first that is further off than rounding explains is named. Nothing
is fused there, so reading them out changes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.acceptance.simulation import simulated
from onnxq.data import Feed
from onnxq.ir.model import Model
from onnxq.plan.values import Plan
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.verify import deviation, is_numeric, unoptimized_values


def first_apart(
    model: Model, plan: Plan, network: QuantizedNetwork, emitted: onnx.ModelProto, feed: Feed, room: float
) -> tuple[str, float] | None:
    """The first tensor between two stages that an emitted model computes otherwise, and by how much, relative to it.

    Args:
        model: prepared.
        plan: of its layers.
        network: their solutions.
        emitted: the quantized model.
        feed: one batch.
        room: relative root mean square that rounding explains.
    """
    (expected,) = simulated(model, plan, network, [feed], within=True)
    names = {tensor: _name_in(emitted, tensor, network.outputs) for tensor in expected}
    found = unoptimized_values(emitted, [name for name in names.values() if name], feed)
    for tensor, name in names.items():
        apart = deviation([expected[tensor]], [found[name]]) if name and _floats(expected[tensor]) else 0.0
        if apart > room or not math.isfinite(apart):
            return tensor, apart
    return None


def _name_in(emitted: onnx.ModelProto, tensor: str, outputs: Mapping[str, object]) -> str | None:
    """The tensor that holds a simulated one's values: behind its pair where it is quantized for all who read it."""
    made = {name for node in emitted.graph.node for name in node.output}
    final = tensor in {o.name for o in emitted.graph.output}
    if tensor not in outputs or final:
        return tensor if tensor in made else None
    for _ in range(3):  # perhaps a Clip, then the pair
        tensor = next((n.output[0] for n in emitted.graph.node if n.input and n.input[0] == tensor), "")
        if any(n.op_type == "DequantizeLinear" and tensor in n.output for n in emitted.graph.node):
            return tensor
    return None


def _floats(values: NDArray[np.generic]) -> bool:
    return is_numeric(values) and bool(np.issubdtype(values.dtype, np.floating))
