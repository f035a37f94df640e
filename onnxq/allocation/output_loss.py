"""How far a network's outputs are from the float network's, sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxq.verify.fidelity import class_scores, softmax_divergence

Array = NDArray[np.float64]
Outputs = Mapping[str, NDArray[np.generic]]

SUM_OF_SHARES = 1e-3
"""How far a row may sum from 1 and still count as probabilities."""


class OutputLoss:
    """The distance from a float network's outputs: KL of class scores where all outputs are such, else MSE.

    Class scores have two axes (behind trailing axes of size 1) and several classes; they are taken through a
    softmax unless they are probabilities already. MSE is relative to each output's variance, so that
    outputs of different sizes count alike; losses of several outputs are added.

    Args:
        exact: the float network's outputs, batch by batch.
        metric: ``kl`` or ``mse``; None to choose by the outputs.
    """

    def __init__(self, exact: Sequence[Outputs], metric: str | None = None) -> None:
        self._exact = [_floats(outputs) for outputs in exact]
        if metric is None:
            metric = "kl" if all(_scores(v) is not None for v in self._exact[0].values()) else "mse"
        self.metric = metric
        self._shares = {n for n in self._exact[0] if all(_are_shares(outputs[n]) for outputs in self._exact)}
        self._variance = {n: _variance([outputs[n] for outputs in self._exact]) for n in self._exact[0]}

    def of(self, batch: int, outputs: Outputs) -> Array:
        """Loss of each sample of a batch, (samples,)."""
        found = _floats(outputs)
        parts = [self._one(n, exact, found[n]) for n, exact in self._exact[batch].items()]
        total: Array = np.sum(parts, axis=0)
        return total

    def _one(self, name: str, exact: Array, found: Array) -> Array:
        if self.metric == "kl":
            p, q = _scores(exact), _scores(found)
            if p is not None and q is not None:
                if name in self._shares:
                    p, q = np.log(np.maximum(p, 1e-30)), np.log(np.maximum(q, 1e-30))
                return softmax_divergence(p, q)
        square = (
            np.square(found - exact).reshape(len(exact), -1) if exact.ndim else np.square(found - exact).reshape(1, 1)
        )
        mean: Array = square.mean(axis=1) / max(self._variance[name], 1e-30)
        return mean


def _floats(outputs: Outputs) -> dict[str, Array]:
    return {n: v.astype(np.float64) for n, v in outputs.items() if np.issubdtype(v.dtype, np.floating)}


def _scores(values: Array) -> Array | None:
    scores = class_scores(values)
    return scores if scores is not None and scores.ndim == 2 else None


def _are_shares(values: Array) -> bool:
    scores = _scores(values)
    return scores is not None and bool(scores.min() >= 0 and np.abs(scores.sum(axis=1) - 1).max() < SUM_OF_SHARES)


def _variance(parts: Sequence[Array]) -> float:
    count = sum(p.size for p in parts)
    mean = sum(float(p.sum()) for p in parts) / max(count, 1)
    return sum(float(np.square(p - mean).sum()) for p in parts) / max(count, 1)
