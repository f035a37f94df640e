"""Requantisation without ties: multipliers for which no sum of integer products lies near a rounding boundary.

Between two grids a layer computes q_y = ⌊a·M⌉ + z_y, with a the integer sum of products and M = s_x·s_w / s_y. Integer
kernels work this out from a, float kernels from the real numbers that the integers stand for, each with errors in the
last bits of float32. Where a·M comes close to n + ½ they round to different sides, and a deep network makes of such a
step as much as of the quantization itself. With M = p/r and r odd, a·M = n + ½ would ask for 2·a·p = r·(2n + 1): an
even number that is odd. No sum is then nearer to a boundary than 1/(2r), which is out of reach of these errors while r
is a few thousand: all kernels round alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NEAR = 5e-5
"""Relative distance at which a fraction is close enough. It must be far below a step's rounding, for that averages out
over the positions of a feature map and this does not; and the smaller the denominator, the further from ties."""

DENOMINATORS = 4096
"""Odd ones tried: up to 8191 for multipliers of ordinary size. Half of those need less than 2,400. Sums in float32 err
by about 1e-5 of a step of the output's 8-bit grid."""

AT_ONCE = 256
"""Denominators tried in one go: of most multipliers the rest is not needed."""

LEAST_NUMERATOR = 4
"""Of small multipliers, whose denominators must be larger to be near enough."""


def nearest_tie_free(multiplier: NDArray[np.floating]) -> NDArray[np.float64]:
    """The nearby fraction with an odd denominator that keeps sums of products away from rounding ties.

    The least odd denominator whose fraction lies within :data:`NEAR` of the multiplier is taken; where none of those
    tried does, the nearest fraction.

    Args:
        multiplier: M, positive, (N,).

    Example:
        >>> [float(v) for v in nearest_tie_free(np.array([0.4, 1 / 3]))]
        [0.4, 0.3333333333333333]
    """
    wanted = np.asarray(multiplier, np.float64)
    best, distance = wanted.copy(), np.full(wanted.shape, np.inf)
    smallest = np.maximum(np.ceil(LEAST_NUMERATOR / wanted) - 2 * DENOMINATORS, 0) // 2 * 2 + 1
    for first in range(0, DENOMINATORS, AT_ONCE):
        open_ones = np.flatnonzero(distance > NEAR)
        denominators = smallest[open_ones, None] + 2 * np.arange(first, first + AT_ONCE)
        aim = wanted[open_ones, None]
        fractions = np.maximum(np.rint(aim * denominators), 1) / denominators
        apart = np.abs(fractions / aim - 1)
        near = apart <= NEAR
        chosen = np.where(near.any(axis=1), near.argmax(axis=1), apart.argmin(axis=1))[:, None]
        closest = np.take_along_axis(apart, chosen, 1)[:, 0]
        better = closest < distance[open_ones]
        best[open_ones[better]] = np.take_along_axis(fractions, chosen, 1)[better, 0]
        distance[open_ones[better]] = closest[better]
    return best
