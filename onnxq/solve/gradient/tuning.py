"""Biases, scales and integers of all layers tuned together by gradient through the whole quantized network.

    min over b, s, s_x  of  E ‖ y − ŷ(b, s, s_x) ‖² / E ‖ y ‖²        or, for class scores if asked for,
    min over b, s, s_x  of  E KL( softmax(y) ‖ softmax(ŷ(b, s, s_x)) )

y are the float network's outputs, ŷ those of the quantized network: weights are the real numbers that
their integers stand for, inputs of layers are rounded to their grids. Rounding passes gradients straight
through, clipping keeps its own. What every layer makes is held to the float network's features as well,
without which a few hundred samples say too little about the integers. A bias counts in standard deviations
of its channel's output, a scale by its logarithm and an integer in steps, so that one learning rate suits
all layers. Weights of 8 bits keep their integers: a step of theirs is too small to matter.

The backward pass is cut behind every layer: it keeps one tensor a layer and computes what lies between
again, which is cheap: roundings and additions, no layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial

import jax
import numpy as np
import onnx

from onnxq.config.optimization import FEWEST_STEPS, Tuning
from onnxq.errors import UnsupportedError
from onnxq.ir.layer import Layer
from onnxq.jax_graph.interpreter import read_program, unsupported
from onnxq.quant.spec import QuantParams
from onnxq.solve.gradient.objective import Target, find_targets
from onnxq.solve.gradient.samples import Batches, Feed
from onnxq.solve.gradient.simulated import Network, Solutions, Tables, has_bias
from onnxq.solve.gradient.training_loop import descend
from onnxq.solve.gradient.work_budget import find_effort

Tick = Callable[[int], None]


class Outcome(Enum):
    """How a tuning ended."""

    TUNED = "the network tuned as a whole"
    NO_GAIN = "left as it was: tuning the network as a whole gained nothing sure on the hold-out"
    TOO_FEW = "left as it was: there are too few samples to tune and to check"
    NO_OUTPUT = "left as it was: the network has no floating-point output, or no bias"
    TOO_LARGE = "left as it was: a useful number of steps would take more than [tuning] work multiply-adds"
    DIVERGED = "left as it was: tuning met infinity or a value that is no number"
    UNSUPPORTED = "left as it was: the network cannot be differentiated"


@dataclass(frozen=True)
class TuningResult:
    """A tuned network.

    Attributes:
        layers: solutions by layer name, other than before where the hold-out gained.
        loss_before, loss_after: on the hold-out; NaN where it was not evaluated.
        steps: that were made.
        outcome: how it ended.
        detail: names of the nodes in the way, when there are any.
    """

    layers: Solutions
    loss_before: float
    loss_after: float
    steps: int
    outcome: Outcome
    detail: str = ""


def tune_network(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    solutions: Solutions,
    outputs: Mapping[str, QuantParams],
    feeds: Sequence[Feed],
    options: Tuning,
    *,
    tables: Tables | None = None,
    fixed: bool = False,
    memory_limit: int = 2**30,
    seed: int = 0,
    tick: Tick = lambda steps: None,
) -> TuningResult:
    """Tune a solved network; the result is never worse than the start on the hold-out.

    Args:
        model: the prepared float model.
        layers: its quantized layers.
        solutions: theirs, by layer name.
        outputs: 8-bit grids of tensors that are quantized where they are made, by tensor name.
        feeds: calibration batches that can be read again; some samples are held out.
        options: how long and how fast.
        tables: rows of quantized tables, by the name of their constant.
        fixed: the network takes batches of one size only.
        memory_limit: bytes that a step may take, roughly.
        seed: of the samples drawn.
        tick: called with the number of steps made since the last call.
    """
    return tune_region(
        model,
        layers,
        solutions,
        outputs,
        feeds,
        partial(find_targets, model, feeds, options.objective),
        options,
        fixed,
        tables=tables,
        memory_limit=memory_limit,
        seed=seed,
        tick=tick,
    )


def tune_region(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    solutions: Solutions,
    outputs: Mapping[str, QuantParams],
    feeds: Sequence[Feed],
    find: Callable[[], Sequence[Target]],
    options: Tuning,
    fixed: bool,
    *,
    tables: Tables | None = None,
    memory_limit: int = 2**30,
    seed: int = 0,
    tick: Tick = lambda steps: None,
) -> TuningResult:
    """Tune a part of a network towards given values; the result is never worse than the start on the hold-out.

    Args:
        model: that part, in float.
        layers: its quantized layers.
        solutions: theirs, by layer name.
        outputs: 8-bit grids of tensors that are quantized where they are made, by tensor name.
        feeds: what the part reads in the quantized network; some samples are held out.
        find: what it makes in the float network, for each feed.
        options: how long and how fast.
        fixed: the network takes batches of one size only.
        tables: rows of quantized tables, by the name of their constant.
        memory_limit: bytes that a step may take, roughly.
        seed: of the samples drawn.
        tick: called with the number of steps made since the last call.
    """
    keep = partial(TuningResult, dict(solutions), np.nan, np.nan, 0)
    lacking = unsupported(model)
    if lacking:
        return keep(Outcome.UNSUPPORTED, "; ".join(map(str, lacking)))
    options = _suited(options, feeds[0])
    try:
        targets = find()
        if not targets or not any(has_bias(layer, solutions[layer.name]) for layer in layers):
            return keep(Outcome.NO_OUTPUT)
        program = read_program(model)
        effort = find_effort(program, layers, feeds[0], options, memory_limit, whole=fixed)
        if effort.steps < min(options.steps, FEWEST_STEPS):
            return keep(Outcome.TOO_LARGE)
        batches = Batches(feeds, [t.values for t in targets], effort.rows, fixed, seed)
        if not batches.enough:
            return keep(Outcome.TOO_FEW)
        network = Network(program, layers, solutions, outputs, targets, options.features, tables, options.augments)
        network.measure(solutions, batches)
        found = descend(network, solutions, batches, options, effort.steps, tick, jax.random.key(seed))
        outcome = Outcome.TUNED if found.gained else Outcome.NO_GAIN if found.finite else Outcome.DIVERGED
        return TuningResult(found.layers, found.before, found.after, found.steps, outcome)
    except UnsupportedError as error:
        return keep(Outcome.UNSUPPORTED, str(error))


def _suited(options: Tuning, feed: Feed) -> Tuning:
    """The options for a network's inputs: samples with integers are not changed."""
    if all(np.issubdtype(np.asarray(array).dtype, np.floating) for array in feed.values()):
        return options
    return replace(options, mixtures=0.0, mirrored=0.0, shift=0.0)
