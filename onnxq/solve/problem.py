"""What a layer's solver is given, and what it gives back."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.layer_rows import selected
from onnxq.quant.affine import fake_quantize
from onnxq.quant.saturation import Pairs
from onnxq.quant.spec import QuantParams, QuantSpec
from onnxq.quant.tail import NO_TAILS, Tails

Array = NDArray[np.float32]


@dataclass(frozen=True)
class LayerProblem:
    """One layer with rows drawn from the calibration set.

    Shapes: G groups, R rows, K inputs of a group, N output channels of a group.

    Attributes:
        x: inputs in the network whose earlier layers are quantized, before their own quantization, (G, R, K).
        x_float: inputs of the same rows in the float network, (G, R, K); ``x`` itself in parallel mode.
        y: outputs of the float network, bias included, before the clipping that follows, (G, R, N).
        train: which rows may be fitted; the others are the hold-out, (R,).
        influence: how much each row counts, (R,), at most 1.
        weight: float weights, (G, K, N).
        bias: float bias, (G, N).
        low, high: the clipping that follows the layer.
        weight_spec: grid of the weights.
        input: grid of the input; None when it stays in float.
        shared_scales: the groups share one scale a column.
        fit_input: the input's grid may be fitted (nothing else reads that tensor).
        fit_bias: the layer can hold a bias.
        pairs: inputs that an integer kernel multiplies together and may saturate on, (P, 2), indices along K;
            None where none can.
        block: inputs that share a scale of a channel; None where all do.
        one_scale: all channels share one scale.
        int32_bias: the bias is stored as int32 where an integer kernel adds it; otherwise it stays in float.
        units: the sample (or batch) that each row is of, (R,); None where every row stands for itself.
        tails: what new samples bring beyond the input's values.
        refit: rows held back are fitted too once a start has been chosen by them.
    """

    x: Array
    x_float: Array
    y: Array
    train: NDArray[np.bool_]
    influence: Array
    weight: Array
    bias: Array
    low: float
    high: float
    weight_spec: QuantSpec
    input: QuantParams | None
    shared_scales: bool
    fit_input: bool
    fit_bias: bool
    pairs: Pairs | None = None
    block: int | None = None
    one_scale: bool = False
    int32_bias: bool = True
    units: NDArray[np.int64] | None = None
    tails: Tails = NO_TAILS
    refit: bool = False

    @property
    def held(self) -> NDArray[np.bool_]:
        """The hold-out rows; the fitted ones where there is but a handful."""
        return self.train if self.train.all() else ~self.train


class Status(Enum):
    """How the solution of a layer came about."""

    NEAREST = "rounded to nearest at the scale of least squared error"
    SECOND_ORDER = "rounded with error propagation towards the least-squares target"
    REFINED = "refined by gradient from the start that the hold-out preferred"
    FALLEN_BACK = "the refinement diverged or met NaN; its starting point was kept"


@dataclass(frozen=True)
class Solution:
    """Integers and parameters in the solver's form.

    Attributes:
        integers: weights on the grid, (G, K, N), float32 holding integers.
        scale: one a channel, (G, N).
        bias: (G, N).
        input: grid of the input; None when it stays in float.
        loss: mean squared error of the activated output on the hold-out, relative to its power; rows count by
            their influence.
        status: how it came about.
    """

    integers: Array
    scale: Array
    bias: Array
    input: QuantParams | None
    loss: float
    status: Status


ROWS_AT_ONCE = 4096
"""Rows quantized in one go: their temporaries stay in the cache, and small beside the rows themselves."""


def quantized_rows(x: Array, params: QuantParams | None) -> Array:
    """Rows as the quantized layer reads them."""
    return x if params is None else fake_quantize(x, params)


def output_error(problem: LayerProblem, predicted: Array, rows: NDArray[np.bool_]) -> float:
    """Mean squared error behind the clipping over some rows, relative to the float output's power over all rows.

    That of a few rows may be nothing to measure an error by.
    """
    wanted = selected(problem.y, rows).clip(problem.low, problem.high)
    error = weighted_power(predicted.clip(problem.low, problem.high) - wanted, problem.influence[rows])
    return error / output_power(problem) if error else 0.0


def output_power(problem: LayerProblem) -> float:
    """Mean square of the float output behind its clipping, at least a number that can be divided by."""
    wanted = problem.y.clip(problem.low, problem.high) if clips(problem) else problem.y
    return max(weighted_power(wanted, problem.influence), 1e-30)


def clips(problem: LayerProblem) -> bool:
    """Whether a clipping follows the layer."""
    return bool(np.isfinite(problem.low) or np.isfinite(problem.high))


def weighted_power(rows: Array, counts: Array) -> float:
    """Mean square of rows (G, R, ·) that count so much each, (R,)."""
    each = np.einsum("grk,grk->r", rows, rows, dtype=np.float64) / (rows.shape[0] * rows.shape[2])
    return float(each @ counts / counts.sum(dtype=np.float64))
