"""The layers of one stage solved, and what the next stage has to know of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.calibrate import Calibration
from onnxq.calibration.observer import Observation
from onnxq.calibration.output_quantizer import output_grid
from onnxq.config import FLOAT_BITS, Config
from onnxq.ir.block import Block
from onnxq.ir.layer import Layer
from onnxq.ir.model import Model
from onnxq.ir.stage import Stage
from onnxq.ir.tensor import has_fixed_batch
from onnxq.plan.values import LayerPlan, Plan
from onnxq.quant.histogram import Histogram
from onnxq.quant.scale_search import activation_params, extreme_params
from onnxq.quant.solution import LayerSolution
from onnxq.quant.spec import QuantParams, QuantSpec, activation_spec
from onnxq.quant.table import TableSolution
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.solve.checkpoint import Checkpoint
from onnxq.solve.closed_form.embedding import solve_table
from onnxq.solve.closed_form.para_normalization import para_normalize
from onnxq.solve.gradient.block_reconstruction import reconstruct_blocks
from onnxq.solve.gradient.circumstances import Circumstances
from onnxq.solve.layer import LayerTask, make_problem, round_layer, solve_layer
from onnxq.solve.making import Making, Ranges
from onnxq.solve.problem import LayerProblem

Array = NDArray[np.float32]


class Walk:
    """The state of a solution between two stages.

    Args:
        model: prepared.
        plan: of its layers.
        config: how to solve them.
        checkpoint: of finished layers.
        making: how besides.
        tables: solved already; they are solved here when None.
    """

    def __init__(
        self,
        model: Model,
        plan: Plan,
        config: Config,
        checkpoint: Checkpoint,
        making: Making,
        tables: Mapping[str, TableSolution] | None = None,
    ) -> None:
        self._making = making
        self.extremes: dict[str, QuantParams] = {}
        self.solutions: dict[str, LayerSolution] = {}
        self.outputs: dict[str, QuantParams] = {}
        self._plan, self._config, self._checkpoint = plan, config, checkpoint
        self._planned = {p.layer.name: p for p in plan.layers}
        self._order = {p.layer.name: i for i, p in enumerate(plan.layers)}
        self._grids: dict[tuple[str, int], QuantParams] = {}
        self._model = model
        self._reader = {p.layer.input: p.layer.name for p in plan.layers}
        self._maker = {t.name: node.name for node in model.graph.nodes for t in node.outputs}
        self.tables = _solve_tables(model, plan) if tables is None else tables

    def solve(self, stage: Stage, calibration: Calibration, tell: Callable[[int], None]) -> None:
        """Observe a stage, solve its layers, and let the quantized network pass it."""
        nodes = set(stage.nodes)
        places = [q for q in self._plan.outputs if self._maker[q.tensor] in nodes]
        own = {q.tensor: q.bits for q in places if q.like in (None, q.tensor)}
        seen = calibration.observe(stage, own, tell)
        for layer in stage.layers:
            bits = self._planned[layer.name].activations
            if bits != FLOAT_BITS:
                self.extremes[layer.name] = extreme_params(seen.histograms[layer.input], self._spec(bits))
            self.solutions[layer.name] = solution = self.solution(layer, seen)
            if solution.input is not None:
                self._grids[layer.input, self._planned[layer.name].activations] = solution.input
            tell(1)
        for tensor, bits in own.items():
            self.extremes[tensor] = extreme_params(seen.histograms[tensor], self._spec(bits))
            self.outputs[tensor] = self._output_grid(tensor, seen.histograms[tensor], bits)
        inputs = self.network.grids(stage)
        if seen.moments:
            found = calibration.moments(stage, inputs, self.network.constants(stage), tell)
            for layer in stage.layers:
                solution, wanted = self.solutions[layer.name], seen.moments.get(layer.name)
                if wanted is not None and layer.name in found:  # otherwise it saw nothing
                    self.solutions[layer.name] = para_normalize(layer, solution, wanted, found[layer.name])
        calibration.advance(stage, inputs, self.network.constants(stage), {t: self.outputs[t] for t in own}, tell)
        for place in self._plan.outputs:  # grids that were waiting for the layer they follow
            known = self._grids.get((place.like or "", place.bits))
            if place.tensor not in self.outputs and known is not None:
                self.outputs[place.tensor] = known
                self.extremes[place.tensor] = self.extremes[self._reader[place.like or ""]]

    def reconstruct(self, block: Block, calibration: Calibration) -> None:
        """Refine the layers of a block that has just been passed together, and pass it again."""
        names = [layer.name for layer in block.layers]
        found = self._checkpoint.load_block(names)
        if found is None:
            shared = any(place.like for place in self._plan.outputs)  # grids that others share stay where they are
            options = self._config.reconstruction
            circumstances = Circumstances(
                fixed=has_fixed_batch(self._model.inputs),
                memory_limit=self._config.memory_limit // 4,
                seed=self._config.seed + self._order[names[0]],
            )
            found = reconstruct_blocks(
                self._model,
                block,
                self._within(block),
                calibration,
                replace(options, input_rate=0.0) if shared else options,
                circumstances,
            )
            self._checkpoint.save_block(found)
        if all(self.solutions[name] is solution for name, solution in found.items()):
            calibration.forget_mark()
            return
        self.solutions.update(found)
        calibration.return_to_mark()
        for stage in block.stages:
            inputs = {layer.name: found[layer.name].input for layer in stage.layers}
            calibration.advance(stage, inputs, self.network.constants(stage), self._made_in(stage), lambda _: None)

    def _within(self, block: Block) -> QuantizedNetwork:
        """The layers of a block, and the tensors that are quantized where it makes them."""
        outputs = {tensor: grid for stage in block.stages for tensor, grid in self._made_in(stage).items()}
        return QuantizedNetwork({layer.name: self.solutions[layer.name] for layer in block.layers}, outputs)

    def _made_in(self, stage: Stage) -> dict[str, QuantParams]:
        """Grids of the tensors that are quantized where a stage makes them."""
        return {tensor: grid for tensor, grid in self.outputs.items() if self._maker[tensor] in stage.nodes}

    @property
    def network(self) -> QuantizedNetwork:
        """The network as far as it is solved."""
        return QuantizedNetwork(self.solutions, self.outputs, self.tables, extremes=self.extremes)

    def solution(self, layer: Layer, seen: Observation) -> LayerSolution:
        """One layer solved, from what its stage showed."""
        finished = self._checkpoint.load(layer.name)
        if finished is not None:
            return finished
        planned = self._planned[layer.name]
        if self._making.plain:
            return self._rounded(planned, self._grid(layer, planned.activations, seen))
        problem = self.problem(layer, seen)
        solution = solve_layer(layer, problem, self._config, self._config.seed + self._order[layer.name])
        self._checkpoint.save(solution)
        return solution

    def problem(self, layer: Layer, seen: Observation) -> LayerProblem:
        """What is asked of a layer, and the rows that its stage showed."""
        planned = self._planned[layer.name]
        task = LayerTask(
            planned.weights,
            planned.block,
            target=self._config.rules,
            fit_input=self._making.ranges is Ranges.SEARCHED and self._is_alone(layer),
            bounded=self._config.bounded_influence,
            refit=seen.refit and not self._config.refines,
        )
        weight = self._model.constant(layer.weight)
        bias = self._model.constant(layer.bias) if layer.bias else None
        grid, tails = self._grid(layer, planned.activations, seen), seen.histograms[layer.input].tails
        return make_problem(layer, weight, bias, task, grid, seen.rows[layer.name], tails)

    def _is_alone(self, layer: Layer) -> bool:
        """Whether the grid of a layer's input serves that layer alone.

        One that is shared with the tensor's maker does not where others read it too: what it cuts off is gone from a
        residual path for good.
        """
        if layer.input in self.outputs or sum(p.layer.input == layer.input for p in self._plan.layers) > 1:
            return False
        shared = {t for place in self._plan.outputs if place.like == layer.input for t in (place.tensor, layer.input)}
        tensors, final = self._model.tensors, self._model.final
        return all(len(tensors[t].outputs) == 1 and t not in final for t in shared)

    def _rounded(self, planned: LayerPlan, grid: QuantParams | None) -> LayerSolution:
        """A layer's weights rounded to nearest between their extremes."""
        layer, config = planned.layer, self._config
        weight = self._model.constant(layer.weight)
        bias = self._model.constant(layer.bias) if layer.bias else None
        return round_layer(layer, weight, bias, planned.weights, grid, config.rules)

    def _grid(self, layer: Layer, bits: int, seen: Observation) -> QuantParams | None:
        """Grid of a layer's input: that of the tensor where it already has one."""
        if bits == FLOAT_BITS:
            return None
        if layer.input in self.outputs:
            return self.outputs[layer.input]
        known = self._grids.get((layer.input, bits))
        find = activation_params if self._making.ranges is Ranges.SEARCHED else extreme_params
        return known or find(seen.histograms[layer.input], self._spec(bits))

    def _output_grid(self, tensor: str, histogram: Histogram, bits: int) -> QuantParams:
        """Grid of a tensor that is quantized where it is made."""
        if self._making.ranges is Ranges.EXTREMES:
            return extreme_params(histogram, self._spec(bits))
        return output_grid(self._model, tensor, histogram, self._spec(bits))

    def _spec(self, bits: int) -> QuantSpec:
        return activation_spec(bits, symmetric=self._config.rules.symmetric)


def _solve_tables(model: Model, plan: Plan) -> dict[str, TableSolution]:
    """Every table on its grids; Gathers that share a table and its bits share the solution."""
    known: dict[tuple[str, int], TableSolution] = {}
    for planned in plan.tables:
        table, key = planned.table, (planned.table.weight, planned.bits)
        if key not in known:
            known[key] = solve_table(table.weight, model.constant(table.weight), planned.bits, blocked=bool(table.rank))
    return {p.table.name: known[p.table.weight, p.bits] for p in plan.tables}
