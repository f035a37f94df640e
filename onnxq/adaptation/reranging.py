"""Samples of another kind than those a network was solved on: its ranges and moments found anew, no integer touched.

The solved network walks over the new samples stage by stage, as it did when it was solved. The grid of each quantized
tensor is found as it was then, of what the network now brings to it, and takes the place of the old one; behind each
layer para-normalization (:mod:`onnxq.solve.closed_form.para_normalization`) brings mean and deviation of every channel
back to those of the float layer on the same samples. Both move scales and biases alone. Ranges that hold the old
samples too would be the wider of both: samples that are quieter than those before would gain nothing, so to serve both
kinds is for whoever hands over samples of both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxq.calibration.calibrate import Calibration
from onnxq.calibration.hold_out import HOLD_OUT, KeepBack
from onnxq.calibration.observer import Observation
from onnxq.calibration.wanted import Wanted
from onnxq.config import Config
from onnxq.data import Feed, samples_in, set_apart
from onnxq.ir.layer import Layer
from onnxq.ir.model import Model
from onnxq.ir.save import to_outline
from onnxq.ir.stage import split_stages
from onnxq.ir.tensor import has_fixed_batch
from onnxq.plan.values import Plan
from onnxq.progress import Listener, Progress
from onnxq.quant.solution import LayerSolution, bias_scale, on_bias_grid, smallest_weight_scale
from onnxq.quant.spec import QuantParams
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.runtime.session import Session
from onnxq.solve.checkpoint import Checkpoint
from onnxq.solve.closed_form.initial_solution import fitted_input
from onnxq.solve.making import Making, Ranges
from onnxq.solve.walk import Walk
from onnxq.validation.judgement import Judgement, exact_outputs, judge, simulated_outputs

MOST_JUDGED = 64
"""Samples held back at most, to judge by whether the network gains."""

HELD_SHARE = 16
"""They take no more than one part in so many of the memory limit."""


class NoRoomError(Exception):
    """A bias has no room in int32 beside the new grid, and the scale that its channel shares with others stays."""


@dataclass(frozen=True)
class Reranged:
    """A network on new samples.

    Attributes:
        network: with new ranges and moments.
        before: error of the network as solved on the samples held back: mean over samples and outputs of the squared
            error relative to the signal; the share of answers that differ where no output is of floating point.
        after: the same with new ranges and moments.
        judgement: of its outputs of floating point on these samples.
        fitted: number of samples that ranges and moments were taken from.
    """

    network: QuantizedNetwork
    before: float
    after: float
    judgement: Judgement
    fitted: int


def rerange(
    model: Model, plan: Plan, network: QuantizedNetwork, config: Config, feeds: Sequence[Feed], progress: Listener
) -> Reranged:
    """A solved network with ranges and moments of new samples; an eighth, at least one, is held back to judge by.

    Ranges are searched; where that is no gain, they go from the smallest to the largest value, as those of a network
    whose ranges were found so may have to.

    Args:
        model: prepared and rewritten.
        plan: of its layers.
        network: their solutions.
        config: memory, target.
        feeds: the samples, in batches.
        progress: told how far it is.

    Raises:
        CalibrationError: a layer reads or makes NaN or infinity in the float network.
        NoRoomError: as it says.
    """
    total, whole = sum(map(samples_in, feeds)), has_fixed_batch(model.inputs)
    most = min(max(total // HOLD_OUT, 1), MOST_JUDGED, 1 + config.memory_limit // HELD_SHARE // _sample_bytes(feeds[0]))
    _, judged = set_apart(feeds, most, whole=whole)
    held = sum(map(samples_in, judged))
    before, _ = _error(model, plan, network, judged)
    best: Reranged | None = None
    for ranges in Ranges:
        fitted, _ = set_apart(feeds, most, whole=whole)
        walked = _walked(model, plan, network, config, ranges, fitted, progress)
        after, judgement = _error(model, plan, walked, judged)
        if best is None or after < best.after:
            best = Reranged(walked, before, after, judgement, total - held if held < total else total)
        if best.after < before:
            break
    assert best is not None
    return best


def _walked(
    model: Model,
    plan: Plan,
    network: QuantizedNetwork,
    config: Config,
    ranges: Ranges,
    feeds: Iterable[Feed],
    progress: Listener,
) -> QuantizedNetwork:
    """The network once it has walked over new samples."""
    stages = split_stages(model, [p.layer for p in plan.layers])
    with Calibration(
        model,
        feeds,
        Wanted(sequential=True, moments=True, mask=plan.mask, keep_back=KeepBack.NOTHING),
        memory_limit=config.memory_limit,
        seed=config.seed,
    ) as calibration:
        walk = _Rewalk(model, plan, config, network, Making(ranges, KeepBack.NOTHING))
        tell = _counting(sum(bool(s.nodes) for s in stages) * 3 * calibration.batches + len(plan.layers), progress)
        for stage in stages:
            walk.solve(stage, calibration, tell)
    return replace(network, layers=walk.solutions, outputs=walk.outputs, extremes=walk.extremes)


class _Rewalk(Walk):
    """A walk whose layers keep their integers."""

    def __init__(self, model: Model, plan: Plan, config: Config, network: QuantizedNetwork, making: Making) -> None:
        super().__init__(model, plan, config, Checkpoint(None, "", resume=False), making, network.tables)
        self._network = network

    def solution(self, layer: Layer, seen: Observation) -> LayerSolution:
        """The layer as it was, on the grid that its input has now."""
        solution = self._network.layers[layer.name]
        if solution.input is None:
            return solution
        grid = fitted_input(self.problem(layer, seen)).input
        assert grid is not None
        return on_grid(layer, solution, grid)


def on_grid(layer: Layer, solution: LayerSolution, grid: QuantParams) -> LayerSolution:
    """A solution beside another grid of its input; its integers are the same.

    The bias goes onto the grid of the new products. Where it has no room there, which happens to nearly dead channels
    alone, the scale of the channel's weights gives way.

    Raises:
        NoRoomError: channels share that scale.
    """
    weight, bias = solution.weight, solution.bias
    if bias is None or not layer.adds_integer_bias(weight.spec.bits, grid.spec.bits):
        return replace(solution, input=grid)
    least = smallest_weight_scale(bias, grid.scale, len(weight.scale))
    scale = np.maximum(weight.scale, least).astype(np.float32)
    if len(scale) < len(bias) and (scale > weight.scale).any():
        raise NoRoomError
    if solution.int32_bias:
        bias = on_bias_grid(bias, bias_scale(grid.scale, scale, len(bias)))
    return replace(solution, weight=QuantParams(weight.spec, scale), bias=bias, input=grid)


def _error(model: Model, plan: Plan, network: QuantizedNetwork, feeds: Sequence[Feed]) -> tuple[float, Judgement]:
    """Error of a network on samples, and its outputs of floating point one by one."""
    judgement = judge(model, plan, network, feeds, exact_outputs(model, feeds))
    return (judgement.error if judgement.signal else _unlike(model, plan, network, feeds)), judgement


def _unlike(model: Model, plan: Plan, network: QuantizedNetwork, feeds: Sequence[Feed]) -> float:
    """Share of a network's answers that differ from the float network's; of classes, say."""
    names = [t.name for t in model.outputs]
    exact = Session(to_outline(model), "the float network")
    shares = []
    for feed, made in zip(feeds, simulated_outputs(model, plan, network, feeds), strict=True):
        wanted = exact.run(feed, names)
        alike = [wanted[n].shape == made[n].shape and float((wanted[n] == made[n]).mean()) for n in names]
        shares += [1 - float(share) for share in alike]
    return math.fsum(shares) / max(len(shares), 1)


def _sample_bytes(feed: Feed) -> int:
    """Bytes of one sample of a feed."""
    return max(1, sum(np.asarray(value).nbytes for value in feed.values()) // max(samples_in(feed), 1))


def _counting(total: int, progress: Listener) -> Callable[[int], None]:
    """What is called with the units done, and tells progress of their sum."""
    done = 0

    def tell(units: int) -> None:
        nonlocal done
        done += units
        progress(Progress("adapt", done, total))

    return tell
