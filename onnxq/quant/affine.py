"""Affine quantization: the one place that rounds and clips.

    q = clip(round(x / s) + z, qmin, qmax)        x̂ = (q − z) · s

Rounding is half to even and the division is a division, as ONNX QuantizeLinear defines them, so that
integers made here are those onnxruntime makes. The functions take numpy and JAX arrays alike.
"""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from onnxq.quant.spec import QuantParams

ArrayT = TypeVar("ArrayT", bound=Any)


def quantize(x: ArrayT, scale: Any, zero_point: Any, qmin: Any, qmax: Any) -> ArrayT:
    """Integers of x on the grid, kept in x's floating dtype.

    Args:
        x: real numbers, any shape.
        scale: positive, broadcastable to x.
        zero_point: integer that stands for 0, broadcastable to x.
        qmin: lowest integer.
        qmax: highest integer.

    Example:
        >>> quantize(np.array([-1.0, 0.3, 9.0]), 0.5, 4, 0, 15)
        array([ 2.,  5., 15.])
    """
    integers: ArrayT = ((x / scale).round() + zero_point).clip(qmin, qmax)
    return integers


def dequantize(q: ArrayT, scale: Any, zero_point: Any) -> ArrayT:
    """Real numbers that grid integers stand for."""
    real: ArrayT = (q - zero_point) * scale
    return real


def fake_quantize(x: NDArray[np.float32], params: QuantParams, axis: int = 0) -> NDArray[np.float32]:
    """What x becomes when it is quantized and dequantized.

    Args:
        x: float32, any shape.
        params: per tensor, or per channel along ``axis``.
        axis: the channels of x, when the parameters are per channel.
    """
    scale = params.scale
    if scale.ndim == 1:
        scale = scale.reshape([-1 if i == axis % x.ndim else 1 for i in range(x.ndim)])
    # In place, and clipped before the zero point would be added: feature maps are large, and passing over them is all
    # that this costs. The integers are those of :func:`quantize`, less the zero point.
    zero, spec = np.float32(params.zero_point), params.spec
    values: NDArray[np.float32] = np.divide(x, scale, dtype=np.float32)
    np.rint(values, out=values)
    np.clip(values, np.float32(spec.qmin) - zero, np.float32(spec.qmax) - zero, out=values)
    values *= scale
    return values
