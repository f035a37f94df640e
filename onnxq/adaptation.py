"""A quantisation adapted to samples of another kind, once it is finished."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from onnxq.config import Config
from onnxq.data import Feed, first_feeds
from onnxq.mend import emit_through_gate
from onnxq.network import NetworkSolution
from onnxq.progress import Listener, Progress
from onnxq.quantisation import GATE_SAMPLES, Clock, Result, Run
from onnxq.report.stage import StageReport, judged_stage
from onnxq.reporting import adapted_report
from onnxq.reranging import NoRoomError, reranged
from onnxq.stream import Again
from onnxq.ties import without_ties

JUDGED_BY = "squared error of the outputs beside their power, on samples of the new kind that were held back"


def adapted(run: Run, config: Config, feeds: Iterable[Feed], progress: Listener) -> Run:
    """A finished quantisation with ranges and moments of new samples, where its outputs gain by it.

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
        network, told = _attempt(run, config, kept, progress)
        known = run.known
        if network is None:
            report = dataclasses.replace(run.result.report, stages=(*run.result.report.stages, told))
            proto = run.result.model
        else:
            progress(Progress("verify", 0, None))
            layers = without_ties(run.model, [p.layer for p in run.plan.layers], network.layers, network.outputs)
            network = dataclasses.replace(network, layers=layers, remarks=())
            known = first_feeds(kept, GATE_SAMPLES)
            proto, checks, mended = emit_through_gate(run.model, run.plan, network, config, known)
            report = adapted_report(run.result.report, proto, checks, told, mended)
    report = dataclasses.replace(report, seconds={**report.seconds, **clock.seconds})
    return dataclasses.replace(run, result=Result(proto, report), network=network or run.network, known=known)


def _attempt(run: Run, config: Config, feeds: Again, progress: Listener) -> tuple[NetworkSolution | None, StageReport]:
    """The network with new ranges and moments, None where that is no gain; and what is to be said of it."""
    try:
        found = reranged(run.model, run.plan, run.network, config, feeds, progress)
    except NoRoomError:
        return None, judged_stage("adapt", "left as it was: a bias has no room beside the new ranges", JUDGED_BY, *_NAN)
    before, after = found.before, found.after
    if after < before:
        did = f"ranges and moments taken from {found.samples} samples of the new kind, every integer kept"
        return found.network, judged_stage("adapt", did, JUDGED_BY, before, after)
    did = "left as it was: with ranges and moments of the new samples it loses no less"
    return None, judged_stage("adapt", did, JUDGED_BY, before, after)


_NAN = (float("nan"), float("nan"))
