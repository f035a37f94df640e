"""How much something counts that has far more power than what is typical.

    w = min(1, LIMIT / p),   and beyond FAR times less again:  w · FAR / p

with p its power in typical ones: the bounded influence of robust regression (weights of Mallows' kind; Krasker and
Welsch, "Efficient bounded-influence regression estimation", JASA 1982), and the redescending one of Hampel for what is
so far out that it must be a mistake, such as an image of 0 to 255 among images of 0 to 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

LIMIT = 10.0
"""Power, in typical ones, from which on a row or a sample counts for no more."""

FAR = 1000.0
"""Power, in typical ones, from which on it counts for less the more it has."""


def bounded_weight(power: NDArray[np.floating]) -> NDArray[np.float64]:
    """Weight of each, at most 1, from its power in typical ones, any shape."""
    beyond = np.maximum(np.asarray(power, np.float64), 1e-30)
    return np.asarray(np.minimum(1.0, LIMIT / beyond) * np.minimum(1.0, FAR / beyond))
