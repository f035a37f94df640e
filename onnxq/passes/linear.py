"""The algebra of layers that are linear in their input: Conv, ConvTranspose, Gemm, MatMul.

Seen channel by channel, all four are the same: with the weight as a block W[g, o, i, k] (group, output
channel in the group, input channel in the group, kernel position), an output channel is

    y[g, o] = Σ_i Σ_k  W[g, o, i, k] · x[g, i] at k  +  b[g, o].

A channel-wise affine map behind the layer, z = s·y + t, is therefore the layer

    W'[g, o, i, k] = s[g, o] · W[g, o, i, k],      b'[g, o] = s[g, o] · b[g, o] + t[g, o],

and one before it, x = s·u + t, is the layer

    W'[g, o, i, k] = W[g, o, i, k] · s[g, i],      b'[g, o] = b[g, o] + Σ_i t[g, i] · Σ_k W[g, o, i, k],

the latter only where every kernel position meets an input: zero padding comes after the map, so a shift
t ≠ 0 before a padded convolution has no such form. All sums are taken in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxq.ir.layer import LAYER_OPS
from onnxq.passes.graph_editor import Draft, op_of


@dataclass(frozen=True)
class LinearLayer:
    """A layer with constant weight and bias.

    Attributes:
        node: the node that holds the weight.
        adder: the Add behind a MatMul that holds its bias, if there is one.
        weight: (groups, outputs in a group, inputs in a group, kernel positions), float64.
        bias: (outputs,), float64; zero where the layer has none.
    """

    node: gs.Node
    adder: gs.Node | None
    weight: NDArray[np.float64]
    bias: NDArray[np.float64]

    @property
    def last(self) -> gs.Node:
        """The node whose output is the layer's."""
        return self.adder or self.node

    @property
    def inputs(self) -> int:
        """Number of input channels."""
        return int(self.weight.shape[0] * self.weight.shape[2])

    @property
    def outputs(self) -> int:
        """Number of output channels."""
        return int(self.weight.shape[0] * self.weight.shape[1])

    def then(self, scale: NDArray[np.float64], shift: NDArray[np.float64]) -> LinearLayer:
        """The layer with z = scale·y + shift behind it; both (outputs,)."""
        groups, outputs, _, _ = self.weight.shape
        weight = self.weight * scale.reshape(groups, outputs, 1, 1)
        return replace(self, weight=weight, bias=self.bias * scale + shift)

    def after(self, scale: NDArray[np.float64], shift: NDArray[np.float64]) -> LinearLayer:
        """The layer with x = scale·u + shift before it; both (inputs,)."""
        groups, _, inputs, _ = self.weight.shape
        added = (self.weight * shift.reshape(groups, 1, inputs, 1)).sum(axis=(2, 3)).reshape(-1)
        weight = self.weight * scale.reshape(groups, 1, inputs, 1)
        return replace(self, weight=weight, bias=self.bias + added)


def read_layer(draft: Draft, node: gs.Node) -> LinearLayer | str:
    """The linear layer at a node, or the reason why it cannot be rewritten (to stand behind "because").

    The scalars of a Gemm are worked into weight and bias. A MatMul counts only where its output has two
    axes: with more, the axis of its channels is not the one that a BatchNormalization works on.
    """
    if op_of(node) not in LAYER_OPS:
        return f"{node.op} {node.name!r} is no layer with weights"
    if node.op == "Gemm" and node.attrs.get("transA", 0):
        return f"Gemm {node.name!r} transposes its input"
    if node.op == "MatMul" and _rank(node.inputs[0]) != 2:
        return f"the input of MatMul {node.name!r} is not known to have two axes"
    stored = draft.value(node.inputs[1])
    if stored is None:
        return f"the weight {draft.why_no_value(node.inputs[1])}"
    if stored.dtype not in (np.float32, np.float64) or (node.op in ("Gemm", "MatMul") and stored.ndim != 2):
        return f"the weight {node.inputs[1].name!r} is {stored.dtype} of shape {list(stored.shape)}"
    weight = _to_block(node, stored) * float(node.attrs.get("alpha", 1.0))
    adder = _bias_adder(draft, node, weight.shape[1]) if node.op == "MatMul" else None
    bias = _read_bias(draft, node, adder, weight.shape[0] * weight.shape[1])
    return bias if isinstance(bias, str) else LinearLayer(node, adder, weight, bias)


def write_layer(draft: Draft, layer: LinearLayer) -> None:
    """Put a layer's weight and bias into the graph; a MatMul that gains a bias becomes a Gemm."""
    node, holder = layer.node, layer.adder or layer.node
    dtype = draft.value(node.inputs[1]).dtype  # type: ignore[union-attr]  # read_layer found it
    weight = _from_block(node, layer.weight, node.inputs[1].shape).astype(dtype)
    draft.set_constant(node, 1, np.ascontiguousarray(weight), f"{node.name}/weight")
    node.attrs.pop("alpha", None)
    index = _constant_side(draft, layer.adder) if layer.adder else 2
    if index == 2 and not _has(node, 2) and not layer.bias.any():
        return
    if node.op == "MatMul" and layer.adder is None:
        node.op = "Gemm"
    draft.set_constant(holder, index, layer.bias.astype(dtype), f"{node.name}/bias")
    node.attrs.pop("beta", None)


def layer_making(draft: Draft, tensor: gs.Tensor) -> LinearLayer | str:
    """The linear layer whose output a tensor is, or the reason why there is none (to stand behind "because")."""
    if not tensor.inputs:
        return f"no node makes its input {tensor.name!r}"
    node = tensor.inputs[0]
    if op_of(node) == "Add":
        matmul = next((t.inputs[0] for t in node.inputs if t.inputs and t.inputs[0].op == "MatMul"), None)
        layer = read_layer(draft, matmul) if matmul else f"Add {node.name!r} is no layer with weights"
        if isinstance(layer, LinearLayer) and layer.adder is not node:
            return f"Add {node.name!r} adds no constant bias"
        return layer
    return read_layer(draft, node)


def _rank(tensor: gs.Tensor) -> int | None:
    return None if tensor.shape is None else len(tensor.shape)


def _has(node: gs.Node, index: int) -> bool:
    return len(node.inputs) > index and not node.inputs[index].is_empty()


def _to_block(node: gs.Node, weight: NDArray[Any]) -> NDArray[np.float64]:
    wide = weight.astype(np.float64)
    if node.op in ("Gemm", "MatMul"):
        return (wide if node.attrs.get("transB", 0) else wide.T)[None, :, :, None]
    groups, (first, second) = node.attrs.get("group", 1), wide.shape[:2]
    block = wide.reshape(groups, first // groups, second, prod(wide.shape[2:]))
    return block if node.op == "Conv" else block.swapaxes(1, 2)


def _from_block(node: gs.Node, block: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    if node.op in ("Gemm", "MatMul"):
        return block[0, :, :, 0] if node.attrs.get("transB", 0) else block[0, :, :, 0].T
    return (block if node.op == "Conv" else block.swapaxes(1, 2)).reshape(tuple(shape))


def _read_bias(draft: Draft, node: gs.Node, adder: gs.Node | None, outputs: int) -> NDArray[np.float64] | str:
    if adder is not None:
        return _spread(draft.value(adder.inputs[_constant_side(draft, adder)]), outputs)
    if not _has(node, 2):
        return np.zeros(outputs)
    stored = draft.value(node.inputs[2])
    if stored is None:
        return f"the bias {draft.why_no_value(node.inputs[2])}"
    if not _is_per_channel(stored, outputs):
        return f"the bias {node.inputs[2].name!r} of shape {list(stored.shape)} has no value per channel"
    return _spread(stored, outputs) * float(node.attrs.get("beta", 1.0))


def _bias_adder(draft: Draft, matmul: gs.Node, outputs: int) -> gs.Node | None:
    output = matmul.outputs[0]
    if not draft.has_one_reader(output) or op_of(output.outputs[0]) != "Add":
        return None
    adder = output.outputs[0]
    values = [draft.value(t) for t in adder.inputs]
    return adder if any(v is not None and _is_per_channel(v, outputs) for v in values) else None


def _constant_side(draft: Draft, adder: gs.Node) -> int:
    return next(i for i, t in enumerate(adder.inputs) if draft.value(t) is not None)


def _is_per_channel(values: NDArray[Any], outputs: int) -> bool:
    """Whether a bias of a two-axis output has one value a channel, or one for all."""
    last = values.shape[-1] if values.ndim else 1
    return values.ndim <= 2 and last in (1, outputs) and values.size == last


def _spread(values: NDArray[Any] | None, outputs: int) -> NDArray[np.float64]:
    return np.broadcast_to(np.asarray(values, np.float64).reshape(-1), (outputs,)).copy()
