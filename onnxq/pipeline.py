"""The order of things: load, passes, calibrate, solve, emit, verify. Only this module knows it."""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxq.checkpoint import Checkpoint, fingerprint
from onnxq.config import Config
from onnxq.data import Data, Feed, count_samples, read_feeds
from onnxq.emit.qdq import emit
from onnxq.equalisation import equalised
from onnxq.errors import VerificationError
from onnxq.execute.memory import give_back_freed_memory
from onnxq.ir.load import load
from onnxq.ir.model import Model
from onnxq.ir.save import save, to_proto
from onnxq.ir.tensor import TensorInfo
from onnxq.network import NetworkSolution, solve_network
from onnxq.passes.prepare import prepare
from onnxq.plan import Plan, make_plan
from onnxq.progress import Listener, Progress, silent
from onnxq.report.run import LayerReport, RunReport
from onnxq.verify import LevelCheck, audit_bits, check_levels
from onnxq.version import VERSION

GATE_SAMPLES = 16
"""Calibration samples on which the emitted model must run at every level."""

BATCH_ELEMENTS = 2**20
"""Input elements in a batch at most, unless a single sample has more."""

RANGE_SAMPLES = 64
"""Calibration samples over which the ranges of channels are taken."""

LARGEST_BATCH = 64


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
    progress: Listener = silent,
    work_dir: str | Path | None = None,
    resume: bool = False,
) -> Result:
    """Quantise a model.

    Args:
        model: path of an ONNX file, or a model in memory (it is not changed).
        calibration: unlabelled samples: path of an ``.npz``, of a folder of ``.npy`` files or images, an
            array, a mapping ``{input: array}``, or any iterable of batches of either.
        config: the options; the defaults when None.
        progress: told how far the run is.
        work_dir: folder that keeps finished layers, so that a stopped run can go on.
        resume: go on with what ``work_dir`` holds.

    Raises:
        InputError: the model, the samples or an option cannot be used; the message says which and why.
        VerificationError: the emitted model does not run at every optimisation level of onnxruntime.
    """
    config = config or Config()
    clock = _Clock()
    with clock.stage("load"):
        progress(Progress("load", 0, None))
        prepared = prepare(load(model, minimum_opset=config.opset))
        plan = make_plan(prepared, config)
        size = _float_size(model)
    batch = batch_size(prepared.inputs)
    feeds = _Recorded(
        _counted(
            read_feeds(calibration, prepared.inputs, samples=config.samples, batch=batch), calibration, config, progress
        )
    )
    with clock.stage("equalise"):
        if config.equalise:
            prepared = equalised(prepared, plan, feeds.first(RANGE_SAMPLES))
            give_back_freed_memory()
            plan = make_plan(prepared, config)  # a weight that layers shared has a copy of another name for each
    with clock.stage("solve"):
        folder = None if work_dir is None else Path(work_dir)
        mark = fingerprint(_identity(prepared, config, calibration)) if folder else ""
        checkpoint = Checkpoint(folder, mark, resume=resume)
        network = solve_network(prepared, plan, config, feeds, checkpoint, progress)
    with clock.stage("emit"):
        proto = emit(prepared, plan, network.layers, network.outputs, config)
    with clock.stage("verify"):
        progress(Progress("verify", 0, None))
        checks = check_levels(proto, feeds.first(GATE_SAMPLES))
        _require_loading(checks)
    report = _report(plan, config, network, proto, checks, size, clock.seconds)
    return Result(model=proto, report=report)


def inspect(model: str | Path | onnx.ModelProto, config: Config | None = None) -> tuple[Model, Plan]:
    """What would be quantised, at how many bits, and why the rest would not.

    Raises:
        ModelError: the model cannot be read.
        UnsupportedError: it has no layer to quantise.
    """
    config = config or Config()
    prepared = prepare(load(model, minimum_opset=config.opset))
    return prepared, make_plan(prepared, config)


def batch_size(inputs: tuple[TensorInfo, ...]) -> int:
    """Samples that are run together: the model's own number where it is fixed, else what fits.

    It depends on the model alone, so that results do not depend on how the samples arrive.
    """
    leading = [i.shape[0] for i in inputs if i.shape]
    fixed = [size for size in leading if size is not None]
    if fixed:
        return fixed[0]
    elements = sum(math.prod(d or 64 for d in (i.shape or (1, 64))[1:]) for i in inputs)
    return max(1, min(LARGEST_BATCH, BATCH_ELEMENTS // max(elements, 1)))


class _Clock:
    """Seconds spent in each stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began


class _Recorded:
    """Feeds whose first ones can be looked at before and after the rest has passed by."""

    def __init__(self, feeds: Iterator[Feed]) -> None:
        self._feeds = feeds
        self._kept: list[Feed] = []

    def __iter__(self) -> Iterator[Feed]:
        """Every feed from the first; to be gone through once."""
        self.first(GATE_SAMPLES)
        yield from self._kept
        yield from self._feeds

    def first(self, samples: int) -> list[Feed]:
        """The feeds that hold the first samples, uncut; they are read now if they were not yet."""
        while sum(_samples(f) for f in self._kept) < samples and (feed := next(self._feeds, None)) is not None:
            self._kept.append(feed)
        return self._kept[: max(1, -(-samples // max(_samples(self._kept[0]), 1)))]


def _samples(feed: Feed) -> int:
    return max((len(a) for a in feed.values() if np.ndim(a)), default=1)


def _counted(feeds: Iterator[Feed], data: Data, config: Config, progress: Listener) -> Iterator[Feed]:
    known = count_samples(data)
    total = min((n for n in (known, config.samples) if n is not None), default=None)
    done = 0
    for feed in feeds:
        yield feed
        done += _samples(feed)
        progress(Progress("read", done, total))


def _identity(model: Model, config: Config, calibration: Data) -> Iterator[bytes]:
    """Everything the solutions depend on; samples that are not files are told apart by their count alone."""
    yield to_proto(model).SerializeToString(deterministic=True)
    yield json.dumps(dataclasses.asdict(config), sort_keys=True).encode()
    yield str(count_samples(calibration)).encode()
    if isinstance(calibration, (str, Path)):
        path = Path(calibration).resolve()
        yield f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}".encode()
    yield VERSION.encode()


def _float_size(model: str | Path | onnx.ModelProto) -> int:
    return model.ByteSize() if isinstance(model, onnx.ModelProto) else Path(model).stat().st_size


def _require_loading(checks: tuple[LevelCheck, ...]) -> None:
    failed = [f"{check.level} ({check.error})" for check in checks if not check.ok]
    if failed:
        raise VerificationError(
            f"the quantised model does not run in onnxruntime at level {', '.join(failed)}; nothing was written: "
            "try other bits or another container, and report the model."
        )


def _report(
    plan: Plan,
    config: Config,
    network: NetworkSolution,
    proto: onnx.ModelProto,
    checks: tuple[LevelCheck, ...],
    size: int,
    seconds: Mapping[str, float],
) -> RunReport:
    audited = {bits.name: bits for bits in audit_bits(proto)}
    layers = []
    for planned in plan.layers:
        solution, found = network.layers[planned.layer.name], audited.get(planned.layer.name)
        layers.append(
            LayerReport(
                name=planned.layer.name,
                op=planned.layer.op,
                weight_bits=planned.weights,
                activation_bits=planned.activations,
                stored_weight_bits=found.weight_bits if found else None,
                stored_activation_bits=found.activation_bits if found else None,
                parameters=planned.layer.parameters,
                loss_nearest=solution.loss_nearest,
                loss=solution.loss,
                status=solution.status,
                seconds=solution.seconds,
            )
        )
    values: dict[str, Any] = dataclasses.asdict(config)
    return RunReport(
        onnxq=VERSION,
        config=values,
        samples=network.samples,
        layers=tuple(layers),
        left_in_float=plan.remarks,
        simulated_sqnr_db=dict(network.sqnr_db),
        loads=checks,
        fp32=size,
        quantized=proto.ByteSize(),
        seconds=dict(seconds),
    )
