"""Samples of another kind than those a network was solved on: its ranges and moments found anew, no integer touched.

The solved network walks over the new samples stage by stage, as it did when it was solved. The grid of each quantised
tensor is found as it was then, of what the network now brings to it, and takes the place of the old one; behind each
layer para-normalisation (:mod:`onnxq.solve.batchnorm`) brings mean and deviation of every channel back to those of the
float layer on the same samples. Both move scales and biases alone. Ranges that hold the old samples too would be the
wider of both: samples that are quieter than those before would gain nothing, so to serve both kinds is for whoever
hands over samples of both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from onnxq.calibrate import Calibration
from onnxq.checkpoint import Checkpoint
from onnxq.config import Config
from onnxq.data import Feed, samples_in, set_apart
from onnxq.execute.chain import Chain, Quantised
from onnxq.execute.layer_rows import HOLD_OUT
from onnxq.execute.observation import Observation
from onnxq.execute.spool import Arrays
from onnxq.ir.layer import Layer
from onnxq.ir.model import Model
from onnxq.ir.stage import split_stages
from onnxq.ir.tensor import has_fixed_batch
from onnxq.network import NetworkSolution, Walk, by_constant
from onnxq.plan import Plan
from onnxq.progress import Listener, Progress
from onnxq.quant.solution import LayerSolution, bias_scale, on_bias_grid, smallest_weight_scale
from onnxq.quant.spec import QuantParams
from onnxq.solve.start import fitted_input

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
        network: with new ranges and moments; its ``sqnr_db`` is on the samples held back.
        before: error of the outputs on these as solved (:func:`output_errors`); the geometric mean over the outputs
            that have any, NaN where none has.
        after: the same with new ranges and moments.
        samples: that these were taken from.
    """

    network: NetworkSolution
    before: float
    after: float
    samples: int


def reranged(
    model: Model, plan: Plan, network: NetworkSolution, config: Config, feeds: Sequence[Feed], progress: Listener
) -> Reranged:
    """A solved network with ranges and moments of new samples; every eighth of these is held back to judge by.

    Args:
        model: prepared.
        plan: of its layers.
        network: their solutions.
        config: memory, target.
        feeds: the samples, in batches.
        progress: told how far it is.

    Raises:
        CalibrationError: a layer reads or makes NaN or infinity in the float network.
        NoRoomError: as it says.
    """
    stages = split_stages(model, [p.layer for p in plan.layers])
    total = sum(map(samples_in, feeds))
    most = min(total // HOLD_OUT, MOST_JUDGED, 1 + config.memory_limit // HELD_SHARE // _sample_bytes(feeds[0]))
    fitted, judged = set_apart(feeds, most, whole=has_fixed_batch(model.inputs))
    alone = sum(map(samples_in, judged)) < total
    with Calibration(
        model,
        fitted,
        sequential=True,
        float_rows=False,
        moments=True,
        memory_limit=config.memory_limit,
        seed=config.seed,
        mask=plan.mask,
        passing=judged if alone else (),
    ) as calibration:
        walk = _Rewalk(model, plan, config, network)
        runs = sum(bool(stage.nodes) for stage in stages) * (2 * calibration.batches + calibration.passing.start)
        whole, done = runs + len(plan.layers), 0

        def tell(units: int) -> None:
            nonlocal done
            done += units
            progress(Progress("adapt", done, whole))

        for stage in stages:
            walk.solve(stage, calibration, tell)
        chain = Chain(
            model,
            stages,
            Quantised(network.layers, network.outputs, by_constant((p.table for p in plan.tables), network.tables)),
        )
        own = calibration.passing or range(calibration.batches)
        exact = partial(map, calibration.exact, own)
        before = output_errors(exact(), (chain.run({k: np.asarray(v) for k, v in f.items()}, 0) for f in judged))
        after = output_errors(exact(), (calibration.outputs(batch)[1] for batch in own))
    inexact = [name for name in after if max(before[name], after[name]) > 0]
    floats = [t.name for t in model.outputs if np.issubdtype(t.dtype, np.floating)]
    return Reranged(
        NetworkSolution(
            layers=walk.solutions,
            outputs=walk.outputs,
            samples=network.samples,
            sqnr_db={n: -10 * math.log10(after[n]) if after.get(n) else None for n in floats},
            remarks=network.remarks,
            tables=network.tables,
        ),
        _mean(before, inexact),
        _mean(after, inexact),
        total - sum(map(samples_in, judged)) if alone else total,
    )


class _Rewalk(Walk):
    """A walk whose layers keep their integers."""

    def __init__(self, model: Model, plan: Plan, config: Config, network: NetworkSolution) -> None:
        super().__init__(model, plan, config, Checkpoint(None, "", resume=False), network.tables)
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


def output_errors(exact: Iterable[Arrays], found: Iterable[Arrays]) -> dict[str, float]:
    """How far outputs are from exact ones, by name, over batches.

    Of floating-point outputs the squared error relative to their power, over what is finite in both; of others the
    share of values that differ. Outputs of no power are left out.
    """
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    for wanted, made in zip(exact, found, strict=True):
        for name, a in wanted.items():
            b = made[name]
            if np.issubdtype(a.dtype, np.floating):
                finite = np.isfinite(a) & np.isfinite(b)
                x, y = a[finite].astype(np.float64), b[finite].astype(np.float64)
                power, lost = float(np.square(x).sum()), float(np.square(x - y).sum())
            else:
                power, lost = float(a.size), float(np.count_nonzero(a != b))
            signal[name], noise[name] = signal.get(name, 0.0) + power, noise.get(name, 0.0) + lost
    return {name: noise[name] / signal[name] for name in signal if signal[name] > 0}


def _sample_bytes(feed: Feed) -> int:
    """Bytes of one sample of a feed."""
    return max(1, sum(np.asarray(value).nbytes for value in feed.values()) // max(samples_in(feed), 1))


def _mean(errors: Mapping[str, float], names: Sequence[str]) -> float:
    logs = [math.log(max(errors[name], 1e-30)) for name in names]
    return math.exp(sum(logs) / len(logs)) if logs else math.nan
