"""A quantization adapted to samples of another kind, once it is finished."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable

from onnxq.acceptance.fallbacks import emit_through_gate
from onnxq.adaptation.reranging import NoRoomError, Reranged, rerange
from onnxq.config import Config
from onnxq.data import Feed, first_feeds, samples_in
from onnxq.data.replay import Again
from onnxq.pipeline import GATE_SAMPLES, Clock, Result, Run
from onnxq.progress import Listener, Progress
from onnxq.report.build import adapted_report
from onnxq.solve.closed_form.tie_free_scales import without_ties
from onnxq.solve.stage_report import judged_stage
from onnxq.validation.judgement import exact_outputs, judge
from onnxq.validation.quality import output_qualities

JUDGED_BY = "mean error of the outputs beside their power, on samples of the new kind that were held back"


def adapted(run: Run, config: Config, feeds: Iterable[Feed], progress: Listener) -> Run:
    """A finished quantization with ranges and moments of new samples, where its outputs gain by it.

    No integer of a weight or a table changes. Where the new ranges lose no less than the old ones on samples held
    back, the model stays as it was, and the report says so.

    Args:
        run: as finished.
        config: that it was made with.
        feeds: unlabelled samples in batches, read once.
        progress: told how far it is.

    Raises:
        CalibrationError: a sample does not fit the model, or makes NaN or infinity in it.
        VerificationError: the adapted model does not run, or not alike, at every level of onnxruntime.
    """
    clock = Clock()
    with clock.stage("adapt"), Again(config.memory_limit // 8) as kept:
        names = {i.name for i in run.model.inputs}
        for feed in feeds:
            kept.append({name: array for name, array in feed.items() if name in names})
        done = _attempt(run, config, kept, progress)
    report = done.result.report
    report = dataclasses.replace(report, seconds={**report.seconds, **clock.seconds})
    return dataclasses.replace(done, result=Result(done.result.model, report))


def _attempt(run: Run, config: Config, feeds: Again, progress: Listener) -> Run:
    """The run with new ranges and moments, or with the word that they were no gain."""
    if sum(map(samples_in, feeds)) < 2:
        return _left(run, "one sample cannot tell whether others gain by it")
    try:
        found = rerange(run.model, run.plan, run.network, config, feeds, progress)
    except NoRoomError:
        return _left(run, "a bias has no room beside the new ranges")
    if not found.after < found.before:
        return _left(run, "with ranges and moments of the new samples it loses no less", found)
    progress(Progress("verify", 0, None))
    known = list(first_feeds(feeds, GATE_SAMPLES))
    layers = without_ties(run.model, [p.layer for p in run.plan.layers], found.network.layers, found.network.outputs)
    network = dataclasses.replace(found.network, layers=layers)
    seen = output_qualities(judge(run.model, run.plan, network, known, exact_outputs(run.model, known)))
    network = dataclasses.replace(network, sqnr_db={quality.output: quality.sqnr_db for quality in seen})
    emitted = emit_through_gate(run.model, run.plan, network, config, known)
    taken = f"{found.fitted} sample{'s'[: found.fitted != 1]}"
    did = f"ranges and moments taken from {taken} of the new kind, every integer kept"
    told = judged_stage("adapt", did, JUDGED_BY, found.before, found.after)
    total = sum(map(samples_in, feeds))
    judgement = found.judgement if found.fitted < total else None
    report = adapted_report(run.result.report, emitted, told, judgement, total)
    return dataclasses.replace(run, result=Result(emitted.proto, report), network=network, known=known)


def _left(run: Run, why: str, found: Reranged | None = None) -> Run:
    """The run as it was, and why."""
    losses = (math.nan, math.nan) if found is None else (found.before, found.after)
    told = judged_stage("adapt", f"left as it was: {why}", JUDGED_BY, *losses)
    report = dataclasses.replace(run.result.report, stages=(*run.result.report.stages, told))
    return dataclasses.replace(run, result=Result(run.result.model, report))
