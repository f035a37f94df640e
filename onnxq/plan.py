"""What will be quantised, at how many bits, where the quantisers stand, and why the rest stays float."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from onnxq.candidate import FLOAT, Candidate
from onnxq.config import Config
from onnxq.errors import ConfigError, UnsupportedError
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


def make_plan(model: Model, config: Config, choice: Mapping[str, Candidate] | None = None) -> Plan:
    """Decide bits and places for a prepared model.

    Args:
        model: prepared.
        config: the bits of all layers, and the container of the weights.
        choice: each layer's own bits, by its name, in place of the configuration's.

    Raises:
        UnsupportedError: the model has no layer to quantise; says what stands in the way.
        ConfigError: the choice is not of this model's layers.
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
    edges = first | last
    if choice is None:
        choice = {la.name: uniform_bits(config, edge=la.name in edges) for la in layers}
    _require_matching(choice, [la.name for la in layers])
    planned = []
    for layer in layers:
        bits = choice[layer.name]
        if bits == FLOAT:
            remarks += (Remark(layer.name, "left in float by the allocation"),)
            continue
        integer = layer.op == "Conv" and bits.activations == 8 and config.integer_weights(bits.weights)
        planned.append(LayerPlan(layer, bits.weights, bits.activations, layer.name in edges, integer))
    return Plan(tuple(planned), _outputs(model, planned), model.remarks + remarks)


def uniform_bits(config: Config, *, edge: bool) -> Candidate:
    """The bits that the configuration gives an inner layer, or a first or last one."""
    if not edge or config.edge_bits == "same":
        return Candidate(config.weights, config.activations)
    return Candidate(config.edge_weights, max(config.activations, config.edge_bits))


def _require_matching(choice: Mapping[str, Candidate], layers: Sequence[str]) -> None:
    missing, foreign = [n for n in layers if n not in choice], [n for n in choice if n not in layers]
    if missing or foreign:
        told = [f"lacks {', '.join(missing[:5])}"] * bool(missing) + [f"names {', '.join(foreign[:5])}"] * bool(foreign)
        raise ConfigError(
            f"the allocation does not fit the model's {len(layers)} layers: it {' and '.join(told)}; "
            "make one from a table of this model."
        )
    if all(bits == FLOAT for bits in choice.values()):
        raise ConfigError(
            "the allocation leaves every layer in float, so there is nothing to quantise; lower a budget."
        )


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
