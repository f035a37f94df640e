"""The order of things: load, passes, calibrate, solve, emit, verify. Only this module knows it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.calibrate import Calibration, Observation
from onnxq.config import Config
from onnxq.data import read_feeds
from onnxq.emit.qdq import emit
from onnxq.ir.layer import Layer
from onnxq.ir.load import load
from onnxq.ir.model import Model
from onnxq.ir.stage import Stage, split_stages
from onnxq.passes.prepare import prepare
from onnxq.plan import LayerPlan, Plan, make_plan
from onnxq.quant.scale_search import activation_params
from onnxq.quant.solution import LayerSolution
from onnxq.quant.spec import FLOAT_BITS, QuantParams, activation_spec
from onnxq.solve.layer import make_problem, solve_layer

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        stage: what is being done, in a few words.
        done, total: units of work; the same unit within a stage.
    """

    stage: str
    done: int
    total: int


Listener = Callable[[Progress], None]


@dataclass(frozen=True)
class Quantised:
    model: onnx.ModelProto
    plan: Plan
    solutions: Mapping[str, LayerSolution]


def quantize(model: Any, calibration: Any, config: Config = Config(), progress: Listener = lambda _: None) -> Quantised:
    float_model = prepare(load(model, minimum_opset=config.opset))
    plan = make_plan(float_model, config)
    batch = 16
    feeds = read_feeds(calibration, float_model.inputs, samples=config.samples, batch=batch)
    run = _Run(float_model, plan, config, progress)
    run.solve(feeds)
    proto = emit(float_model, plan, run.solutions, run.outputs, config)
    return Quantised(proto, plan, run.solutions)


class _Run:
    def __init__(self, model: Model, plan: Plan, config: Config, progress: Listener) -> None:
        self.model, self.plan, self.config, self.progress = model, plan, config, progress
        self.solutions: dict[str, LayerSolution] = {}
        self.outputs: dict[str, QuantParams] = {}
        self._grids: dict[tuple[str, int], QuantParams] = {}
        self._plans = {p.layer.name: p for p in plan.layers}
        self._constants = {t.name: t for t in model.graph.tensors().values() if hasattr(t, "values")}

    def solve(self, feeds: Iterable[Mapping[str, NDArray[np.generic]]]) -> None:
        sequential = self.config.mode == "sequential"
        calibration = Calibration(self.model, feeds, sequential=sequential, memory_limit=self.config.memory_limit, seed=self.config.seed)
        stages = split_stages(self.model, [p.layer for p in self.plan.layers])
        for stage in stages:
            extra = [q.tensor for q in self.plan.outputs if q.tensor in self._made(stage)]
            seen = calibration.observe(stage, extra, lambda _: None)
            for index, layer in enumerate(stage.layers):
                self.solutions[layer.name] = self._solve(layer, seen, self.config.seed * 1000 + stage.depth * 31 + index)
                s = self.solutions[layer.name]
                print(f"{layer.name:40s} {s.loss_nearest:.5f} {s.loss:.5f} {s.status[:40]} {s.seconds:.1f}s")
            for name in extra:
                self.outputs[name] = activation_params(seen.histograms[name], activation_spec(8))
            inputs, constants = {}, {}
            for layer in stage.layers:
                solution = self.solutions[layer.name]
                inputs[layer.name] = solution.input
                constants[layer.weight] = solution.dequantized(layer.channel_axis)
                if layer.bias and solution.bias is not None:
                    constants[layer.bias] = solution.bias
            calibration.advance(stage, inputs, constants, {n: self.outputs[n] for n in extra}, lambda _: None)
        calibration.close()

    def _made(self, stage: Stage) -> set[str]:
        return {layer.activated for layer in stage.layers}

    def _solve(self, layer: Layer, seen: Observation, seed: int) -> LayerSolution:
        plan = self._plans[layer.name]
        grid = None
        if plan.activations != FLOAT_BITS:
            key = (layer.input, plan.activations)
            known = layer.input in self.outputs
            grid = self.outputs[layer.input] if known else self._grids.get(key) or activation_params(seen.histograms[layer.input], activation_spec(plan.activations))
        r = seen.rows[layer.name]
        sole = sum(p.layer.input == layer.input for p in self.plan.layers) == 1 and layer.input not in self.outputs
        problem = make_problem(layer, self._value(layer.weight), self._value(layer.bias) if layer.bias else None, plan.weights, grid, (r.x, r.x_float, r.y, r.train), sole)
        solution = solve_layer(layer, problem, self.config, seed)
        if solution.input is not None:
            self._grids[layer.input, plan.activations] = solution.input
        return solution

    def _value(self, name: str) -> Array:
        return np.asarray(self._constants[name].values, np.float32)
