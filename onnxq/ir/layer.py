"""The layers of a model: its Conv, ConvTranspose, Gemm and MatMul nodes with constant weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.ir.model import Model, Remark
from onnxq.ir.operators import STANDARD, Trait, operators_with

LAYER_OPS = operators_with(Trait.LAYER)
FUSED_ATTENTION = operators_with(Trait.ATTENTION)
QUANTIZED_OPS = operators_with(Trait.QUANTIZED)
"""Operators of the standard and of onnxruntime that compute on quantized numbers."""

REARRANGING = operators_with(Trait.REARRANGES)

INFINITY = math.inf


@dataclass(frozen=True)
class Window:
    """The sliding window of a convolution; one entry a spatial axis.

    Attributes:
        kernel, strides, dilations: sizes in elements.
        pads_begin: rows of zeros added (Conv) or cut off (ConvTranspose) before the first element.
        groups: channel groups.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads_begin: tuple[int, ...]
    groups: int


@dataclass(frozen=True)
class Layer:
    """A node with weights, as the solver sees it.

    Attributes:
        name: the node's name.
        op: Conv, ConvTranspose, Gemm or MatMul.
        input: name of the tensor that is quantized before it.
        output: name of the tensor it makes, its bias included (behind the Add of a MatMul).
        weight: name of the weight constant.
        bias: name of the bias constant; None where there is none.
        weight_shape: shape of the stored weight.
        channel_axis: axis of the weight that counts output channels.
        window: for convolutions.
        transposed: a Gemm whose weight is stored (N, K).
        low, high: clipping that follows (0 and ∞ for ReLU, 0 and 6 for ReLU6, ∓∞ for none); where every channel was
            raised with its upper end, the one that they had in common, at which a grid ends.
        activated: name of the tensor behind that clipping; ``output`` when nothing follows.
    """

    name: str
    op: str
    input: str
    output: str
    weight: str
    bias: str | None
    weight_shape: tuple[int, ...]
    channel_axis: int
    window: Window | None
    transposed: bool
    low: float
    high: float
    activated: str

    @property
    def channels(self) -> int:
        """Output channels."""
        groups = self.window.groups if self.window and self.op == "ConvTranspose" else 1
        return self.weight_shape[self.channel_axis] * groups

    @property
    def output_axis(self) -> int:
        """Axis of the output that counts its channels."""
        return -1 if self.window is None else 1

    def adds_integer_bias(self, weights: int, activations: int) -> bool:
        """Whether an integer kernel adds its bias, on the grid of the products, at these bits."""
        return self.op != "MatMul" and max(weights, activations) <= 8

    @property
    def parameters(self) -> int:
        """Weights of the layer, the bias not counted."""
        return math.prod(self.weight_shape)


def find_layers(model: Model) -> tuple[tuple[Layer, ...], tuple[Remark, ...]]:
    """The layers of a prepared model in graph order, and why other candidates are none."""
    inner = {
        t.name for node in model.graph.nodes for g in node.subgraphs(recursive=True) for n in g.nodes for t in n.inputs
    }
    overridable = {t.name for t in model.graph.inputs if isinstance(t, gs.Constant)}
    layers: list[Layer] = []
    remarks: list[Remark] = []
    for node in model.graph.nodes:
        if node.name in model.in_float:
            remarks.append(Remark(node.name, model.in_float[node.name]))
            continue
        if node.op in QUANTIZED_OPS:
            remarks.append(Remark(node.name, f"{node.op} computes on quantised numbers already: left as it is"))
        if node.op in FUSED_ATTENTION:
            remarks.append(Remark(node.name, f"{node.op}: its products and the weights it holds are left in float"))
        elif node.domain not in STANDARD and any(_is_matrix(t) for t in node.inputs):
            remarks.append(Remark(node.name, f"{node.op} of {node.domain}: the weights it holds are left in float"))
        if node.op not in LAYER_OPS or node.domain not in STANDARD:
            continue
        reason = _obstacle(node, overridable)
        if reason:
            remarks.append(Remark(node.name, reason))
        else:
            layers.append(_layer(node, inner | {t.name for t in model.graph.outputs}, model.raised))
    for node in model.graph.nodes:
        for graph in node.subgraphs(recursive=True):
            remarks += [
                Remark(n.name or n.op, f"inside a branch or loop body of {node.name}: left in float")
                for n in graph.nodes
                if n.op in LAYER_OPS
            ]
    return tuple(layers), tuple(remarks)


def _is_matrix(tensor: gs.Tensor) -> bool:
    return isinstance(tensor, gs.Constant) and tensor.dtype == np.float32 and len(tensor.shape) > 1


def _obstacle(node: gs.Node, overridable: set[str]) -> str | None:
    named = [t.name for t in node.inputs[1:] if t.name in overridable]
    if named:
        return f"{named[0]} is also a graph input, which a caller may override: left in float"
    weight, data = node.inputs[1], node.inputs[0]
    if node.op == "MatMul" and not any(isinstance(t, gs.Constant) or _is_dequantized(t) for t in node.inputs):
        return "product of two activations: left in float"
    if _is_dequantized(weight) or any(maker.op == "DequantizeLinear" for maker in data.inputs):
        return "its input or weight is quantised already: left as it is"
    if node.op == "MatMul" and isinstance(data, gs.Constant) and not isinstance(weight, gs.Constant):
        return "its weight stands first, before an input of two axes or of a number not known: left in float"
    if not isinstance(weight, gs.Constant):
        return "its weight is computed or fed by the caller, not a constant: left in float"
    if isinstance(data, gs.Constant):
        return "its data input is a constant: left in float"
    if weight.dtype != np.float32:
        return f"its weight is {np.dtype(weight.dtype).name}, not float32: left in float"
    if 0 in weight.shape:
        return "its weight is empty: left in float"
    if node.op == "MatMul" and len(weight.shape) != 2:
        return f"its weight has {len(weight.shape)} axes, not 2: left in float"
    if node.op == "MatMul" and data.shape is not None and len(data.shape) == 1:
        return "its data input has one axis, none of samples: left in float"
    if node.op == "Gemm" and (node.attrs.get("transA", 0) or node.attrs.get("alpha", 1.0) != 1.0):
        return "transA or alpha is set: left in float"
    if node.op in ("Conv", "ConvTranspose") and node.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "auto_pad over an open size: left in float"
    if node.op == "ConvTranspose" and "output_shape" in node.attrs:
        return "output_shape is given in place of pads: left in float"
    if len(node.inputs) > 2 and not isinstance(node.inputs[2], gs.Constant) and node.inputs[2].name:
        return "its bias is computed, not a constant: left in float"
    if node.op == "Gemm" and len(node.inputs) > 2 and node.inputs[2].name and len(node.inputs[2].shape) != 1:
        return "its bias differs from row to row: left in float"
    return None


def _is_dequantized(tensor: gs.Tensor) -> bool:
    """Whether a tensor holds what a DequantizeLinear makes of a constant, moved perhaps."""
    while tensor.inputs and tensor.inputs[0].op in REARRANGING:
        tensor = tensor.inputs[0].inputs[0]
    maker = tensor.inputs[0] if tensor.inputs else None
    return maker is not None and maker.op == "DequantizeLinear"


def _layer(node: gs.Node, kept: set[str], raised: Mapping[str, float]) -> Layer:
    weight = node.inputs[1]
    bias = node.inputs[2].name if len(node.inputs) > 2 and node.inputs[2].name else None
    output = node.outputs[0]
    if node.op == "MatMul":
        following = _only_reader(output, kept)
        if following is not None and following.op == "Add":
            constants = [t for t in following.inputs if isinstance(t, gs.Constant)]
            if len(constants) == 1 and tuple(constants[0].shape) == (weight.shape[-1],):
                bias, output = constants[0].name, following.outputs[0]
    low, high, activated = _clipping(output, kept, raised)
    return Layer(
        name=node.name,
        op=node.op,
        input=node.inputs[0].name,
        output=output.name,
        weight=weight.name,
        bias=bias,
        weight_shape=tuple(int(d) for d in weight.shape),
        channel_axis=_channel_axis(node),
        window=_window(node) if node.op in ("Conv", "ConvTranspose") else None,
        transposed=bool(node.attrs.get("transB", 0)),
        low=low,
        high=high,
        activated=activated,
    )


def _channel_axis(node: gs.Node) -> int:
    if node.op == "Gemm":
        return 0 if node.attrs.get("transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "MatMul": 1}[node.op]


def _window(node: gs.Node) -> Window:
    kernel = tuple(int(d) for d in node.inputs[1].shape[2:])
    ones = (1,) * len(kernel)

    def read(key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(int(v) for v in node.attrs.get(key, default))

    pads = read("pads", (0,) * (2 * len(kernel)))
    return Window(
        kernel=kernel,
        strides=read("strides", ones),
        dilations=read("dilations", ones),
        pads_begin=pads[: len(kernel)],
        groups=int(node.attrs.get("group", 1)),
    )


def _only_reader(tensor: gs.Tensor, kept: set[str]) -> gs.Node | None:
    """The one node that reads a tensor, if nothing else sees it."""
    readers = list(tensor.outputs)
    return readers[0] if len(readers) == 1 and tensor.name not in kept else None


def _clipping(tensor: gs.Tensor, kept: set[str], raised: Mapping[str, float]) -> tuple[float, float, str]:
    node = _only_reader(tensor, kept)
    if node is not None and node.op == "Relu":
        behind = _only_reader(node.outputs[0], kept)
        if behind is not None and behind.outputs[0].name in raised:
            return 0.0, raised[behind.outputs[0].name], behind.outputs[0].name
        return 0.0, INFINITY, node.outputs[0].name
    if node is not None and node.op == "Clip" and node.inputs[0] is tensor:
        bounds = [-INFINITY, INFINITY]
        for i, operand in enumerate(node.inputs[1:3]):
            if isinstance(operand, gs.Constant):
                bounds[i] = float(np.asarray(operand.values).reshape(()))
            elif operand.name:
                return -INFINITY, INFINITY, tensor.name
        return bounds[0], bounds[1], node.outputs[0].name
    return -INFINITY, INFINITY, tensor.name
