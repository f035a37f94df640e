"""The order of things: load, passes, calibrate, solve, emit, verify. Only this module knows it."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from onnxq.allocation.attempts import Attempt, account, carried_out, remark
from onnxq.allocation.bit_allocation import BitAllocation
from onnxq.allocation.kept import kept_problem
from onnxq.allocation.mixed import choose, held_out, measured_loss, tables_for
from onnxq.allocation.problem import AllocationProblem
from onnxq.allocation.tabulate import Measuring
from onnxq.budget import parse_budgets
from onnxq.candidate import FLOAT, Candidate, parse_candidates
from onnxq.checkpoint import Checkpoint, fingerprint
from onnxq.config import Config
from onnxq.data import Data, count_samples, first_feeds, read_feeds
from onnxq.diagnosis import diagnosed
from onnxq.equalisation import RANGE_SAMPLES, equalised
from onnxq.execute.chain import Quantised
from onnxq.execute.memory import free_old_graphs
from onnxq.fine_tuning import affordable, tuned
from onnxq.ir.excluded import exclude
from onnxq.ir.front_end import spectrogram
from onnxq.ir.load import load
from onnxq.ir.model import Model
from onnxq.ir.save import identity, save
from onnxq.ir.size import model_bytes
from onnxq.ir.table import find_tables
from onnxq.mend import emit_through_gate
from onnxq.migration import migrated
from onnxq.network import NetworkSolution, by_constant, solve_network
from onnxq.passes.prepare import prepare
from onnxq.plan import Plan, make_plan
from onnxq.progress import Listener, Progress, silent
from onnxq.report.run import RunReport
from onnxq.report.stage import solved_stage
from onnxq.reporting import run_report
from onnxq.stream import Again, Stream, batch_size, counted
from onnxq.ties import without_ties
from onnxq.version import VERSION

GATE_SAMPLES = 16
"""Calibration samples on which the emitted model must run at every level."""


@dataclass(frozen=True)
class Result:
    """A quantised model and the account of how it came about.

    Attributes:
        model: with QuantizeLinear and DequantizeLinear nodes.
        report: every layer, what stayed float and why, and the proof that the model loads.
    """

    model: onnx.ModelProto
    report: RunReport

    def save(self, path: str | Path) -> None:
        """Write the model; the file appears complete or not at all.

        Raises:
            OutputError: the place cannot be written.
        """
        save(self.model, Path(path))


def quantize(
    model: str | Path | onnx.ModelProto,
    calibration: Data,
    config: Config | None = None,
    *,
    allocation: BitAllocation | None = None,
    progress: Listener = silent,
    work_dir: str | Path | None = None,
    resume: bool = False,
) -> Result:
    """Quantise a model.

    With candidates in the configuration, or an allocation, every layer has its own bits.

    Args:
        model: path of an ONNX file, or a model in memory (it is not changed).
        calibration: unlabelled samples: path of an ``.npz``, of a folder of ``.npy`` files or images, an
            array, a mapping ``{input: array}``, or any iterable of batches of either.
        config: the options; the defaults when None.
        allocation: bits of every layer, chosen before; they are chosen here when None and there are candidates.
        progress: told how far the run is.
        work_dir: folder that keeps finished layers, so that a stopped run can go on, and the tables that bits are
            chosen from, so that another budget measures nothing again.
        resume: go on with what ``work_dir`` holds.

    Raises:
        InputError: the model, the samples or an option cannot be used; the message says which and why.
        VerificationError: the emitted model does not run, or not alike, at every optimisation level of onnxruntime.
    """
    config, folder = config or Config(), None if work_dir is None else Path(work_dir)
    with diagnosed(model):
        if config.candidates or allocation:
            return _mixed(model, calibration, config, allocation, progress, folder, resume)
        return _run(_Task(model, calibration, config, None, progress, folder, resume)).result


@dataclass(frozen=True)
class _Run:
    """A quantisation with what its report does not tell."""

    result: Result
    model: Model
    network: NetworkSolution


@dataclass(frozen=True)
class _Task:
    """A quantisation that is asked for, at the configuration's bits or at each layer's own."""

    model: str | Path | onnx.ModelProto
    calibration: Data
    config: Config
    choice: Mapping[str, Candidate] | None
    progress: Listener
    folder: Path | None
    resume: bool


def _run(task: _Task) -> _Run:
    """One way through; samples that are wanted again are kept as long as it takes."""
    with Again(task.config.memory_limit // 8) if task.config.tunes else nullcontext() as again:
        return _way_through(task, again)


def _way_through(task: _Task, again: Again | None) -> _Run:
    config, choice, progress = task.config, task.choice, task.progress
    clock = _Clock()
    with clock.stage("load"):
        progress(Progress("load", 0, None))
        prepared = _prepared(task.model, config, _opset(config, choice))
        plan = make_plan(prepared, config, choice)
        size = model_bytes(task.model)
        config, told = affordable(config, prepared, plan)
    batch = batch_size(prepared.inputs)
    feeds = Stream(
        counted(
            read_feeds(task.calibration, prepared.inputs, samples=config.samples, batch=batch),
            task.calibration,
            config,
            progress,
        ),
        again,
    )
    gate = feeds.first(GATE_SAMPLES)
    with clock.stage("equalise"):
        if config.equalise:
            prepared = equalised(prepared, plan, feeds.first(RANGE_SAMPLES), second_order=config.second_order)
            free_old_graphs()
            # A weight that layers shared has a copy of another name for each.
            plan = make_plan(prepared, config, choice)
            prepared = migrated(prepared, plan, feeds.first(RANGE_SAMPLES))
            free_old_graphs()
            plan = make_plan(prepared, config, choice)
    with clock.stage("solve"):
        mark = fingerprint(_identity(prepared, config, task.calibration, choice)) if task.folder else ""
        checkpoint = Checkpoint(task.folder, mark, resume=task.resume)
        network = solve_network(prepared, plan, config, feeds, checkpoint, progress)
        network = dataclasses.replace(network, remarks=(*network.remarks, *told))
    stages = [solved_stage(network.layers.values())]
    with clock.stage("tune"):
        if config.tunes:
            network, told_of = tuned(prepared, plan, network, feeds.every(), config, progress)
            stages.append(told_of)
    with clock.stage("verify"):
        progress(Progress("verify", 0, None))
        layers = without_ties(prepared, [p.layer for p in plan.layers], network.layers, network.outputs)
        network = dataclasses.replace(network, layers=layers)
        proto, checks, mended = emit_through_gate(prepared, plan, network, config, gate)
        network = dataclasses.replace(network, remarks=(*network.remarks, *mended))
    report = run_report(plan, config, network, proto, checks, size, clock.seconds, stages)
    return _Run(Result(model=proto, report=report), prepared, network)


def sensitivity(
    model: str | Path | onnx.ModelProto,
    calibration: Data,
    config: Config,
    measuring: Measuring | None = None,
    *,
    progress: Listener = silent,
) -> AllocationProblem:
    """What every layer loses and costs at each of the configuration's candidates.

    Args:
        model: as for :func:`quantize`.
        calibration: as for :func:`quantize`. Candidates are judged by its first ``config.table_samples`` samples,
            at most half, and solved on the others.
        config: candidates, container, edge bits.
        measuring: how; the defaults when None.
        progress: told how far the run is.

    Raises:
        InputError: the model, the samples or an option cannot be used.
    """
    candidates = parse_candidates(config.candidates)
    prepared = _prepared(model, config, _opset(config, dict(enumerate(candidates))))
    batch = batch_size(prepared.inputs)
    name = "" if isinstance(model, onnx.ModelProto) else Path(model).name
    with Again(config.memory_limit // 8) as kept:
        read = read_feeds(calibration, prepared.inputs, samples=config.samples, batch=batch)
        for feed in counted(read, calibration, config, progress):
            kept.append(feed)
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
) -> Result:
    """A quantisation with each layer's own bits; they are chosen first where no allocation is given."""
    choice = allocation.choice if allocation else dict(enumerate(parse_candidates(config.candidates)))
    prepared = _prepared(model, config, _opset(config, choice))
    batch = batch_size(prepared.inputs)
    with Again(config.memory_limit // 8) as kept:
        for feed in read_feeds(calibration, prepared.inputs, samples=config.samples, batch=batch):
            kept.append(feed)
        clock, problem = _Clock(), None
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

        def solve(found: BitAllocation) -> Attempt[Result]:
            place = folder and folder / f"bits-{_mark_of(found, config)}"
            data = calibration if isinstance(calibration, (str, Path)) else kept
            run = _run(_Task(model, data, config, found.choice, progress, place, resume))
            metric = problem.sensitivity.metric if problem else None
            loss, error = measured_loss(prepared, run.result.model, judged, metric)
            tables = by_constant(find_tables(run.model), run.network.tables)
            quantised = Quantised(run.network.layers, run.network.outputs, tables)
            return Attempt(found, run.model, quantised, loss, run.result, error)

        best, tried = carried_out(allocation, problem, kept, config, solve, choose_again, progress)
    report = best.result.report
    report = dataclasses.replace(
        report,
        allocation=account(best, tried),
        notes=(*report.notes, remark(best)),
        seconds={**clock.seconds, **report.seconds},
    )
    return Result(best.result.model, report)


def inspect(model: str | Path | onnx.ModelProto, config: Config | None = None) -> tuple[Model, Plan]:
    """What would be quantised, at how many bits, and why the rest would not.

    Raises:
        ModelError: the model cannot be read.
        UnsupportedError: it has no layer to quantise.
    """
    config = config or Config()
    with diagnosed(model):
        prepared = _prepared(model, config, config.opset)
        return prepared, make_plan(prepared, config)


def _prepared(model: str | Path | onnx.ModelProto, config: Config, opset: int) -> Model:
    """A model read and rewritten, with what stays in float marked; what it was in between is freed."""
    prepared = spectrogram(prepare(load(model, minimum_opset=opset)))
    free_old_graphs()
    return exclude(prepared, config.exclude) if config.exclude else prepared


class _Clock:
    """Seconds spent in each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began


def _opset(config: Config, choice: Mapping[Any, Candidate] | None) -> int:
    """The lowest operator set that has the types of the bits."""
    used = None if choice is None else [c for c in choice.values() if c != FLOAT]
    return config.opset_of([c.weights for c in used], [c.activations for c in used]) if used else config.opset


def _identity(
    model: Model, config: Config, calibration: Data, choice: Mapping[str, Candidate] | None
) -> Iterator[bytes]:
    """Everything the solutions depend on; samples that are not files are told apart by their count alone."""
    yield from identity(model)
    yield json.dumps(dataclasses.asdict(config), sort_keys=True).encode()
    yield json.dumps(None if choice is None else {name: str(bits) for name, bits in choice.items()}).encode()
    yield str(count_samples(calibration)).encode()
    if isinstance(calibration, (str, Path)):
        path = Path(calibration).resolve()
        yield f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}".encode()
    yield VERSION.encode()


def _mark_of(allocation: BitAllocation, config: Config) -> str:
    """What tells the layers of an allocation from those of others in one folder."""
    choice = {name: str(bits) for name, bits in allocation.choice.items()}
    return fingerprint([json.dumps([choice, dataclasses.asdict(config)], sort_keys=True).encode()])[:12]
