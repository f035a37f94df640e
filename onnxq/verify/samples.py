"""How close one output is for each sample on its own: what the power of a single sample may hide."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


class SampleMeter:
    """Signal to noise of every sample of one output, gathered batch by batch.

    The first axis of an output counts as its samples where it is as long as the batch, in every batch. A batch of
    one is a sample whatever the shape of its output: nothing in it comes from another.
    """

    def __init__(self) -> None:
        self._figures: list[NDArray[np.float64]] = []
        self._broken: list[NDArray[np.bool_]] = []
        self._apart = True

    def add(self, fp32: NDArray[np.float64], quantized: NDArray[np.float64], samples: int) -> None:
        """Take in both models' answers to a batch.

        Args:
            fp32: the float model's output, any shape, float64.
            quantized: the quantized model's, same shape.
            samples: in the batch.
        """
        if samples == 0:
            return
        self._apart = self._apart and (samples == 1 or (fp32.ndim > 0 and len(fp32) == samples))
        if not self._apart:
            self._figures, self._broken = [], []
            return
        a, b = fp32.reshape(samples, -1), quantized.reshape(samples, -1)
        finite = np.isfinite(a) & np.isfinite(b)
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        if not finite.all():
            a, b = np.where(finite, a, 0.0), np.where(finite, b, 0.0)
        error = a - b
        found = [decibels(float(x @ x), float(e @ e)) if x.size else None for x, e in zip(a, error, strict=True)]
        self._figures.append(np.array([math.nan if figure is None else figure for figure in found]))
        self._broken.append((~finite & ~same).any(axis=1))

    @property
    def median(self) -> float | None:
        """Median over the samples of their signal to noise, decibels; None where it is not known."""
        figures = self._all
        known = figures[~np.isnan(figures)]
        return float(np.median(known)) if known.size and self._first_broken is None else None

    @property
    def worst(self) -> float | None:
        """The least signal to noise of a sample, decibels; None where it is not known."""
        index = self.worst_sample
        return None if index is None or self._first_broken is not None else float(self._all[index])

    @property
    def worst_sample(self) -> int | None:
        """Index of that sample; of the first with a value that is not finite in one model only where there is one."""
        if self._first_broken is not None:
            return self._first_broken
        figures = self._all
        return None if np.isnan(figures).all() else int(np.nanargmin(figures))

    @property
    def _all(self) -> NDArray[np.float64]:
        return np.concatenate([np.empty(0), *self._figures])

    @property
    def _first_broken(self) -> int | None:
        broken = np.concatenate([np.empty(0, np.bool_), *self._broken])
        return int(broken.argmax()) if broken.any() else None


def decibels(signal: float, noise: float) -> float | None:
    """10·log₁₀(signal / noise); infinite without noise, None where there is noise alone."""
    if noise == 0.0:
        return math.inf
    return 10.0 * (math.log10(signal) - math.log10(noise)) if signal > 0.0 else None
