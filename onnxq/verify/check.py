"""The whole verification, in one pass over the feeds."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

from numpy.typing import NDArray

from onnxq.errors import CalibrationError, ModelError
from onnxq.verify.bits import audit_bits
from onnxq.verify.comparison import Comparison
from onnxq.verify.findings import FirstDifference
from onnxq.verify.kernel_census import take_census
from onnxq.verify.latency import measure_latency
from onnxq.verify.levels import compare_levels
from onnxq.verify.ranges import RangeMeter
from onnxq.verify.report import LevelCheck, VerificationReport
from onnxq.verify.session import reason
from onnxq.verify.source import Feed, ModelLike, ModelSource
from onnxq.verify.trace import TOLERANCE, first_difference


def verify(
    fp32: ModelLike,
    quantized: ModelLike,
    feeds: Iterable[Feed],
    *,
    labels: NDArray[Any] | None = None,
    classification: bool = False,
    latency: bool = True,
    ranges: bool = False,
    level_samples: int = 64,
    progress: Callable[[int], None] | None = None,
) -> VerificationReport:
    """Compare a quantized model with its float model on samples, and look into its file.

    Both models run at onnxruntime's default level, as people run them; a quantized model that does
    not work there is judged at the highest level that does. Feeds are taken one at a time: memory
    holds one batch and its outputs, the first ``level_samples`` samples, and both models. Figures
    are sums over all values, so they do not depend on how samples are cut into batches.

    Args:
        fp32: path or proto of the float model.
        quantized: path or proto of the quantized model, with the same inputs and outputs.
        feeds: ``{input: array}``, first axis samples; read once.
        labels: class of each sample, in the feeds' order, (samples,) or (samples, rows), integer.
            Implies ``classification``.
        classification: whether float outputs of rank 2 and more are class scores along the last axis.
        latency: whether to time both models.
        ranges: whether to measure what leaves the ranges of the quantized tensors. The quantized model runs once
            more for it, without the fusions that make it fast: several times what its outputs alone take.
        level_samples: how many samples, rounded up to whole batches, to compare the optimization
            levels on.
        progress: called after each batch with the number of samples done.

    Raises:
        ModelError: a model cannot be read, the float model does not load, or their inputs or outputs differ.
        CalibrationError: there are no feeds, a feed or the labels do not fit the model.
        VerificationError: the quantized model works on the first samples but fails on a later one, or where its
            inner tensors are read out for their ranges.

    Example:
        >>> report = verify("net.onnx", "net.w8a8.onnx", batches)  # doctest: +SKIP
        >>> report.ok, report.outputs[0].sqnr_db  # doctest: +SKIP
        (True, 31.4)
    """
    float_source, source = ModelSource.open(fp32, "float"), ModelSource.open(quantized, "quantised")
    classification = classification or labels is not None
    comparison = Comparison(float_source, source, labels, classification=classification)
    census = take_census(quantized)
    bits = tuple(replace(layer, fused=census.integer.get(layer.name)) for layer in audit_bits(quantized))

    float_session = _start_float(float_source)
    fitted = (float_source.fit(feed) for feed in feeds)
    held = _take(fitted, float_source, level_samples)
    comparison.run_fp32(float_session, held[0])  # so that a feed that does not fit is not blamed on a level
    loads = compare_levels(source, held, classification=classification)
    level = next((check.level for check in reversed(loads) if check.ok), None)
    timing = None
    meter = None
    if level is not None:
        meter = RangeMeter(quantized, next(check.level for check in loads if check.ok)) if ranges else None
        session = source.start(level)
        for feed in chain(held, fitted):
            comparison.add(float_session, session, feed)
            if meter is not None:
                meter.add(feed, float_source.batch_size(feed))
            if progress is not None:
                progress(comparison.samples)
        timing = measure_latency(float_session, session, float_source, held[0]) if latency else None
    return VerificationReport(
        fp32=float_source.size,
        quantized=source.size,
        samples=comparison.samples,
        level=level,
        outputs=() if level is None else comparison.outputs(),
        loads=loads,
        latency_ms=timing,
        bits=bits,
        kernels=census.counts,
        difference=_traced(quantized, held, loads),
        ranges=None if meter is None else meter.result(),
    )


def _traced(quantized: ModelLike, feeds: list[Feed], loads: tuple[LevelCheck, ...]) -> FirstDifference | None:
    """Where the lowest level that fails or differs first does."""
    wrong = next((c.level for c in loads if not c.ok or (c.relative_rms or 0.0) > TOLERANCE), None)
    return None if wrong is None else first_difference(quantized, feeds, wrong)


def _start_float(source: ModelSource) -> Any:
    try:
        return source.start()
    except Exception as error:
        raise ModelError(f"{source.label} does not load in onnxruntime ({reason(error)}); export it again") from error


def _take(feeds: Iterator[Feed], source: ModelSource, samples: int) -> list[Feed]:
    """The first batches, at least one, until they hold that many samples."""
    held: list[Feed] = []
    count = 0
    for feed in feeds:
        held.append(feed)
        count += source.batch_size(feed)
        if count >= samples:
            break
    if not held:
        raise CalibrationError("there are no feeds to verify on; give at least one sample")
    return held
