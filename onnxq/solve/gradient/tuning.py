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

from collections.abc import Callable, Sequence
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
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.solve.gradient.circumstances import Circumstances
from onnxq.solve.gradient.objective import Target, find_targets
from onnxq.solve.gradient.samples import Batches, Feed
from onnxq.solve.gradient.simulated import Network, Solutions, has_bias
from onnxq.solve.gradient.training_loop import descend
from onnxq.solve.gradient.work_budget import find_effort


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
    network: QuantizedNetwork,
    feeds: Sequence[Feed],
    options: Tuning,
    circumstances: Circumstances,
) -> TuningResult:
    """Tune a solved network; the result is never worse than the start on the hold-out.

    Args:
        model: the prepared float model.
        layers: its quantized layers.
        network: their solutions, and what else is quantized.
        feeds: calibration batches that can be read again; some samples are held out.
        options: how long and how fast.
        circumstances: sizes and seed.
    """
    find = partial(find_targets, model, feeds, options.objective)
    return tune_region(model, layers, network, feeds, find, options, circumstances)


def tune_region(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    network: QuantizedNetwork,
    feeds: Sequence[Feed],
    find: Callable[[], Sequence[Target]],
    options: Tuning,
    circumstances: Circumstances,
) -> TuningResult:
    """Tune a part of a network towards given values; the result is never worse than the start on the hold-out.

    Args:
        model: that part, in float.
        layers: its quantized layers.
        network: their solutions, and what else is quantized in the part.
        feeds: what the part reads in the quantized network; some samples are held out.
        find: what it makes in the float network, for each feed.
        options: how long and how fast.
        circumstances: sizes and seed.
    """
    solutions, fixed, seed = network.layers, circumstances.fixed, circumstances.seed
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
        effort = find_effort(program, layers, feeds[0], options, circumstances.memory_limit, whole=fixed)
        if effort.steps < min(options.steps, FEWEST_STEPS):
            return keep(Outcome.TOO_LARGE)
        batches = Batches(feeds, [t.values for t in targets], effort.rows, fixed, seed)
        if not batches.enough:
            return keep(Outcome.TOO_FEW)
        simulated = Network(program, layers, network, targets, options.features, options.augments)
        simulated.measure(solutions, batches)
        key = jax.random.key(seed)
        found = descend(simulated, solutions, batches, options, effort.steps, circumstances.tick, key)
        outcome = Outcome.TUNED if found.gained else Outcome.NO_GAIN if found.finite else Outcome.DIVERGED
        return TuningResult(found.layers, found.before, found.after, found.steps, outcome)
    except UnsupportedError as error:
        return keep(Outcome.UNSUPPORTED, str(error))


def _suited(options: Tuning, feed: Feed) -> Tuning:
    """The options for a network's inputs: samples with integers are not changed."""
    if all(np.issubdtype(np.asarray(array).dtype, np.floating) for array in feed.values()):
        return options
    return replace(options, mixtures=0.0, mirrored=0.0, shift=0.0)
