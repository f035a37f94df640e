"""Folding BatchNormalization into the layer before it or, failing that, into the layers after it.

In inference BatchNormalization is a map of each channel by itself,

    z = γ·(y − μ) / √(σ² + ε) + β = s·y + t,      s = γ / √(σ² + ε),      t = β − μ·s,

and `onnxq.passes.linear` says what such a map does to the weight and the bias of a layer next to it. What
exporters scatter into Mul and Add nodes with one constant a channel is folded in the same way.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.ir.model import Model
from onnxq.passes.channel_affine import BatchNorm, read_arithmetic, read_batchnorm
from onnxq.passes.graph_editor import Draft, op_of
from onnxq.passes.linear import LinearLayer, layer_making, read_layer, write_layer


def fold_batchnorm(model: Model) -> Model:
    """Fold every BatchNormalization, and channel-wise arithmetic behind convolutions, into layers with weights.

    A shared weight is not touched: the layer gets a copy of its own. A BatchNormalization that stays gets
    a remark with the reason for either direction.
    """
    draft = Draft(model)
    reasons: dict[str, str] = {}
    for node in draft.nodes:
        if op_of(node) == "BatchNormalization":
            reason = _fold_backward(draft, node)
            if reason:
                reasons[node.name] = reason
        else:
            _fold_arithmetic(draft, node)
    for node in reversed(draft.nodes):
        if op_of(node) == "BatchNormalization":
            reason = _fold_forward(draft, node)
            if reason:
                both = dict.fromkeys((reasons[node.name], reason))
                draft.remark(node, f"BatchNormalization is not folded because {' and '.join(both)}")
    return draft.finish()


def _fold_backward(draft: Draft, node: gs.Node) -> str | None:
    """Fold a BatchNormalization into the layer before it; returns the reason where that cannot be."""
    norm = read_batchnorm(draft, node)
    if isinstance(norm, str):
        return norm
    layer = layer_making(draft, node.inputs[0])
    if isinstance(layer, str):
        return layer
    if not draft.has_one_reader(node.inputs[0]):
        return f"{node.inputs[0].name!r} is also read elsewhere or a graph output"
    if norm.gamma.shape != (layer.outputs,):
        return f"it has {norm.gamma.size} channels and {layer.node.op} {layer.node.name!r} has {layer.outputs}"
    write_layer(draft, layer.then(norm.scale, norm.shift))
    draft.replace_output(layer.last, node)
    return None


def _fold_arithmetic(draft: Draft, node: gs.Node) -> None:
    """Fold channel-wise arithmetic into the convolution before it, where there is one."""
    data = next((t for t in node.inputs if t.inputs and op_of(t.inputs[0]) in ("Conv", "ConvTranspose")), None)
    if data is None or op_of(node) not in ("Add", "Sub", "Mul", "Div") or not draft.has_one_reader(data):
        return
    layer = read_layer(draft, data.inputs[0])
    if isinstance(layer, str):
        return
    affine = read_arithmetic(draft, node, data, layer.outputs, len(layer.node.inputs[1].shape))
    if affine is None:
        return
    scale, shift = affine
    write_layer(draft, layer.then(scale, shift))
    draft.replace_output(layer.last, node)


def _fold_forward(draft: Draft, node: gs.Node) -> str | None:
    """Fold a BatchNormalization into every layer that reads it; returns the reason where that cannot be."""
    norm = read_batchnorm(draft, node)
    if isinstance(norm, str):
        return norm
    output = node.outputs[0]
    if not draft.sees_only_nodes(output):
        return f"{output.name!r} is a graph output or read by a subgraph"
    layers = [_layer_behind(draft, reader, output, norm) for reader in output.outputs]
    reason = next((layer for layer in layers if isinstance(layer, str)), None)
    if reason is not None or not layers:
        return reason or f"nothing reads {output.name!r}"
    source = node.inputs[0]
    for layer in layers:
        if isinstance(layer, LinearLayer):
            write_layer(draft, layer.after(norm.scale, norm.shift))
            layer.node.inputs[0] = source
    draft.drop(node)
    return None


def _layer_behind(draft: Draft, node: gs.Node, data: gs.Tensor, norm: BatchNorm) -> LinearLayer | str:
    if any(t is data for t in node.inputs[1:]) or op_of(node) == "ConvTranspose":
        return f"{node.op} {node.name!r} behind it cannot take it in"
    layer = read_layer(draft, node)
    if isinstance(layer, str):
        return layer
    if layer.inputs != norm.gamma.size:
        return f"it has {norm.gamma.size} channels and {node.op} {node.name!r} reads {layer.inputs}"
    padded = node.attrs.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER") or any(node.attrs.get("pads", ()))
    if padded and np.any(norm.shift):
        return f"Conv {node.name!r} behind it pads with zeros that its shift would have to reach"
    return layer
