"""One way through at known bits: load, passes, calibrate, solve, emit, verify. Only this module knows the order."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from onnxq.candidate import FLOAT, Candidate
from onnxq.checkpoint import Checkpoint, fingerprint
from onnxq.config import Config
from onnxq.data import Data, Feed, content, read_feeds
from onnxq.emptiness import without_empty
from onnxq.equalisation import RANGE_SAMPLES, equalised
from onnxq.errors import NotFiniteError, UnsupportedError
from onnxq.execute.memory import free_old_graphs, return_large_blocks
from onnxq.fine_tuning import affordable, tuned
from onnxq.folding import fold_constants
from onnxq.ir.excluded import exclude
from onnxq.ir.front_end import spectrogram
from onnxq.ir.load import load
from onnxq.ir.model import Model
from onnxq.ir.save import identity, save
from onnxq.ir.singular import find_singularities
from onnxq.ir.size import model_bytes
from onnxq.mend import emit_through_gate
from onnxq.migration import migrated
from onnxq.network import NetworkSolution, solve_network
from onnxq.own_batch import with_own_batch
from onnxq.passes.prepare import prepare
from onnxq.plan import make_plan, without_chosen
from onnxq.progress import Listener, Progress
from onnxq.report.run import RunReport
from onnxq.report.stage import solved_stage
from onnxq.reporting import run_report
from onnxq.stream import Again, Stream, batch_within, counted
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


@dataclass(frozen=True)
class Run:
    """A quantisation with what its report does not tell."""

    result: Result
    model: Model
    network: NetworkSolution


@dataclass(frozen=True)
class Task:
    """A quantisation that is asked for, at the configuration's bits or at each layer's own."""

    model: str | Path | onnx.ModelProto
    calibration: Data
    config: Config
    choice: Mapping[str, Candidate] | None
    progress: Listener
    folder: Path | None
    resume: bool


def run(task: Task) -> Run:
    """One way through; samples that are wanted again are kept as long as it takes."""
    return_large_blocks()
    with Again(task.config.memory_limit // 8) as again:
        try:
            return _way_through(task, again, {})
        except NotFiniteError as error:
            if not len(again):  # nothing in the graph is made infinite by rounding
                raise
            singular = find_singularities(prepared_model(task.model, task.config, opset_of(task.config, task.choice)))
            told = (
                f"left in float: with its weights rounded, {error.what} is NaN or infinite where it is finite in float"
            )
            if not singular.layers:
                raise
            try:
                return _way_through(task, again, dict.fromkeys(singular.layers, told))
            except UnsupportedError:  # no layer is left
                raise error from None


def _way_through(task: Task, again: Again, in_float: Mapping[str, str]) -> Run:
    """One attempt.

    Args:
        task: what is asked for.
        again: keeps the samples for further readings; those it holds already are read from it.
        in_float: layers to leave in float, and why.
    """
    config, choice, progress = task.config, task.choice, task.progress
    clock = Clock()
    with clock.stage("load"):
        progress(Progress("load", 0, None))
        prepared = prepared_model(task.model, config, opset_of(config, choice)).leaving_in_float(in_float)
        exposed = bool(find_singularities(prepared).exposed)
        size = model_bytes(task.model)
    batch = batch_within(prepared, config.memory_limit)
    read = again if in_float else read_feeds(task.calibration, prepared.inputs, samples=config.samples, batch=batch)
    feeds = Stream(
        counted(iter(read), task.calibration, config, progress),
        again if config.tunes or exposed or task.folder else None,
        kept=bool(in_float),
    )
    if task.folder and not in_float:  # all samples are part of what tells runs apart
        deque(feeds, maxlen=0)
        feeds = Stream(iter(again), again, kept=True)
    gate = feeds.first(GATE_SAMPLES)
    asked, prepared = prepared, without_empty(prepared, gate)
    found = in_float.keys() | (prepared.in_float.keys() - asked.in_float.keys())
    choice = choice and {name: bits for name, bits in choice.items() if name not in found}
    plan = make_plan(prepared, config, choice)
    config, told = affordable(config, prepared, plan, gate[0])
    with clock.stage("equalise"):
        if config.equalise:
            settled = without_chosen(prepared, plan)
            prepared = equalised(prepared, settled, feeds.first(RANGE_SAMPLES), second_order=config.second_order)
            free_old_graphs()
            # A weight that layers shared has a copy of another name for each.
            plan = make_plan(prepared, config, choice)
            prepared = migrated(prepared, without_chosen(prepared, plan), feeds.first(RANGE_SAMPLES))
            free_old_graphs()
            plan = make_plan(prepared, config, choice)
    with clock.stage("solve"):
        mark = fingerprint(_identity(prepared, config, again, choice)) if task.folder else ""
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
        proto, checks, mended = emit_through_gate(
            prepared, plan, network, config, gate, feeds.every() if exposed else ()
        )
        network = dataclasses.replace(network, remarks=(*network.remarks, *mended))
    report = run_report(plan, config, network, proto, checks, size, clock.seconds, stages)
    return Run(Result(model=proto, report=report), prepared, network)


def prepared_model(model: str | Path | onnx.ModelProto, config: Config, opset: int) -> Model:
    """A model read and rewritten, with what stays in float marked; what it was in between is freed."""
    prepared = spectrogram(prepare(with_own_batch(fold_constants(load(model, minimum_opset=opset)))))
    free_old_graphs()
    return exclude(prepared, config.exclude) if config.exclude else prepared


class Clock:
    """Seconds spent in each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Enter the seconds that a block takes under a name."""
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began


def opset_of(config: Config, choice: Mapping[Any, Candidate] | None) -> int:
    """The lowest operator set that has the types of the bits."""
    used = None if choice is None else [c for c in choice.values() if c != FLOAT]
    return config.opset_of([c.weights for c in used], [c.activations for c in used]) if used else config.opset


def _identity(
    model: Model, config: Config, samples: Iterable[Feed], choice: Mapping[str, Candidate] | None
) -> Iterator[bytes]:
    """Everything the solutions depend on."""
    yield from identity(model)
    yield json.dumps(dataclasses.asdict(config), sort_keys=True).encode()
    yield json.dumps(None if choice is None else {name: str(bits) for name, bits in choice.items()}).encode()
    yield from content(samples)
    yield VERSION.encode()
