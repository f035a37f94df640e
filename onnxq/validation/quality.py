"""How well a network does on samples that it was not made from, and how sure that is."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri, stdtrit

from onnxq.quant.decibels import decibels
from onnxq.validation.judgement import Judgement

SURE_DB = 1.5
"""Standard error beyond which a figure is a guess."""

CONFIDENCE = 0.975
"""Quantile of Student's distribution by which the standard error of few samples is widened, beside the normal one's."""


@dataclass(frozen=True)
class OutputQuality:
    """One output on samples that were not fitted.

    Attributes:
        output: name of the output.
        sqnr_db: signal to quantization noise, Σ signal² over Σ error² of all samples, dB; None where the two networks
            answer alike.
        error_db: standard error of ``sqnr_db``, dB, widened for what so few samples know of it; None where there is one
            sample.
        median_db: median of the samples' own signal to noise, dB; None where they are alike.
        worst_db: least of the samples' own signal to noise, dB.
        worst_sample: index of that sample in the calibration set.
    """

    output: str
    sqnr_db: float | None
    error_db: float | None
    median_db: float | None
    worst_db: float | None
    worst_sample: int | None

    @property
    def known(self) -> bool:
        """Whether the samples are enough to tell the whole from: its standard error is not beyond 1.5 dB."""
        return self.sqnr_db is None or (self.error_db is not None and self.error_db <= SURE_DB)


def output_qualities(judgement: Judgement) -> tuple[OutputQuality, ...]:
    """The quality of every output."""
    return tuple(
        _quality(name, signal, judgement.noise[name], judgement.samples) for name, signal in judgement.signal.items()
    )


def _quality(
    name: str, signal: NDArray[np.float64], noise: NDArray[np.float64], samples: NDArray[np.int64]
) -> OutputQuality:
    each = [(db, int(i)) for s, n, i in zip(signal, noise, samples, strict=True) if (db := decibels(s, n)) is not None]
    worst = min(each, default=None)
    return OutputQuality(
        output=name,
        sqnr_db=decibels(float(signal.sum()), float(noise.sum())),
        error_db=_standard_error(signal, noise),
        median_db=float(np.median([db for db, _ in each])) if each else None,
        worst_db=worst[0] if worst else None,
        worst_sample=worst[1] if worst else None,
    )


def _standard_error(signal: NDArray[np.float64], noise: NDArray[np.float64]) -> float | None:
    """Standard error of the whole's decibels, by the jackknife (Efron, 1982): each sample is left out in turn."""
    count = len(signal)
    if count < 2 or not np.isfinite(noise).all():
        return None
    rest = (signal.sum() - signal, noise.sum() - noise)
    if not (np.minimum(*rest) > 0).all():
        return None
    db = 10 * np.log10(rest[0] / rest[1])
    widened = float(stdtrit(count - 1, CONFIDENCE) / ndtri(CONFIDENCE))
    return widened * math.sqrt((count - 1) / count * float(np.square(db - db.mean()).sum()))
