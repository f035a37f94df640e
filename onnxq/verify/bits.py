"""The bits that the layers of a QDQ model really have, read from its stored integers and its grids."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.inliner import inline_local_functions

from onnxq.verify.findings import LayerBits
from onnxq.verify.folded import ConstantFolder
from onnxq.verify.grid import clip_bound, container, dequantized, quantized_type, stored
from onnxq.verify.source import ModelLike, read_model
from onnxq.verify.value_origin import Scope, Value

LAYERS: Final = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def audit_bits(model: ModelLike) -> tuple[LayerBits, ...]:
    """The real bits of every quantized Conv, ConvTranspose, Gemm and MatMul, subgraphs included.

    A layer is quantized where its weight comes from a DequantizeLinear of stored integers, or of what a
    QuantizeLinear makes of stored floats, or where both operands are activations from a QuantizeLinear and a
    DequantizeLinear. Layers with float weights are left out.

    Weights need ⌈log₂(max − min + 1)⌉ bits over all their integers, over those of the channel that spans most where
    each has a scale, at most their container's. Integers that are unpacked by operators on constants are those that
    come out.
    Activations have their container's bits, or as many as a Clip right before the QuantizeLinear
    leaves: ⌈log₂ n⌉ where n codes lie within the Clip.

    Args:
        model: path or proto.

    Returns:
        One entry a quantized layer, in graph order.

    Raises:
        ModelError: the model cannot be read.
    """
    proto, folder = read_model(model, "quantised")
    if proto.functions:
        proto = inline_local_functions(proto)
    constants = ConstantFolder(proto)
    layers = (_layer(name, scope, node, constants) for name, scope, node in named_layers(Scope(proto.graph, folder)))
    return tuple(layer for layer in layers if layer is not None)


def named_layers(scope: Scope) -> Iterator[tuple[str, Scope, onnx.NodeProto]]:
    """Every layer, quantized or not, under a name that no other layer of the model has."""
    taken: set[str] = set()
    for inner, node in scope.nodes():
        if node.op_type not in LAYERS:
            continue
        base = name = node.name or node.output[0]
        count = 1
        while name in taken:
            count += 1
            name = f"{base} ({count})"
        taken.add(name)
        yield name, inner, node


def _layer(name: str, scope: Scope, node: onnx.NodeProto, constants: ConstantFolder) -> LayerBits | None:
    operands = [scope.value(operand).origin() for operand in node.input[:2]]
    activations = [_activation_bits(operand) for operand in operands]
    for place in (1, 0):  # the weight is the second operand, but a MatMul may have it first
        weight = _weight_bits(operands[place], constants)
        if weight is not None:
            return LayerBits(name, node.op_type, weight[0], activations[1 - place], weight[1])
    first, second = activations
    if first is None or second is None:
        return None
    return LayerBits(name, node.op_type, None, max(first, second), None)


def _weight_bits(value: Value, constants: ConstantFolder) -> tuple[int, int] | None:
    """Bits and number of distinct values of a constant's dequantized integers, None of anything else."""
    codes = dequantized(value)
    if codes is None:
        return None
    kind = codes.element_type
    array = codes.array()
    if array is None and codes.maker is not None and codes.maker.op_type == "QuantizeLinear":
        kind = quantized_type(codes, codes.maker)
        array = _quantized_constant(codes, codes.maker, kind)
    elif (made := _made(value, constants)) is not None:
        array = made
        kind = kind or onnx.helper.np_dtype_to_tensor_dtype(made.dtype)
    if array is None:
        return None
    width, limits = container(kind)
    levels = int(np.unique(array.astype(np.float64)).size)
    if limits is None or array.size == 0:
        return width, levels
    rows = _by_channel(value, array.astype(np.int64))
    return min(width, _bits_for(int((rows.max(axis=1) - rows.min(axis=1)).max()) + 1)), levels


def _made(value: Value, constants: ConstantFolder) -> NDArray[np.generic] | None:
    """What a DequantizeLinear reads, where that is made of stored tensors alone."""
    read = value.input(0)
    return None if read is None else constants.array(read)


def _by_channel(value: Value, integers: NDArray[np.int64]) -> NDArray[np.int64]:
    """The integers that share a scale as rows; all in one where that is not known to be a channel's."""
    scale, maker = stored(value.input(1)), value.maker
    axis = next((a.i for a in (maker.attribute if maker else ()) if a.name == "axis"), 1)
    channels = -integers.ndim <= axis < integers.ndim and scale is not None and scale.shape == integers.shape[axis:][:1]
    if not channels or scale is None or scale.size == 1:
        return integers.reshape(1, -1)
    return np.moveaxis(integers, axis, 0).reshape(scale.size, -1)


def _quantized_constant(codes: Value, maker: onnx.NodeProto, kind: int) -> NDArray[np.float64] | None:
    """What a QuantizeLinear with a scale, or one along an axis, makes of stored floats; None of anything else."""
    exact, scale, zero_point = (stored(codes.input(i)) for i in range(3))
    limits = container(kind)[1]
    if exact is None or scale is None or limits is None or scale.ndim > 1 or not exact.ndim:
        return None
    axis = next((attribute.i for attribute in maker.attribute if attribute.name == "axis"), 1)
    along = [-1 if scale.size > 1 and i == axis % exact.ndim else 1 for i in range(exact.ndim)]
    zero = np.zeros(1) if zero_point is None else zero_point
    codes_of = np.round(exact / scale.reshape(along)) + zero.reshape(along)
    return np.asarray(codes_of.clip(*limits), np.float64)


def _activation_bits(value: Value) -> int | None:
    """Bits of the grid that a computed value lies on, None where it is float or stored."""
    codes = dequantized(value)
    if codes is None or codes.tensor is not None:
        return None
    maker = codes.maker
    if maker is None or maker.op_type != "QuantizeLinear":
        # An integer input of the model, or DynamicQuantizeLinear, whose result is always uint8.
        dynamic = maker is not None and maker.op_type == "DynamicQuantizeLinear"
        kind = onnx.TensorProto.UINT8 if dynamic else codes.element_type
        return container(kind)[0] if kind else None
    exact = codes.input(0)
    if exact is None or exact.origin().tensor is not None:
        return None
    width, limits = container(quantized_type(codes, maker))
    return width if limits is None else min(width, _clipped_bits(codes, exact.origin(), limits))


def _clipped_bits(codes: Value, exact: Value, limits: tuple[int, int]) -> int:
    """Bits of a QuantizeLinear's grid within the Clip before it; of the whole grid without one.

    Args:
        codes: result of the QuantizeLinear.
        exact: its float input.
        limits: smallest and largest code of the container.
    """
    low, high = (np.asarray(limit, np.float64) for limit in limits)
    scale, zero_point = stored(codes.input(1)), stored(codes.input(2))
    clip = exact.maker
    if clip is not None and clip.op_type == "Clip" and scale is not None:
        start = 0.0 if zero_point is None else zero_point
        bottom, top = clip_bound(exact, 1, "min"), clip_bound(exact, 2, "max")
        if bottom is not None:
            low = np.maximum(low, np.rint(bottom / scale) + start)
        if top is not None:
            high = np.minimum(high, np.rint(top / scale) + start)
    return _bits_for(int(np.max(high - low)) + 1)


def _bits_for(levels: int) -> int:
    """⌈log₂ levels⌉, at least 1."""
    return max(1, (levels - 1).bit_length())
