"""The grid behind a QuantizeLinear, read from the graph: its codes, its scale, what clips before it."""

from __future__ import annotations

import re

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.verify.value_origin import Value


def dequantized(value: Value) -> Value | None:
    """The codes behind a DequantizeLinear, None of any other value."""
    maker = value.maker
    if maker is None or maker.op_type != "DequantizeLinear":
        return None
    codes = value.input(0)
    return None if codes is None else codes.origin()


def quantized_type(codes: Value, maker: onnx.NodeProto) -> int:
    """Element type that a QuantizeLinear gives: its attribute, its zero point's type, or uint8."""
    for attribute in maker.attribute:
        if attribute.name == "output_dtype" and attribute.i:
            return int(attribute.i)
    zero_point = codes.input(2)
    return (zero_point.origin().element_type if zero_point is not None else 0) or onnx.TensorProto.UINT8


def clip_bound(clipped: Value, index: int, attribute_name: str) -> NDArray[np.float64] | None:
    """A bound of a Clip, from its input (opset 11 on) or its attribute; None where it is open or computed."""
    maker = clipped.maker
    assert maker is not None
    for attribute in maker.attribute:
        if attribute.name == attribute_name:
            return np.asarray(attribute.f, np.float64)
    return stored(clipped.input(index))


def stored(value: Value | None) -> NDArray[np.float64] | None:
    """The numbers of a stored tensor, None where it is computed or fed."""
    array = None if value is None else value.origin().array()
    return None if array is None else array.astype(np.float64)


def container(element_type: int) -> tuple[int, tuple[int, int] | None]:
    """Width in bits of an ONNX element type, and the smallest and largest code where it is an integer."""
    found = re.match(r"(U?INT|B?FLOAT)(\d+)", onnx.TensorProto.DataType.Name(element_type))
    if found is None:
        return 32, None
    kind, width = found[1], int(found[2])
    if kind == "UINT":
        return width, (0, 2**width - 1)
    return width, (-(2 ** (width - 1)), 2 ** (width - 1) - 1) if kind == "INT" else None
