"""How long one run of both models takes, measured so that their ratio holds on a busy machine."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, Final

from onnxq.verify.report import Latency
from onnxq.verify.source import Feed, ModelLike, ModelSource


@dataclass(frozen=True)
class Effort:
    """How much time a measurement may take.

    Attributes:
        fewest: timed runs of each model, however long they take; one where a run is slow.
        most: timed runs of each model at most.
        seconds: after which no further run begins, once there are the fewest.
        slow: seconds a run of both models from which on one is enough.
    """

    fewest: int
    most: int
    seconds: float
    slow: float


THOROUGH: Final = Effort(fewest=5, most=100, seconds=2.0, slow=60.0)
"""For those who ask for a measurement."""

BRIEF: Final = Effort(fewest=3, most=25, seconds=1.0, slow=2.0)
"""Beside a quantization, which takes longer by far."""

_WARM_UP: Final = 2


def compare_speed(fp32: ModelLike, quantized: ModelLike, feed: Feed, *, threads: int = 1) -> Latency:
    """Time a quantized model beside its float model, briefly.

    Both run at onnxruntime's default level. One thread is what makes figures of different machines and loads
    comparable; with more of them both models gain.

    Args:
        fp32: path or proto of the float model.
        quantized: path or proto of the quantized model.
        feed: one batch, ``{input: array}``.
        threads: that compute a run.

    Raises:
        ModelError: a model cannot be read.
        Exception: onnxruntime's own, where it does not start or run one of them.
    """
    source = ModelSource.open(fp32, "float")
    sessions = source.start(threads=threads), ModelSource.open(quantized, "quantised").start(threads=threads)
    return measure_latency(*sessions, source, feed, BRIEF, threads)


def measure_latency(
    fp32: Any, quantized: Any, source: ModelSource, feed: Feed, effort: Effort = THOROUGH, threads: int = 0
) -> Latency:
    """Time both models in turns on the first sample of a batch.

    The machine's speed drifts with load and temperature; runs side by side drift together, and their
    medians ignore the odd interruption. Which of the two goes first alternates. Models that take
    only their own batch size are timed on the whole batch.

    Args:
        fp32: onnxruntime session of the float model.
        quantized: of the quantized model.
        source: the model whose inputs the feed fits.
        feed: one batch, ``{input: array}``.
        effort: time that it may take.
        threads: of the sessions.
    """
    sessions = fp32, quantized
    sample = _first_sample(source, feed)
    try:
        spent = sum([_run(session, sample) for session in sessions])
    except Exception:  # the batch size is built into one of them
        sample = dict(feed)
        spent = sum([_run(session, sample) for session in sessions])
    slow = spent > 1e3 * effort.slow
    for session in () if slow else sessions * _WARM_UP:
        _run(session, sample)
    fewest, most = (1, 1) if slow else (effort.fewest, effort.most)
    times: tuple[list[float], list[float]] = ([], [])
    start = perf_counter()
    while len(times[0]) < fewest or (len(times[0]) < most and perf_counter() - start < effort.seconds):
        order = (0, 1) if len(times[0]) % 2 == 0 else (1, 0)
        for which in order:
            times[which].append(_run(sessions[which], sample))
    return Latency(median(times[0]), median(times[1]), source.batch_size(sample), len(times[0]), threads)


def _first_sample(source: ModelSource, feed: Feed) -> Feed:
    batch = source.batch_size(feed)
    return {name: array[:1] if array.ndim and len(array) == batch else array for name, array in feed.items()}


def _run(session: Any, feed: Feed) -> float:
    """Milliseconds of one run."""
    start = perf_counter()
    session.run(None, feed)
    return 1e3 * (perf_counter() - start)
