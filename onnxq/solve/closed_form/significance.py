"""Whether one solution of a layer is better than another beyond chance, by the rows that were kept back."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.layer_rows import selected
from onnxq.quant.spec import QuantParams
from onnxq.solve.problem import Array, LayerProblem, quantized_rows

SURE = {False: 1.0, True: 2.0}
"""Standard errors by which a gain has to differ from nothing: over several samples, and over the rows of one alone,
which know less of others."""


def row_errors(problem: LayerProblem, weight: Array, bias: Array, grid: QuantParams | None) -> NDArray[np.float64]:
    """Squared error of each row kept back, behind the clipping and as it counts, (rows,).

    Args:
        problem: the layer and its rows.
        weight: dequantized, (G, K, N).
        bias: (G, N).
        grid: of the input; None where it stays in float.
    """
    held = problem.held
    predicted = np.matmul(quantized_rows(selected(problem.x, held), grid), weight) + bias[:, None]
    gap = predicted.clip(problem.low, problem.high) - selected(problem.y, held).clip(problem.low, problem.high)
    return np.asarray(np.einsum("grk,grk->r", gap, gap, dtype=np.float64) * problem.influence[held])


def exceeds_chance(problem: LayerProblem, gain: NDArray[np.float64]) -> bool:
    """Whether a gain of the rows kept back is one of other samples too.

    Its mean over samples has to exceed its own standard error; a single row says nothing.

    Args:
        problem: the layer and its rows.
        gain: of each row kept back, (rows,).
    """
    units = np.arange(len(gain))
    if problem.units is not None:
        units = np.unique(problem.units[problem.held], return_inverse=True)[1]
    alone = not units.any()
    each = gain if alone else np.bincount(units, gain)
    if len(each) < 2:
        return False
    return bool(each.mean() > SURE[alone] * each.std(ddof=1) / np.sqrt(len(each)))
