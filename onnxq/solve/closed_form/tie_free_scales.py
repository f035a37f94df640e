"""Scales of weights nudged so that all kernels round alike what a layer hands to the next grid.

A layer whose output reaches one grid by operators that only move, pick or clip values is requantized with
M = s_x·s_w / s_y for each channel. Its weights' scales move by a few ten-thousandths, to where no sum of products lies
near a rounding tie (:mod:`onnxq.quant.requantization`), and its bias goes onto the grid of the products, so that it
is part of the sum. What remains between onnxruntime's levels is what lies behind other operators: sums of two
branches, averages, normalizations.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from onnxq.ir.layer import Layer
from onnxq.ir.model import Model
from onnxq.ir.reachability import carried_into
from onnxq.quant.requantization import nearest_tie_free
from onnxq.quant.solution import LayerSolution, bias_scale, on_bias_grid
from onnxq.quant.spec import QuantParams

MOST_BITS = 8
"""Of grids that integer kernels know; on finer ones float32 itself errs by more than a step is wide."""


def without_ties(
    model: Model, layers: Sequence[Layer], solutions: Mapping[str, LayerSolution], outputs: Mapping[str, QuantParams]
) -> dict[str, LayerSolution]:
    """The solutions with scales at which no requantization of a layer's output meets a tie.

    Args:
        model: prepared.
        layers: its quantized layers.
        solutions: theirs, by layer name.
        outputs: grids of tensors that are quantized where they are made, by tensor name.
    """
    inputs = {la.input: grid for la in layers if (grid := solutions[la.name].input) is not None}
    grids = inputs | dict(outputs)
    found = dict(solutions)
    for layer in layers:
        behind = {float(grids[name].scale): grids[name] for name in carried_into(model, layer.output, grids)}
        if len(behind) == 1:
            found[layer.name] = _untied(layer, solutions[layer.name], *behind.values())
    return found


def _untied(layer: Layer, solution: LayerSolution, behind: QuantParams) -> LayerSolution:
    """A solution beside the one grid that its output is requantized to."""
    weight, grid = solution.weight, solution.input
    if grid is None or weight.scale.ndim > 1 or max(grid.spec.bits, behind.spec.bits, weight.spec.bits) > MOST_BITS:
        return solution
    step = behind.scale.astype(np.float64) / grid.scale
    scale = (nearest_tie_free(weight.scale / step) * step).astype(np.float32)
    bias = solution.bias
    if bias is not None:
        bias = on_bias_grid(bias, bias_scale(grid.scale, scale, layer.channels))
    return replace(solution, weight=replace(weight, scale=scale), bias=bias)
