"""What solving a layer gives: the integers that will be stored, and all that stands around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.quant.spec import QuantParams

INT32_ROOM = 2**30
"""Largest integer a bias may take: half of int32, the other half is for the accumulated products."""

SMALLEST_BIAS = np.float32(2.0**-60)
"""Magnitude below which a bias is as good as zero."""


@dataclass(frozen=True)
class LayerSolution:
    """A quantized layer.

    Attributes:
        layer: name of its node.
        integers: weights on the grid in the stored weight's shape, int16.
        weight: grid of the weights, one scale for each entry of the weight's channel axis, or for each block of
            inputs as well.
        bias: float32, (channels,), on the grid the runtime will use; None for a layer without one.
        input: grid of the input; None when it stays in float.
        loss_nearest: relative output error of nearest rounding on the hold-out.
        loss: the same of this solution.
        status: how it came about, in a sentence.
        seconds: time it took.
        int32_bias: the bias is stored as int32 where an integer kernel adds it; otherwise it stays in float.
    """

    layer: str
    integers: NDArray[np.int16]
    weight: QuantParams
    bias: NDArray[np.float32] | None
    input: QuantParams | None
    loss_nearest: float
    loss: float
    status: str
    seconds: float
    int32_bias: bool = True

    def dequantized(self, axis: int) -> NDArray[np.float32]:
        """The real weights that the integers stand for, in the stored shape."""
        return self.integers.astype(np.float32) * beside_weights(self.weight.scale, self.integers.shape, axis)


def beside_weights(scale: NDArray[np.float32], shape: Sequence[int], axis: int) -> NDArray[np.float32]:
    """Scales in a form that multiplies stored weights.

    Args:
        scale: one for each entry of the channel axis, or for each block of inputs of a matrix as well.
        shape: of the weights.
        axis: of their channels.
    """
    if scale.ndim == 2:
        inputs = 1 - axis
        return np.repeat(scale, shape[inputs] // scale.shape[inputs], axis=inputs)
    return scale.reshape([-1 if i == axis else 1 for i in range(len(shape))])


def bias_scale(
    input_scale: NDArray[np.float32], weight_scale: NDArray[np.float32], channels: int
) -> NDArray[np.float32]:
    """Scale of an int32 bias, s_x · s_w, (channels,); groups that share scales repeat them."""
    product = (np.float32(input_scale) * weight_scale).astype(np.float32)
    return np.tile(product, channels // len(product))


def free_bias_scale(bias: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale of an int32 bias that no integer kernel adds, (channels,): so fine that float32 holds no more."""
    scale: NDArray[np.float32] = (np.maximum(np.abs(bias), SMALLEST_BIAS) / np.float32(INT32_ROOM)).astype(np.float32)
    return scale


def smallest_weight_scale(
    bias: NDArray[np.float32], input_scale: NDArray[np.float32], columns: int
) -> NDArray[np.float32]:
    """Weight scales below which the bias would not fit int32, (columns,).

    A nearly dead channel has tiny weights, hence a tiny scale, but may carry a large bias:
    |b| / (s_x · s_w) ≤ 2^30 asks for s_w ≥ |b| / (s_x · 2^30).
    """
    largest = np.abs(bias).reshape(-1, columns).max(axis=0)
    scale: NDArray[np.float32] = (largest / (np.float32(input_scale) * np.float32(INT32_ROOM))).astype(np.float32)
    return scale


def on_bias_grid(bias: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.float32]:
    """The bias as int32 with this scale reproduces it."""
    return (bias_integers(bias, scale) * scale.astype(np.float64)).astype(np.float32)


def bias_integers(bias: NDArray[np.float32], scale: NDArray[np.float32]) -> NDArray[np.int32]:
    """The int32 bias, (channels,)."""
    return np.rint(bias.astype(np.float64) / scale).clip(-(2**31) + 1, 2**31 - 1).astype(np.int32)
