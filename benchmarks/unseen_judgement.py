"""How close a quantized model's answers to new samples are to the float model's: of all, and of each sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.verify.session import start_session

MOST_DB = 150.0
"""What equal answers count as."""

Array = NDArray[Any]


@dataclass(frozen=True)
class Judged:
    """One quantized model on the new samples.

    Attributes:
        sqnr_db: signal to noise of all answers together, decibels; None where there is no model or no finite answer.
        median_db, worst_db: of the samples, each by its own signal.
        agreement: percent of the decisions that are the float model's; None where the answers are no scores.
        accuracy: percent of the decisions that are right; None without labels.
        seconds: of quantizing.
        reason: why there are no figures.
    """

    sqnr_db: float | None = None
    median_db: float | None = None
    worst_db: float | None = None
    agreement: float | None = None
    accuracy: float | None = None
    seconds: float | None = None
    reason: str = ""


def answers(model: Path, feeds: Sequence[Mapping[str, Array]]) -> tuple[str, Array]:
    """The name of a model's first float output and what it holds, first axis samples.

    onnxruntime runs it at its default level.
    """
    session = start_session(str(model))
    name = next(o.name for o in session.get_outputs() if "float" in o.type)
    return name, np.concatenate([session.run([name], dict(feed))[0] for feed in feeds])


def judged(exact: Array, found: Array, labels: Array | None, *, scores: bool, seconds: float | None = None) -> Judged:
    """The figures of a quantized model.

    Args:
        exact: what the float model answers, first axis samples.
        found: what the quantized model answers, the same shape.
        labels: of the samples, if they are known.
        scores: whether the answers are scores along the last axis.
        seconds: of quantizing.
    """
    if not np.isfinite(found).all():
        return Judged(seconds=seconds, reason="its answers are not finite")
    signal, noise = (np.square(v.reshape(len(v), -1).astype(np.float64)).sum(1) for v in (exact, exact - found))
    each = decibels(signal[signal > 0], noise[signal > 0])
    decided = found.argmax(-1)
    return Judged(
        sqnr_db=float(decibels(signal.sum(), noise.sum())),
        median_db=float(np.median(each)),
        worst_db=float(each.min()),
        agreement=percent(decided == exact.argmax(-1)) if scores else None,
        accuracy=None if labels is None else percent(decided.reshape(labels.shape) == labels),
        seconds=seconds,
    )


def decibels(signal: Any, noise: Any) -> Any:
    """Signal to noise of powers above 0 and from 0 on, :data:`MOST_DB` at most."""
    return 10 * np.log10(signal / np.maximum(noise, signal * 10 ** (-MOST_DB / 10)))


def percent(hits: Array) -> float:
    """The share of those that hold."""
    return float(100 * hits.mean())
