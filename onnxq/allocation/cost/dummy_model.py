"""Quantized models whose numbers mean nothing: as large and as fast as solved ones, and made at once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.config import FLOAT_BITS, Config
from onnxq.config.bit_widths import FLOAT, Candidate
from onnxq.config.targets import Target
from onnxq.emit.qdq import emit
from onnxq.emit.windows import write_out_windows
from onnxq.ir.model import Model
from onnxq.ir.save import to_proto
from onnxq.plan.make_plan import make_plan
from onnxq.plan.values import LayerPlan, Plan, TablePlan
from onnxq.quant.solution import LayerSolution, beside_weights
from onnxq.quant.spec import QuantParams, activation_spec, weight_spec
from onnxq.quant.table import TableSolution
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.solve.closed_form.embedding import scale_columns

REACH = np.float32(6.0)
"""Range of every activation: that of a ReLU6, so that values neither vanish nor overflow."""


def placeholder_model(model: Model, config: Config, choice: Mapping[str, Candidate]) -> tuple[onnx.ModelProto, Plan]:
    """The model as it would be emitted for an allocation, with weights rounded to nearest, and its plan.

    Args:
        model: prepared.
        config: the container and the target.
        choice: bits by layer name; everything in float gives the float model.
    """
    if all(candidate == FLOAT for candidate in choice.values()):
        proto = to_proto(model)
        write_out_windows(proto.graph, {})
        return proto, Plan((), (), ())
    plan = make_plan(model, config, choice)
    solutions = {p.layer.name: _solution(model, p, config.rules) for p in plan.layers}
    outputs = {q.tensor: _grid(q.bits, config.rules) for q in plan.outputs}
    tables = {p.table.name: _table(p) for p in plan.tables}
    return emit(model, plan, QuantizedNetwork(solutions, outputs, tables), config), plan


def at_once(open_: Mapping[str, list[Candidate]], candidate: Candidate) -> dict[str, Candidate]:
    """An allocation that gives the candidate to every part that may take it, and the nearest one to the others.

    Args:
        open_: what each part may take, by its name.
        candidate: to be given.
    """
    return {
        name: candidate
        if candidate in taken
        else min(taken, key=lambda c: abs(c.weights - candidate.weights) + abs(c.activations - candidate.activations))
        for name, taken in open_.items()
    }


def _grid(bits: int, target: Target) -> QuantParams:
    spec = activation_spec(bits, symmetric=target.symmetric)
    return QuantParams(spec, np.asarray(REACH / spec.qmax, np.float32), 0)


def _solution(model: Model, planned: LayerPlan, target: Target) -> LayerSolution:
    layer, weight, spec = planned.layer, model.constant(planned.layer.weight), weight_spec(planned.weights)
    scale = np.maximum(_reach(np.abs(weight), planned, target) / spec.qmax, np.float32(1e-6)).astype(np.float32)
    steps = weight / beside_weights(scale, weight.shape, layer.channel_axis)
    integers = np.rint(steps).clip(spec.qmin, spec.qmax).astype(np.int16)
    biased = layer.bias is not None or layer.op != "MatMul"
    return LayerSolution(
        layer=layer.name,
        integers=integers,
        weight=QuantParams(spec, scale),
        bias=np.zeros(layer.channels, np.float32) if biased else None,
        input=None if planned.activations == FLOAT_BITS else _grid(planned.activations, target),
        loss_nearest=0.0,
        loss=0.0,
        status="placeholder",
        seconds=0.0,
    )


def _reach(magnitude: NDArray[np.float32], planned: LayerPlan, target: Target) -> NDArray[np.float32]:
    """Largest magnitude of the weights that share a scale: of a block of inputs, of a channel, or of all."""
    axis = planned.layer.channel_axis
    if planned.block:
        inputs = 1 - axis
        starts = np.arange(0, magnitude.shape[inputs], planned.block)
        return np.asarray(np.maximum.reduceat(magnitude, starts, axis=inputs), np.float32)
    reach = magnitude.max(axis=tuple(i for i in range(magnitude.ndim) if i != axis))
    return np.asarray(reach.max(keepdims=True) if target.layers[planned.layer.op].one_scale else reach, np.float32)


def _table(planned: TablePlan) -> TableSolution:
    rows, columns = planned.table.shape
    blocks = columns // scale_columns(planned.bits, columns, blocked=bool(planned.table.rank))
    integers, scale = np.zeros((rows, columns), np.int8), np.ones((rows, blocks), np.float16)
    return TableSolution(planned.table.weight, planned.bits, integers, scale, np.float32(1))
