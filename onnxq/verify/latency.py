"""How long one run of both models takes, measured so that their ratio holds on a busy machine."""

from __future__ import annotations

from statistics import median
from time import perf_counter
from typing import Any, Final

from onnxq.verify.report import Latency
from onnxq.verify.source import Feed, ModelSource

_WARM_UP: Final = 2
_FEWEST: Final = 5
_MOST: Final = 100
_SECONDS: Final = 2.0


def measure_latency(fp32: Any, quantized: Any, source: ModelSource, feed: Feed) -> Latency:
    """Time both models in turns on the first sample of a batch.

    The machine's speed drifts with load and temperature; runs side by side drift together, and their
    medians ignore the odd interruption. Which of the two goes first alternates. Models that take
    only their own batch size are timed on the whole batch.

    Args:
        fp32: onnxruntime session of the float model.
        quantized: of the quantized model.
        source: the model whose inputs the feed fits.
        feed: one batch, ``{input: array}``.
    """
    sample = _first_sample(source, feed)
    try:
        for session in (fp32, quantized):
            session.run(None, sample)
    except Exception:  # the batch size is built into one of them
        sample = dict(feed)
    for _ in range(_WARM_UP):
        _run(fp32, sample)
        _run(quantized, sample)
    times: dict[int, list[float]] = {0: [], 1: []}
    start = perf_counter()
    while len(times[0]) < _FEWEST or (len(times[0]) < _MOST and perf_counter() - start < _SECONDS):
        order = (0, 1) if len(times[0]) % 2 == 0 else (1, 0)
        for which in order:
            times[which].append(_run((fp32, quantized)[which], sample))
    return Latency(median(times[0]), median(times[1]), source.batch_size(sample), len(times[0]))


def _first_sample(source: ModelSource, feed: Feed) -> Feed:
    batch = source.batch_size(feed)
    return {name: array[:1] if array.ndim and len(array) == batch else array for name, array in feed.items()}


def _run(session: Any, feed: Feed) -> float:
    """Milliseconds of one run."""
    start = perf_counter()
    session.run(None, feed)
    return 1e3 * (perf_counter() - start)
