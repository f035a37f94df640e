"""What people call: a model quantized at bits given or chosen, what its layers lose, what would become of it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection
from functools import partial
from itertools import product
from pathlib import Path

import onnx

from onnxq.adaptation.adapt import adapted
from onnxq.allocation.bit_allocation import BitAllocation
from onnxq.allocation.cached_problem import kept_problem
from onnxq.allocation.measure import Measuring
from onnxq.allocation.mixed import choose, held_out, measured_loss, tables_for
from onnxq.allocation.problem import AllocationProblem
from onnxq.allocation.reallocate import Attempt, account, carry_out, remark
from onnxq.config import Config
from onnxq.config.bit_widths import parse_candidates
from onnxq.config.budget import parse_budgets
from onnxq.config.without_effect import require_choice
from onnxq.data import Data, first_feeds, read_feeds
from onnxq.data.replay import Again, batch_for, counted
from onnxq.errors import ConfigError
from onnxq.ir.model import Model
from onnxq.ir.size import model_bytes
from onnxq.pipeline import GATE_SAMPLES, Clock, Result, Run, Source, Task, opset_of, prepared_model, run
from onnxq.plan.make_plan import make_plan, require_block, require_layers
from onnxq.plan.values import Plan
from onnxq.preprocess.empty_layers import without_empty
from onnxq.progress import Listener, Progress, silent
from onnxq.report.build import checked
from onnxq.report.speed import timed_report
from onnxq.runtime.diagnosis import diagnosed
from onnxq.solve.checkpoint import fingerprint
from onnxq.validation.check import judged, labels_for, opened
from onnxq.validation.speed import speed_beside_float
from onnxq.verify import measure_ranges


def quantize(
    model: str | Path | onnx.ModelProto,
    calibration: Data,
    config: Config | None = None,
    *,
    allocation: BitAllocation | None = None,
    adapt: Data | None = None,
    check: Data | None = None,
    labels: str | None = None,
    ignore: Collection[str] = (),
    require_speedup: float | None = None,
    progress: Listener = silent,
    work_dir: str | Path | None = None,
    resume: bool = False,
) -> Result:
    """Quantize a model.

    With candidates in the configuration, or an allocation, every layer has its own bits.

    Args:
        model: path of an ONNX file, or a model in memory (it is not changed).
        calibration: unlabelled samples: path of an ``.npz``, of a folder of ``.npy`` files or images, an
            array, a mapping ``{input: array}``, or any iterable of batches of either.
        config: the options; the defaults when None.
        allocation: bits of every layer, chosen before; they are chosen here when None and there are candidates.
        adapt: unlabelled samples of the kind that the model will meet, where that is another than the calibration
            set's: ranges and moments are found anew on them and every integer of the weights stays as it was solved
            (:mod:`onnxq.adaptation.reranging`), where that brings the outputs closer to the float network's.
        check: unlabelled samples to judge the finished model on, none of those it is made from, in the same forms;
            ``result.report.check`` tells how close its outputs are, over all samples and for the median and worst
            one, and which of its tensors leave their ranges.
        labels: name of the array in ``check`` (an ``.npz`` or a mapping) that holds each sample's class; the check
            counts right answers then. The other sets may hold it too.
        ignore: names of arrays in the sets that the model does not take, to pass over.
        require_speedup: how many times as fast as the float model the result must be for ``result.report.ok``, on one
            thread of this machine; ``result.report.latency_ms`` has the times in any case.
        progress: told how far the run is.
        work_dir: folder that keeps finished layers, so that a stopped run can go on, and the tables that bits are
            chosen from, so that another budget measures nothing again.
        resume: go on with what ``work_dir`` holds.

    Raises:
        InputError: the model, the samples or an option cannot be used; the message says which and why.
        VerificationError: the emitted model does not run, or not alike, at every optimization level of onnxruntime.
    """
    config, folder = config or Config(), None if work_dir is None else Path(work_dir)
    if labels is not None and check is None:
        raise ConfigError("labels are for the samples of check: give these too, or ignore the array instead.")
    beside = frozenset((*ignore, labels)) if labels else frozenset(ignore)
    require_choice(config, allocated=allocation is not None)
    with diagnosed(model):
        fresh, unseen = opened(model, adapt, check, ignore=beside)
        classes = labels_for(model, check, labels) if labels and check is not None else None
        if config.candidates or allocation:
            done = _mixed(model, calibration, config, allocation, progress, folder, resume, beside)
        else:
            done = run(Task(model, calibration, config, None, progress, folder, resume, ignore=beside))
        if fresh is not None:
            done = adapted(done, config, fresh, progress)
        done = _timed(model, done, config, require_speedup, progress)
        if check is None or unseen is None:
            return done.result
        clock = Clock()
        with clock.stage("check"):
            found = judged(model, done.result.model, unseen, check, progress, classes)
            usual = measure_ranges(done.result.model, done.known)
        made = {"calibration": calibration, "adaptation": adapt}
        same = [name for name, data in made.items() if data is not None and _same(check, data)]
        return Result(done.result.model, checked(done.result.report, found, usual, clock.seconds, same))


def sensitivity(
    model: str | Path | onnx.ModelProto,
    calibration: Data,
    config: Config,
    measuring: Measuring | None = None,
    *,
    ignore: Collection[str] = (),
    progress: Listener = silent,
) -> AllocationProblem:
    """What every layer loses and costs at each of the configuration's candidates.

    Args:
        model: as for :func:`quantize`.
        calibration: as for :func:`quantize`. Candidates are judged by its first ``config.table_samples`` samples,
            at most half, and solved on the others.
        config: candidates, container, edge bits.
        measuring: how; the defaults when None.
        ignore: as for :func:`quantize`.
        progress: told how far the run is.

    Raises:
        InputError: the model, the samples or an option cannot be used.
    """
    candidates = parse_candidates(config.candidates)
    prepared = prepared_model(model, config, opset_of(config, dict(enumerate(candidates))))
    require_layers(prepared)
    batch = batch_for(prepared, config)
    name = "" if isinstance(model, onnx.ModelProto) else Path(model).name
    with Again(config.memory_limit // 8) as kept:
        read = read_feeds(calibration, prepared.inputs, samples=config.samples, batch=batch, ignore=ignore)
        for feed in counted(read, calibration, config, progress):
            kept.append(feed)
        prepared = without_empty(prepared, first_feeds(kept, GATE_SAMPLES))
        return tables_for(
            prepared, kept, config, measuring or Measuring(), progress, float_bytes=model_bytes(model), name=name
        )


def _mixed(
    model: str | Path | onnx.ModelProto,
    calibration: Data,
    config: Config,
    allocation: BitAllocation | None,
    progress: Listener,
    folder: Path | None,
    resume: bool,
    ignore: Collection[str],
) -> Run:
    """A quantization with each layer's own bits; they are chosen first where no allocation is given."""
    choice = allocation.choice if allocation else dict(enumerate(parse_candidates(config.candidates)))
    source = Source(model, config)
    prepared = source.at(opset_of(config, choice))
    layers, _ = require_layers(prepared)
    if allocation:
        require_block(((la, allocation.choice[la.name]) for la in layers if la.name in allocation.choice), config)
    else:
        require_block(product(layers, choice.values()), config)
    batch = batch_for(prepared, config)
    with Again(config.memory_limit // 8) as kept:
        for feed in read_feeds(calibration, prepared.inputs, samples=config.samples, batch=batch, ignore=ignore):
            kept.append(feed)
        prepared = without_empty(prepared, first_feeds(kept, GATE_SAMPLES))
        clock, problem = Clock(), None
        with clock.stage("allocate"):
            if allocation is None:
                options = Measuring(latency=any(b.quantity == "latency" for b in parse_budgets(config.budget)))
                measure = partial(tables_for, prepared, kept, config, options, progress, float_bytes=model_bytes(model))
                place = folder and folder / "table"
                problem = kept_problem(place, resume, prepared, kept, config, options, measure)
                allocation = choose(prepared, problem, kept, config)

        def choose_again(tables: AllocationProblem) -> BitAllocation:
            return choose(prepared, tables, kept, config)

        judged = held_out(prepared, kept, first_feeds(kept, config.table_samples))

        def solve(found: BitAllocation) -> Attempt[Run]:
            place = folder and folder / f"bits-{_mark_of(found, config)}"
            data = calibration if isinstance(calibration, (str, Path)) else kept
            done = run(Task(model, data, config, found.choice, progress, place, resume, source, ignore))
            metric = problem.sensitivity.metric if problem else None
            loss, error = measured_loss(prepared, done.result.model, judged, metric)
            return Attempt(found, done.model, done.network, loss, done, error)

        best, tried = carry_out(allocation, problem, kept, config, solve, choose_again, progress)
    report = best.result.result.report
    report = dataclasses.replace(
        report,
        allocation=account(best, tried),
        notes=(*report.notes, remark(best)),
        seconds={**clock.seconds, **report.seconds},
    )
    return dataclasses.replace(best.result, result=Result(best.result.result.model, report))


def _timed(
    model: str | Path | onnx.ModelProto, done: Run, config: Config, required: float | None, progress: Listener
) -> Run:
    """The run with its model's speed beside the float model's."""
    made, clock = done.result.model, Clock()
    with clock.stage("time"):
        progress(Progress("time", 0, None))
        found = speed_beside_float(model, made, done.known[0], config.memory_limit)
    report = timed_report(done.result.report, found, required, done.plan, made)
    report = dataclasses.replace(report, seconds={**report.seconds, **clock.seconds})
    return dataclasses.replace(done, result=Result(made, report))


def inspect(model: str | Path | onnx.ModelProto, config: Config | None = None) -> tuple[Model, Plan]:
    """What would be quantized, at how many bits, and why the rest would not.

    Raises:
        ModelError: the model cannot be read.
        UnsupportedError: it has no layer to quantize.
    """
    config = config or Config()
    with diagnosed(model):
        prepared = prepared_model(model, config, config.opset)
        return prepared, make_plan(prepared, config)


def _same(one: Data, other: Data) -> bool:
    """Whether two sources of samples are one file, folder or object."""
    if isinstance(one, (str, os.PathLike)) and isinstance(other, (str, os.PathLike)):
        return Path(one).resolve() == Path(other).resolve()
    return one is other


def _mark_of(allocation: BitAllocation, config: Config) -> str:
    """What tells the layers of an allocation from those of others in one folder."""
    choice = {name: str(bits) for name, bits in allocation.choice.items()}
    return fingerprint([json.dumps([choice, dataclasses.asdict(config)], sort_keys=True).encode()])[:12]
