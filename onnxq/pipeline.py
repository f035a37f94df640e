"""One way through at known bits: load, passes, calibrate, solve, emit, verify. Only this module knows the order."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx

from onnxq.acceptance.fallbacks import Emitted, emit_through_gate
from onnxq.config import Config
from onnxq.config.bit_widths import FLOAT, Candidate
from onnxq.data import Data, Feed, first_feeds, read_feeds
from onnxq.data.replay import Again, batch_for, counted
from onnxq.errors import NotFiniteError, UnsupportedError
from onnxq.ir.exclude import exclude
from onnxq.ir.load import load
from onnxq.ir.model import Model
from onnxq.ir.save import save
from onnxq.ir.singular import find_singularities
from onnxq.ir.size import model_bytes
from onnxq.ir.spectrogram import spectrogram
from onnxq.ir.tensor import has_fixed_batch
from onnxq.passes.fold_constants import fold_constants
from onnxq.passes.own_batch import with_own_batch
from onnxq.passes.prepare import prepare
from onnxq.plan.make_plan import make_plan, require_block
from onnxq.plan.values import Plan
from onnxq.preprocess.empty_layers import without_empty
from onnxq.progress import Listener, Progress
from onnxq.report.build import run_report
from onnxq.report.run import RunReport
from onnxq.runtime.memory import free_old_graphs, return_large_blocks
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.solve.checkpoint import Checkpoint, fingerprint_of
from onnxq.solve.closed_form.tie_free_scales import without_ties
from onnxq.solve.making import Making
from onnxq.solve.network import solve_network
from onnxq.solve.network_tuning import affordable, tune
from onnxq.solve.stage_report import solved_stage
from onnxq.validation.folds import Folds, make_folds, without
from onnxq.validation.judgement import Judgement, exact_outputs, judge
from onnxq.validation.outliers import find_unlike
from onnxq.validation.rewrites import LARGE, Choice, Plainest, judge_plain
from onnxq.validation.unseen import Made, better_of, cross_fitted, prepare_network

GATE_SAMPLES = 16
"""Calibration samples on which the emitted model must run at every level."""


@dataclass(frozen=True)
class Result:
    """A quantized model and the account of how it came about.

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
    """A quantization with what its report does not tell.

    Attributes:
        result: of it.
        model: prepared and rewritten.
        plan: of its layers.
        network: their solutions.
        known: the first of the samples that its ranges are for.
    """

    result: Result
    model: Model
    plan: Plan
    network: QuantizedNetwork
    known: Sequence[Feed]


class Source:
    """A model that is read and rewritten once for each operator set, however often it is asked for.

    Args:
        model: path or message.
        config: names of nodes that stay in float.
    """

    def __init__(self, model: str | Path | onnx.ModelProto, config: Config) -> None:
        self._model, self._config = model, config
        self._known: dict[int, Model] = {}

    def at(self, opset: int) -> Model:
        """The model as :func:`prepared_model` gives it for an operator set."""
        for asked, known in self._known.items():
            if asked == opset or opset < asked < known.opset:  # it came newer than both, and stayed as it was
                return known
        self._known[opset] = prepared_model(self._model, self._config, opset)
        return self._known[opset]


@dataclass(frozen=True)
class Task:
    """A quantization that is asked for, at the configuration's bits or at each layer's own.

    Attributes:
        model: path or message.
        calibration: samples.
        config: how.
        choice: bits of each layer; the configuration's when None.
        progress: told how far it is.
        folder: keeps finished layers; nothing does when None.
        resume: go on with what the folder holds.
        source: keeps the model prepared for the next quantization; nothing does when None.
        ignore: names that the samples may hold beside the inputs.
    """

    model: str | Path | onnx.ModelProto
    calibration: Data
    config: Config
    choice: Mapping[str, Candidate] | None
    progress: Listener
    folder: Path | None
    resume: bool
    source: Source | None = None
    ignore: Collection[str] = ()

    def prepared(self) -> Model:
        """The model at the operator set that the bits need."""
        opset = opset_of(self.config, self.choice)
        return self.source.at(opset) if self.source else prepared_model(self.model, self.config, opset)


def run(task: Task) -> Run:
    """One way through; the samples are kept as long as it takes."""
    return_large_blocks()
    with Again(task.config.memory_limit // 8) as again:
        try:
            return _way_through(task, again, {})
        except NotFiniteError as error:
            if not len(again):  # nothing was read
                raise
            singular = find_singularities(task.prepared())
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
        again: keeps the samples; those it holds already are read from it.
        in_float: layers to leave in float, and why.
    """
    config, choice, progress = task.config, task.choice, task.progress
    clock = Clock()
    with clock.stage("load"):
        progress(Progress("load", 0, None))
        prepared = task.prepared().leaving_in_float(in_float)
        exposed = bool(find_singularities(prepared).exposed)
        size = model_bytes(task.model)
        if not len(again):
            batch = batch_for(prepared, config)
            given = read_feeds(
                task.calibration, prepared.inputs, samples=config.samples, batch=batch, ignore=task.ignore
            )
            for feed in counted(given, task.calibration, config, progress):
                again.append(feed)
    unlike, whole = find_unlike(again), has_fixed_batch(prepared.inputs)
    feeds = without(again, unlike.samples, whole=whole)
    gate = list(first_feeds(feeds, GATE_SAMPLES))
    asked, prepared = prepared, without_empty(prepared, gate)
    found = in_float.keys() | (prepared.in_float.keys() - asked.in_float.keys())
    choice = choice and {name: bits for name, bits in choice.items() if name not in found}
    plan = make_plan(prepared, config, choice)
    if choice is None:
        require_block(((p.layer, Candidate(p.weights, p.activations)) for p in plan.layers), config)
    weights = sum(p.layer.parameters for p in plan.layers)
    folds = make_folds(feeds, whole=whole, weights=weights)
    config, told = affordable(config, prepared, plan, gate[0])
    with clock.stage("compare"):
        progress(Progress("compare", 0, None))
        plainest = judge_plain(prepared, config, choice, folds)
        judgement = _crossed(config, choice, folds, plainest, prepared, progress)
        if weights > LARGE:
            free_old_graphs()
        ready, plan = prepare_network(prepared, config, choice, feeds, folds, plainest)
    with clock.stage("solve"):
        mark = fingerprint_of(ready, config, feeds, choice and dict(choice)) if task.folder else ""
        checkpoint = Checkpoint(task.folder, mark, resume=task.resume)
        network = solve_network(ready, plan, config, feeds, checkpoint, progress, Making(keep_back=folds.keep_back))
        network = dataclasses.replace(network, remarks=(*network.remarks, *told))
    stages = [solved_stage(network.layers.values())]
    with clock.stage("tune"):
        if config.tunes:
            network, told_of = tune(ready, plan, network, feeds, config, progress)
            stages.append(told_of)
    with clock.stage("judge"):
        made = _judged(Made(ready, plan, network, judgement), prepared, folds)
        made = better_of(made, prepared, config, choice, feeds, folds, plainest)
        if made.judgement is not None:  # told by the samples' places in the set as it came
            places = feeds.indices[made.judgement.samples]
            made = dataclasses.replace(made, judgement=dataclasses.replace(made.judgement, samples=places))
    del asked, prepared, ready  # what is no longer needed of a large model is as large
    if weights > LARGE:
        free_old_graphs()
    with clock.stage("verify"):
        progress(Progress("verify", 0, None))
        made, emitted = _verified(made, config, gate, feeds if exposed else ())
    report = run_report(made, config, folds, unlike, emitted, size, clock.seconds, stages)
    return Run(Result(model=emitted.proto, report=report), made.model, made.plan, made.network, gate)


def _crossed(
    config: Config, choice: Choice, folds: Folds, plainest: Plainest | None, prepared: Model, progress: Listener
) -> Judgement | None:
    """What networks made from parts of few samples do on the rest of them; None where there are many, or one."""
    if plainest is None or not folds.crossed:
        return None
    done = 0

    def tell() -> None:
        nonlocal done
        done += 1
        progress(Progress("compare", done, len(folds.cuts)))

    return cross_fitted(prepared, config, choice, folds, plainest.rewrite, tell)


def _judged(made: Made, prepared: Model, folds: Folds) -> Made:
    """A network with what it does to the samples that were kept from it, where there are any."""
    if made.judgement is not None or not folds.cuts:
        return made
    held = folds.cuts[0].judged
    found = judge(made.model, made.plan, made.network, held, exact_outputs(prepared, held), held.indices)
    return dataclasses.replace(made, judgement=found)


def _verified(made: Made, config: Config, gate: Sequence[Feed], every: Sequence[Feed]) -> tuple[Made, Emitted]:
    """A network as it is emitted, through the gate."""
    layers = without_ties(made.model, [p.layer for p in made.plan.layers], made.network.layers, made.network.outputs)
    network = dataclasses.replace(made.network, layers=layers)
    emitted = emit_through_gate(made.model, made.plan, network, config, gate, every)
    network = dataclasses.replace(network, remarks=(*network.remarks, *emitted.remarks))
    return dataclasses.replace(made, network=network), emitted


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
    return config.opset_of(used) if used else config.opset
