"""Milliseconds of each layer at each candidate, measured with onnxruntime in the whole network.

A layer alone in a model of its own runs otherwise than in the network: its tensors are in another cache and in
another layout. So whole models are run, one for each candidate, in turns, with onnxruntime's own clock at every node,
and the nodes' times are added up by layer. Everything runs on one thread, and values are tenth percentiles over the
runs: what other programs take does not reach them. What the clocks of the nodes miss is spread over them evenly, so
that the layers and the rest of a model add up to the time of its run.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxq.allocation.choices import Choices, Part
from onnxq.allocation.cost.dummy_model import at_once, placeholder_model
from onnxq.allocation.cost.ownership import computed_for
from onnxq.allocation.sensitivity_table import CostTable, as_matrix
from onnxq.config import Config
from onnxq.config.bit_widths import FLOAT
from onnxq.data import samples_in
from onnxq.ir.model import Model

Feed = Mapping[str, NDArray[np.generic]]

FEWEST, MOST = 7, 60
"""Runs of each model at least, and at most."""

SECONDS = 12.0
"""Time for all models together, once each has had its fewest runs."""

SHARE = 0.1
"""Quantile of the runs."""

_CHANGED = re.compile(r"(_token_\d+|_nchwc|/duplicated)+$")
"""What onnxruntime appends to the names of nodes that it replaces."""


@dataclass(frozen=True)
class Timing:
    """A model's time, milliseconds.

    Attributes:
        layers: by the part's name, with the quantizers and layout changes before it.
        rest: everything else.
    """

    layers: Mapping[str, float]
    rest: float

    @property
    def total(self) -> float:
        """Of a run."""
        return self.rest + sum(self.layers.values())


def latency_table(model: Model, choices: Choices, config: Config, feed: Feed) -> CostTable:
    """Measured milliseconds of every part at every candidate, for one run on a feed.

    Args:
        model: prepared.
        choices: parts and candidates.
        config: the container.
        feed: inputs of one run.
    """
    columns = list(dict.fromkeys((FLOAT, *choices.candidates)))
    open_ = {name: [*choices.of(name), FLOAT] for name in choices.names}
    given = [at_once(open_, candidate) for candidate in columns]
    timings = time_models(model, choices.parts, [placeholder_model(model, config, g)[0] for g in given], feed)
    values = np.full(choices.open.shape, np.nan)
    for choice, timing in zip(given, timings, strict=True):
        for i, name in enumerate(choices.names):
            candidate = choice[name]
            if candidate in choices.candidates and choices.open[i, choices.candidates.index(candidate)]:
                values[i, choices.candidates.index(candidate)] = timing.layers[name]
    for i, name in enumerate(choices.names):  # candidates that stand for another's column at first and last layers
        for j in np.flatnonzero(choices.open[i] & np.isnan(values[i])):
            near = choices.candidates[j]
            alone = next((k for k, c in enumerate(columns) if c == near), 0)
            values[i, j] = timings[alone].layers[name]
    source = f"onnxruntime {ort.__version__}, batch of {samples_in(feed)}, one thread"
    return CostTable(
        choices.names,
        choices.candidates,
        {"latency": as_matrix(values)},
        {"latency": timings[0].total},
        {"latency": timings[0].rest},
        {"latency": source},
    )


def time_models(model: Model, parts: Sequence[Part], protos: Sequence[onnx.ModelProto], feed: Feed) -> list[Timing]:
    """Each emitted model's time by part, measured in turns.

    Args:
        model: the prepared float model that they were made from.
        parts: of that model.
        protos: what to run.
        feed: inputs of one run.
    """
    kept = {node.name for node in model.graph.nodes}
    with TemporaryDirectory(prefix="onnxq-") as folder:
        plain = [_session(p, None) for p in protos]
        clocked = [_session(p, Path(folder) / str(i)) for i, p in enumerate(protos)]
        walls = _in_turns(plain, feed)
        _in_turns(clocked, feed)
        events = [json.loads(Path(s.end_profiling()).read_text()) for s in clocked]
    return [
        _timing(_node_times(e), computed_for(p, parts, kept), kept, [part.name for part in parts], wall)
        for p, e, wall in zip(protos, events, walls, strict=True)
    ]


def run_times(protos: Sequence[onnx.ModelProto], feed: Feed) -> list[float]:
    """Milliseconds of a run of each model, measured in turns."""
    return _in_turns([_session(p, None) for p in protos], feed)


def _session(proto: onnx.ModelProto, profile: Path | None) -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _in_turns(sessions: Sequence[Any], feed: Feed) -> list[float]:
    """Tenth percentile of each session's run time, milliseconds."""
    arrays = {name: np.asarray(value) for name, value in feed.items()}
    times: list[list[float]] = [[] for _ in sessions]
    for session in sessions:
        session.run(None, arrays)
    began = time.perf_counter()
    while len(times[0]) < FEWEST or (len(times[0]) < MOST and time.perf_counter() - began < SECONDS):
        for which in np.roll(np.arange(len(sessions)), len(times[0])).tolist():
            start = time.perf_counter()
            sessions[which].run(None, arrays)
            times[which].append(1e3 * (time.perf_counter() - start))
    return [float(np.quantile(t, SHARE)) for t in times]


def _node_times(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Milliseconds of each node in a run, in the order of execution; layout changes under the operator's name."""
    times: dict[str, list[float]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            times.setdefault(event["name"].removesuffix("_kernel_time"), []).append(event["dur"] / 1e3)
    runs = min((len(t) for t in times.values()), default=1)
    return {name: float(np.quantile(t, SHARE)) * (len(t) // runs) for name, t in times.items()}


def _timing(
    nodes: Mapping[str, float], owner: Mapping[str, str], kept: Collection[str], layers: Sequence[str], wall: float
) -> Timing:
    """Node times added up by layer; a layout change counts for the layer behind it."""
    unclocked = max(0.0, wall - sum(nodes.values())) / max(len(nodes), 1)
    found, rest, waiting = dict.fromkeys(layers, 0.0), 0.0, 0.0
    for name, spent in nodes.items():
        plain = _CHANGED.sub("", name)
        layer = owner.get(plain)
        if layer is not None:
            found[layer] += spent + unclocked + waiting
            waiting = 0.0
        elif plain in kept:
            rest += spent + unclocked
        else:
            waiting += spent + unclocked
    scale = wall / max(sum(found.values()) + rest + waiting, 1e-12)
    return Timing({name: v * scale for name, v in found.items()}, (rest + waiting) * scale)
