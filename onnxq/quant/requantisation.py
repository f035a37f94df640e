"""Requantisation without ties: multipliers for which no sum of integer products lies near a rounding boundary.

Between two grids a layer computes q_y = ⌊a·M⌉ + z_y, with a the integer sum of products and M = s_x·s_w / s_y. Integer
kernels work this out from a, float kernels from the real numbers that the integers stand for, each with errors in the
last bits of float32. Where a·M comes close to n + ½ they round to different sides, and a deep network makes of such a
step as much as of the quantisation itself. With M = p/r and r odd, a·M = n + ½ would ask for 2·a·p = r·(2n + 1): an
even number that is odd. No sum is then nearer to a boundary than 1/(2r), which is out of reach of these errors while r
is a few thousand: all kernels round alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NEAR = 1e-3
"""Relative distance at which a fraction is close enough: a thousandth of a step of a weight is far below its own
rounding, and the smaller the denominator, the further from ties."""

LARGEST_DENOMINATOR = 1023
"""Of fractions tried first; float32 sums err by about 1e-5 of a step of the output's 8-bit grid, a twentieth of
1/(2·1023) even where they are at their worst."""

LEAST_NUMERATOR = 4
"""Of small multipliers, which may have larger denominators to be near enough."""


def untied(multiplier: NDArray[np.floating]) -> NDArray[np.float64]:
    """The nearby fraction with an odd denominator that keeps sums of products away from rounding ties.

    The least odd denominator whose fraction lies within :data:`NEAR` of the multiplier is taken; where none of those
    tried does, the nearest fraction.

    Args:
        multiplier: M, positive, any shape.

    Example:
        >>> float(untied(np.array([0.5]))[0] * 511)
        255.0
    """
    wanted = np.asarray(multiplier, np.float64)
    largest = np.maximum(LARGEST_DENOMINATOR, np.ceil(LEAST_NUMERATOR / wanted)) // 2 * 2 + 1
    best, distance = wanted.copy(), np.full(wanted.shape, np.inf)
    for below in range(LARGEST_DENOMINATOR - 1, -1, -2):
        denominator = largest - below
        fraction = np.maximum(np.rint(wanted * denominator), 1) / denominator
        apart = np.abs(fraction / wanted - 1)
        better = (distance > NEAR) & (apart < distance)
        best, distance = np.where(better, fraction, best), np.where(better, apart, distance)
    return best
