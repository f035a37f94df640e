"""What will be quantised, at how many bits, where the quantisers stand, and why the rest stays float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxq.config import Config
from onnxq.errors import UnsupportedError
from onnxq.ir.layer import LAYER_OPS, Layer, find_layers
from onnxq.ir.model import Model, Remark
from onnxq.ir.stage import reads

TRANSPARENT = ("MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze")
"""Operators that only move values or pick the largest: quantising before them or behind them is the same."""


@dataclass(frozen=True)
class LayerPlan:
    """A layer and its bits.

    Attributes:
        layer: which.
        weights: 2 to 8, or 16.
        activations: 2 to 8, 16, or 32 for an input that stays in float.
        edge: it is a first or a last layer.
        integer_kernel: its output is quantised to 8 bits, so that the runtime computes it on integers.
    """

    layer: Layer
    weights: int
    activations: int
    edge: bool
    integer_kernel: bool


@dataclass(frozen=True)
class Quantiser:
    """A place where a tensor is quantised for everything that reads it.

    Attributes:
        tensor: which.
        like: a layer's input behind operators that only move values, whose grid it shares; None when
            it has a grid of its own.
    """

    tensor: str
    like: str | None


@dataclass(frozen=True)
class Plan:
    """Every layer's bits, the extra 8-bit quantisers on layer outputs, and what stays float."""

    layers: tuple[LayerPlan, ...]
    outputs: tuple[Quantiser, ...]
    remarks: tuple[Remark, ...]


def make_plan(model: Model, config: Config) -> Plan:
    """Decide bits and places for a prepared model.

    Raises:
        UnsupportedError: the model has no layer to quantise; says what stands in the way.
    """
    layers, remarks = find_layers(model)
    if not layers:
        why = "; ".join(f"{r.node}: {r.reason}" for r in remarks[:5])
        raise UnsupportedError(
            "the model has no layer to quantise: "
            + (why or "it holds no Conv, ConvTranspose, Gemm or MatMul with constant weights")
            + "."
        )
    first, last = _edges(model, layers)
    planned = []
    for layer in layers:
        edge = layer.name in first or layer.name in last
        weights, activations = config.weights, config.activations
        if edge and config.edge_bits != "same":
            weights = max(weights, config.edge_bits)
            activations = max(activations, config.edge_bits)
        integer = layer.op == "Conv" and activations == 8 and config.integer_weights(weights)
        planned.append(LayerPlan(layer, weights, activations, edge, integer))
    return Plan(tuple(planned), _outputs(model, planned), model.remarks + remarks)


def _edges(model: Model, layers: Sequence[Layer]) -> tuple[set[str], set[str]]:
    """Names of the layers that no layer precedes, and of those that no layer follows."""
    names = {layer.name for layer in layers}
    behind: dict[str, set[str]] = {}  # tensor -> last layers on the paths to it
    first: set[str] = set()
    followed: set[str] = set()
    for node in model.graph.nodes:
        before = set().union(*(behind.get(t.name, set()) for t in reads(node)))
        if node.name in names:
            followed |= before
            if not before:
                first.add(node.name)
            before = {node.name}
        behind.update({t.name: before for t in node.outputs})
    return first, names - followed


def _outputs(model: Model, planned: Sequence[LayerPlan]) -> tuple[Quantiser, ...]:
    tensors = model.graph.tensors()
    final = {t.name for t in model.graph.outputs}
    inputs = {p.layer.input: p for p in planned}
    names = {p.layer.name for p in planned}
    in_float = {id(n) for n in model.graph.nodes if n.op in LAYER_OPS and n.name not in names}
    quantisers = []
    for plan in planned:
        if not plan.integer_kernel:
            continue
        tensor = tensors[plan.layer.activated]
        bits = {p.activations for p in planned if p.layer.input == tensor.name}
        if bits and bits != {8}:
            continue  # its reader has another grid: a second rounding before it would cost accuracy
        if _reaches(tensor, in_float):
            continue  # between quantisers, onnxruntime would quantise that layer's weights on its own account
        like = tensor.name if bits else _carried_to(tensor, inputs, final)
        quantisers.append(Quantiser(tensor.name, like))
    return tuple(quantisers)


def _reaches(tensor: gs.Tensor, wanted: set[int]) -> bool:
    """Whether one of these nodes reads a tensor, directly or behind operators that only move values."""
    return any(
        id(node) in wanted or (node.op in TRANSPARENT and any(_reaches(t, wanted) for t in node.outputs))
        for node in tensor.outputs
    )


def _carried_to(tensor: gs.Tensor, inputs: dict[str, LayerPlan], final: set[str]) -> str | None:
    """The 8-bit layer input that a tensor's values reach unchanged and alone, if there is one."""
    while tensor.name not in final and len(tensor.outputs) == 1:
        node = tensor.outputs[0]
        if node.op not in TRANSPARENT or node.inputs[0] is not tensor or len(node.outputs) != 1:
            return None
        tensor = node.outputs[0]
        if tensor.name in inputs:
            return tensor.name if inputs[tensor.name].activations == 8 else None
    return None
