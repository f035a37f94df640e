"""How well predicted losses match measured ones, and cheap sensitivities the full ones, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

from onnxq.allocation.problem import AllocationProblem


def prediction(predicted: Sequence[float], measured: Sequence[float], samples: int) -> str:
    """How well predictions order and match what was measured."""
    ratio = np.array(measured) / np.array(predicted)
    rank = spearmanr(predicted, measured).statistic
    return (
        f"{len(predicted)} allocations along the front on {samples} samples: rank correlation of predicted and "
        f"measured loss {rank:.3f}; measured / predicted {ratio.min():.2f} to {ratio.max():.2f}, "
        f"median {np.median(ratio):.2f}"
    )


def likeness(full: AllocationProblem, scaled: AllocationProblem, times: tuple[float, float]) -> str:
    """How well the cheap sensitivities order and match the full ones.

    Args:
        full: measured at every candidate.
        scaled: measured at one candidate a layer.
        times: processor seconds of both.
    """
    a, b = full.matrix("loss").ravel(), scaled.matrix("loss").ravel()
    known = np.isfinite(a) & np.isfinite(b)
    rank = spearmanr(a[known], b[known]).statistic
    ratio = b[known & (a > 0) & (b > 0)] / a[known & (a > 0) & (b > 0)]
    low, high = np.quantile(ratio, [0.1, 0.9])
    return (
        f"rank correlation with full {rank:.3f} over {int(known.sum())} entries; scaled / full {low:.2f} to {high:.2f} "
        f"in eight of ten; {times[1]:.0f} s of processor time against {times[0]:.0f} s, "
        f"{times[0] / times[1]:.1f} times less"
    )
