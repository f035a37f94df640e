"""Where tensors are quantized besides the inputs of layers."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from onnxq.config import FLOAT_BITS, Config
from onnxq.config.targets import Target
from onnxq.ir.activation_matmul import Product
from onnxq.ir.model import Model
from onnxq.ir.operators import STANDARD
from onnxq.ir.reachability import behind_clipping, carried_to, float_layers, moved_into_subgraph, reaches
from onnxq.plan.values import LayerPlan, Quantizer


def find_places(
    model: Model, planned: Sequence[LayerPlan], products: Sequence[Product], config: Config
) -> tuple[Quantizer, ...]:
    """Quantizers on outputs of layers and of other operators, as the target has them, and on operands of products.

    Args:
        model: prepared.
        planned: its layers' bits.
        products: whose operands are quantized.
        config: the target, and the bits between layers.
    """
    operands = tuple(Quantizer(t, None) for p in products for t in (p.left, p.right))
    of_layers = _outputs(model, planned, config.rules)
    known = {q.tensor for q in (*of_layers, *operands)}
    known |= {t for p in planned for t in (p.layer.output, p.layer.activated)}
    return (*of_layers, *_between(model, planned, known, config), *operands)


def _outputs(model: Model, planned: Sequence[LayerPlan], target: Target) -> tuple[Quantizer, ...]:
    """Where outputs of layers are quantized; for onnxruntime where an integer kernel takes the layer for it."""
    if target.outputs == "none":
        return ()
    inputs = {p.layer.input: p for p in planned}
    in_float = float_layers(model, {p.layer.name for p in planned})
    asked = _asked(planned)
    quantizers = []
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
        quantizers.append(Quantizer(tensor, shared, wanted))
    return tuple(quantizers)


def _asked(planned: Sequence[LayerPlan]) -> dict[str, set[int]]:
    """Bits that layers give their inputs, by the tensor."""
    found: dict[str, set[int]] = {}
    for plan in planned:
        found.setdefault(plan.layer.input, set()).add(plan.activations)
    return found


def _between(
    model: Model, planned: Sequence[LayerPlan], known: Collection[str], config: Config
) -> tuple[Quantizer, ...]:
    """Quantizers on what operators besides the layers make, on the targets that have them."""
    inputs = {p.layer.input: p for p in planned}
    in_float = float_layers(model, {p.layer.name for p in planned})
    asked = _asked(planned)
    quantizers = []
    for node in model.graph.nodes:
        if node.op not in config.rules.output_ops or node.domain not in STANDARD:
            continue
        tensor = behind_clipping(model, node.outputs[0].name)
        bits = asked.get(tensor) or {config.activations}
        if node.outputs[0].dtype != np.float32 or len(bits) > 1 or bits == {FLOAT_BITS} or tensor in known:
            continue
        if reaches(model, tensor, in_float) or moved_into_subgraph(model, tensor):
            continue
        like = tensor if tensor in inputs else carried_to(model, tensor, inputs)
        shared = like if like and {inputs[like].activations} == bits else None
        quantizers.append(Quantizer(tensor, shared, *bits))
    return tuple(quantizers)
