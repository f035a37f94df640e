"""How much each row of a layer counts: one of far more power than the others no more than one at a limit.

Some networks put most of a tensor's power into a few positions (border pixels of a feature map, a separator token).
A squared error over all rows then serves these few: the grid of the input reaches for them, and the other rows, on
which the answer hangs, are left with a handful of its steps. Each row counts

    w_r = min(1, LIMIT · typical power / power of row r)

by its input or its output, whichever is less: the bounded influence of robust regression (weights of Mallows' kind;
Krasker and Welsch, "Efficient bounded-influence regression estimation", JASA 1982).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxq.quant.robust import bounded_weight

Array = NDArray[np.float32]

RESIDUE, LARGE = 1e-6, 0.85
"""A row of so much of the power of a large one is what rounding left of zero and not typical of anything; of so many
rows no more are outliers than lie beyond the large one."""


def influence(x: Array, y: Array) -> Array:
    """Weight of each row, (R,), at most 1.

    Args:
        x: inputs, (G, R, K).
        y: outputs of the float network, (G, R, N).
    """
    beyond = np.maximum(_relative_power(x), _relative_power(y))
    return bounded_weight(beyond).astype(np.float32)


def _relative_power(rows: Array) -> Array:
    """Mean square of each row over the median of those that are not zero, but for what rounding left there, (R,)."""
    largest = np.abs(rows).max(initial=0.0)
    if not largest:
        return np.zeros(rows.shape[1], np.float32)
    unit = rows / largest  # squares of tiny numbers would be no numbers
    power = np.einsum("grk,grk->r", unit, unit)
    large = np.quantile(power, LARGE) or power.mean()
    return np.asarray(power / np.median(power[power > RESIDUE * large]), np.float32)
