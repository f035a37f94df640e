"""Where a quantized model puts computed tensors on a grid, and how far that grid reaches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.verify.bits import named_layers
from onnxq.verify.cut import Cutter
from onnxq.verify.grid import clip_bound, container, dequantized, quantized_type, stored
from onnxq.verify.value_origin import Scope, Value

_OFF_A_CODE: Final = 0.1
"""Codes that a bound of a Clip may lie beside a code of the grid, for it is rounded to the tensor's type."""


@dataclass(frozen=True)
class Place:
    """A QuantizeLinear of the main graph whose input depends on the model's inputs.

    Attributes:
        tensor: that it quantizes, before a Clip that keeps it on the grid.
        layers: names of the layers that read it; of the other nodes that do where no layer does.
        bits: of the grid.
        low, high: the numbers that its outermost codes stand for, () or one for each channel.
        axis: of the channels.
    """

    tensor: str
    layers: tuple[str, ...]
    bits: int
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    axis: int = 1


def find_places(proto: onnx.ModelProto, scope: Scope, cutter: Cutter) -> list[Place]:
    """Every place with a fixed grid of integers and one scale, or one for each channel, in the order of the graph.

    Args:
        proto: the model, functions inlined.
        scope: of its main graph.
        cutter: of it.
    """
    live, layers = cutter.live(), _layers_by_codes(scope)
    places = []
    for node in proto.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] not in live:
            continue
        codes = scope.value(node.output[0])
        grid = _grid(codes, node)
        if grid is not None:
            bits, low, high, tensor = grid
            axis = next((attribute.i for attribute in node.attribute if attribute.name == "axis"), 1)
            readers = layers.get(codes.name) or tuple(_other_readers(proto, codes.name))
            places.append(Place(tensor, readers, bits, low, high, axis))
    return places


def _grid(codes: Value, maker: onnx.NodeProto) -> tuple[int, NDArray[np.float64], NDArray[np.float64], str] | None:
    """Bits of a grid, both its ends, and the tensor that is put on it; None where that is not known from the file."""
    width, limits = container(quantized_type(codes, maker))
    scale, zero_point = stored(codes.input(1)), stored(codes.input(2))
    if limits is None or scale is None or (zero_point is None and codes.input(2) is not None):
        return None
    if scale.ndim > 1 or scale.size == 0:
        return None
    zero = np.zeros(()) if zero_point is None else zero_point
    if scale.size == 1:
        scale, zero = scale.reshape(()), zero.reshape(-1)[0]
    exact = codes.input(0)
    narrow = None if exact is None else _narrowed(exact, scale, zero, limits)
    first, last = narrow or limits
    bits = width if narrow is None else (last - first).bit_length()
    tensor = maker.input[0]
    if narrow is not None and exact is not None and exact.maker is not None:
        tensor = exact.maker.input[0]
    return bits, (first - zero) * scale, (last - zero) * scale, tensor


def _narrowed(
    exact: Value, scale: NDArray[np.float64], zero: NDArray[np.float64], limits: tuple[int, int]
) -> tuple[int, int] | None:
    """First and last code that a Clip leaves of a grid, where it is there to make the grid one of fewer bits.

    Such a Clip stops at codes: at 0 and 2^k − 1 of an unsigned type, at −2^(k−1), or one more, and 2^(k−1) − 1 of a
    signed one. Any other, such as a ReLU6, is the model's own: what it cuts off is not lost to the grid.
    """
    if exact.maker is None or exact.maker.op_type != "Clip" or scale.ndim:
        return None
    bottom, top = clip_bound(exact, 1, "min"), clip_bound(exact, 2, "max")
    if bottom is None or top is None or bottom.size != 1 or top.size != 1:
        return None
    at = [float((bound.reshape(()) / scale) + zero) for bound in (bottom, top)]
    if not np.isfinite(at).all() or max(abs(code - round(code)) for code in at) > _OFF_A_CODE:
        return None
    first, last = map(round, at)
    bits = (limits[1] - limits[0]).bit_length()
    for fewer in range(1, bits):
        half = 1 << (fewer - 1)
        grids = [(0, 2 * half - 1)] if limits[0] == 0 else [(-half, half - 1), (1 - half, half - 1)]
        if (first, last) in grids and first < last:
            return first, last
    return None


def _layers_by_codes(scope: Scope) -> dict[str, tuple[str, ...]]:
    """Layers that read each quantized tensor of the main graph, through operators that only move values."""
    found: dict[str, tuple[str, ...]] = {}
    for name, inner, node in named_layers(scope):
        for operand in node.input[:2]:
            codes = dequantized(inner.value(operand).origin()) if operand else None
            if codes is not None and codes.scope is scope and name not in found.get(codes.name, ()):
                found[codes.name] = (*found.get(codes.name, ()), name)
    return found


def _other_readers(proto: onnx.ModelProto, codes: str) -> Iterator[str]:
    """Names of the nodes that read a tensor's dequantized values."""
    real = {n.output[0] for n in proto.graph.node if n.op_type == "DequantizeLinear" and n.input[0] == codes}
    for node in proto.graph.node:
        if real & set(node.input):
            yield node.name or node.output[0]
