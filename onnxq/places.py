"""Where tensors are quantised besides the inputs of layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from onnxq.config import FLOAT_BITS, Config
from onnxq.ir.model import Model
from onnxq.ir.paths import behind_clipping, carried_to, float_layers, moved_into_subgraph, reaches
from onnxq.ir.product import Product
from onnxq.target import Target

if TYPE_CHECKING:
    from onnxq.plan import LayerPlan


@dataclass(frozen=True)
class Quantiser:
    """A place where a tensor is quantised for everything that reads it.

    Attributes:
        tensor: which.
        like: a layer's input behind operators that only move values, whose grid it shares; None when
            it has a grid of its own.
        bits: 8 or 16.
    """

    tensor: str
    like: str | None
    bits: int = 8


def find_places(
    model: Model, planned: Sequence[LayerPlan], products: Sequence[Product], config: Config
) -> tuple[Quantiser, ...]:
    """Quantisers on outputs of layers and of other operators, as the target has them, and on operands of products.

    Args:
        model: prepared.
        planned: its layers' bits.
        products: whose operands are quantised.
        config: the target, and the bits between layers.
    """
    operands = tuple(Quantiser(t, None) for p in products for t in (p.left, p.right))
    of_layers = _outputs(model, planned, config.rules)
    known = {q.tensor for q in (*of_layers, *operands)}
    known |= {t for p in planned for t in (p.layer.output, p.layer.activated)}
    return (*of_layers, *_between(model, planned, known, config), *operands)


def _outputs(model: Model, planned: Sequence[LayerPlan], target: Target) -> tuple[Quantiser, ...]:
    """Where outputs of layers are quantised; for onnxruntime where an integer kernel takes the layer for it."""
    if target.outputs == "none":
        return ()
    inputs = {p.layer.input: p for p in planned}
    in_float = float_layers(model, {p.layer.name for p in planned})
    asked = _asked(planned)
    quantisers = []
    for plan in planned:
        tensor = plan.layer.activated
        bits = asked.get(tensor, set())
        wanted = plan.activations if target.outputs == "layers" else 8
        if wanted == FLOAT_BITS or (target.outputs == "kernels" and not plan.integer_kernel):
            continue
        if bits and bits != {wanted}:
            continue  # a reader with another grid would round a second time, which costs accuracy
        if reaches(model, tensor, in_float):
            continue  # between quantisers, onnxruntime would quantise that layer's weights on its own account
        if moved_into_subgraph(model, tensor):
            continue  # onnxruntime aborts where it would move the DequantizeLinear towards a subgraph
        like = tensor if bits else carried_to(model, tensor, inputs)
        shared = like if like and inputs[like].activations == wanted else None
        quantisers.append(Quantiser(tensor, shared, wanted))
    return tuple(quantisers)


def _asked(planned: Sequence[LayerPlan]) -> dict[str, set[int]]:
    """Bits that layers give their inputs, by the tensor."""
    found: dict[str, set[int]] = {}
    for plan in planned:
        found.setdefault(plan.layer.input, set()).add(plan.activations)
    return found


def _between(
    model: Model, planned: Sequence[LayerPlan], known: Collection[str], config: Config
) -> tuple[Quantiser, ...]:
    """Quantisers on what operators besides the layers make, on the targets that have them."""
    inputs = {p.layer.input: p for p in planned}
    in_float = float_layers(model, {p.layer.name for p in planned})
    asked = _asked(planned)
    quantisers = []
    for node in model.graph.nodes:
        if node.op not in config.rules.output_ops or node.domain not in (None, "", "ai.onnx"):
            continue
        tensor = behind_clipping(model, node.outputs[0].name)
        bits = asked.get(tensor) or {config.activations}
        if node.outputs[0].dtype != np.float32 or len(bits) > 1 or bits == {FLOAT_BITS} or tensor in known:
            continue
        if reaches(model, tensor, in_float) or moved_into_subgraph(model, tensor):
            continue
        like = tensor if tensor in inputs else carried_to(model, tensor, inputs)
        shared = like if like and {inputs[like].activations} == bits else None
        quantisers.append(Quantiser(tensor, shared, *bits))
    return tuple(quantisers)
