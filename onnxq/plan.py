"""What will be quantised, at how many bits, where the quantisers stand, and why the rest stays float."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from onnxq.config import Config
from onnxq.errors import UnsupportedError
from onnxq.ir.layer import Layer, find_layers
from onnxq.ir.model import Model, Remark
from onnxq.ir.paths import carried_to, edge_layers, moved_into_subgraph, reaches_float_layer


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
    first, last = edge_layers(model, layers)
    planned = []
    for layer in layers:
        edge = layer.name in first or layer.name in last
        weights, activations = config.edge_weights if edge else config.weights, config.activations
        if edge and config.edge_bits != "same":
            activations = max(activations, config.edge_bits)
        integer = layer.op == "Conv" and activations == 8 and config.integer_weights(weights)
        planned.append(LayerPlan(layer, weights, activations, edge, integer))
    return Plan(tuple(planned), _outputs(model, planned), model.remarks + remarks)


def _outputs(model: Model, planned: Sequence[LayerPlan]) -> tuple[Quantiser, ...]:
    inputs = {p.layer.input: p for p in planned}
    names = {p.layer.name for p in planned}
    quantisers = []
    for plan in planned:
        tensor = plan.layer.activated
        bits = {p.activations for p in planned if p.layer.input == tensor}
        if not plan.integer_kernel or (bits and bits != {8}):
            continue  # a reader with another grid would round a second time, which costs accuracy
        if reaches_float_layer(model, tensor, names):
            continue  # between quantisers, onnxruntime would quantise that layer's weights on its own account
        if moved_into_subgraph(model, tensor):
            continue  # onnxruntime aborts where it would move the DequantizeLinear towards a subgraph
        like = tensor if bits else carried_to(model, tensor, inputs)
        quantisers.append(Quantiser(tensor, like if like and inputs[like].activations == 8 else None))
    return tuple(quantisers)
