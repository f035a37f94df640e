"""Signal to noise."""

from __future__ import annotations

import math


def decibels(signal: float, noise: float) -> float | None:
    """10·log₁₀ of a ratio of powers; None where there is no noise or no signal, −∞ where the noise has no bound.

    Args:
        signal: power, or sum of squares.
        noise: that of the error, in the same unit.

    Example:
        >>> decibels(1.0, 0.01)
        20.0
    """
    if not noise or not signal:
        return None
    return 10 * math.log10(signal / noise) if math.isfinite(noise) else -math.inf
