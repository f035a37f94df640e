"""Para-normalization: a quantized layer's outputs brought back to the float layer's statistics.

Behind the quantized layer stands, in thought, a BatchNorm that was the identity for the float network: mean and
variance of each channel are those of the float layer's output. Re-estimated through the quantized network
they become μ and σ², and folding the BatchNorm back gives

    s_w ← s_w · σ_float / σ        b ← (b − μ) · σ_float / σ + μ_float

With a scale for each channel the integer weights do not change. The moments are exact, over the whole
calibration set; layers are taken in order, so that later ones see corrected inputs.

Reference: Hubara et al., "Accurate Post Training Quantization With Small Calibration Sets", ICML 2021,
section 4.3, which moves running averages towards the moments instead.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from onnxq.ir.layer import Layer
from onnxq.quant.moments import ChannelMoments
from onnxq.quant.solution import LayerSolution, bias_scale, on_bias_grid, smallest_weight_scale
from onnxq.quant.spec import QuantParams

LARGEST_FACTOR = 2.0
"""Channels whose deviation moved by more than this factor are as good as dead; they keep their scale."""


def para_normalize(
    layer: Layer, solution: LayerSolution, wanted: ChannelMoments, found: ChannelMoments
) -> LayerSolution:
    """A solution whose output has the wanted moments; its integers are the same.

    Args:
        layer: which.
        solution: of it; one without a bias or with scales of blocks is given back as it is.
        wanted: of the float layer's output.
        found: of the quantized layer's output on the same samples.
    """
    if solution.bias is None or solution.weight.scale.ndim > 1:
        return solution
    alive = found.deviation > 0
    factor = np.where(alive, wanted.deviation / np.where(alive, found.deviation, 1), 1)
    factor = np.where((factor > 1 / LARGEST_FACTOR) & (factor < LARGEST_FACTOR), factor, 1)
    scale = solution.weight.scale
    if len(scale) == len(factor):
        scale = (scale * factor).astype(np.float32)
    else:  # channels that share a scale keep it, and only their means are closed
        factor = np.ones_like(factor)
    bias = ((solution.bias - found.mean) * factor + wanted.mean).astype(np.float32)
    grid = solution.input
    if grid is not None and layer.adds_integer_bias(solution.weight.spec.bits, grid.spec.bits):
        least = smallest_weight_scale(bias, grid.scale, len(scale))
        if (scale < least).any():
            return solution
        if solution.int32_bias:
            bias = on_bias_grid(bias, bias_scale(grid.scale, scale, len(bias)))
    return replace(solution, weight=QuantParams(solution.weight.spec, scale), bias=bias)
