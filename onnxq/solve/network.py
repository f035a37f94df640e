"""Every layer of a network solved, one stage after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.calibrate import Calibration
from onnxq.calibration.hold_out import KeepBack
from onnxq.calibration.observer import Observation
from onnxq.calibration.output_quantizer import output_grid
from onnxq.config import FLOAT_BITS, Config
from onnxq.data import Feed
from onnxq.ir.block import Block, find_blocks
from onnxq.ir.layer import Layer
from onnxq.ir.model import Model, Remark
from onnxq.ir.stage import Stage, split_stages
from onnxq.ir.table import Table
from onnxq.ir.tensor import has_fixed_batch
from onnxq.plan.values import LayerPlan, Plan
from onnxq.progress import Listener, Progress
from onnxq.quant.histogram import Histogram
from onnxq.quant.scale_search import activation_params, extreme_params
from onnxq.quant.solution import LayerSolution
from onnxq.quant.spec import QuantParams, QuantSpec, activation_spec
from onnxq.quant.table import TableSolution
from onnxq.runtime.staged_network import Quantized
from onnxq.solve.checkpoint import Checkpoint
from onnxq.solve.closed_form.embedding import solve_table
from onnxq.solve.closed_form.para_normalization import para_normalize
from onnxq.solve.closeness import closeness
from onnxq.solve.gradient.block_reconstruction import reconstruct_blocks
from onnxq.solve.layer import make_problem, round_layer, solve_layer
from onnxq.solve.problem import LayerProblem

Array = NDArray[np.float32]


class Ranges(Enum):
    """How the range of an activation comes about."""

    SEARCHED = "searched"
    EXTREMES = "from the smallest to the largest value seen"


@dataclass(frozen=True)
class Making:
    """How a network is made, besides its configuration.

    Attributes:
        ranges: how ranges of activations come about.
        keep_back: what some samples are kept back for; by their number when None.
        plain: weights are rounded to nearest between their extremes and nothing is judged, for a quick look.
    """

    ranges: Ranges = Ranges.SEARCHED
    keep_back: KeepBack | None = None
    plain: bool = False


@dataclass(frozen=True)
class NetworkSolution:
    """A quantized network before it is written down.

    Attributes:
        layers: solutions by layer name.
        outputs: grids of tensors that are quantized where they are made, by tensor name.
        samples: calibration samples seen.
        sqnr_db: by network output, float against simulated quantized network on these samples, which it was fitted
            to; empty in parallel mode, which does not run the quantized network, and after tuning.
        remarks: what later changes came to.
        tables: solutions by the name of the table's node.
        extremes: ranges from the smallest to the largest value seen, by the name of the layer that reads the tensor,
            or of the tensor where it is quantized where it is made.
    """

    layers: Mapping[str, LayerSolution]
    outputs: Mapping[str, QuantParams]
    samples: int
    sqnr_db: Mapping[str, float | None]
    remarks: tuple[Remark, ...] = ()
    tables: Mapping[str, TableSolution] = field(default_factory=dict)
    extremes: Mapping[str, QuantParams] = field(default_factory=dict)

    def with_extremes(self) -> NetworkSolution:
        """The same integers with ranges from the smallest to the largest value seen."""
        layers = {
            name: replace(solution, input=self.extremes[name]) if solution.input is not None else solution
            for name, solution in self.layers.items()
        }
        return replace(self, layers=layers, outputs={t: self.extremes[t] for t in self.outputs})


def solve_network(
    model: Model,
    plan: Plan,
    config: Config,
    feeds: Iterable[Feed],
    checkpoint: Checkpoint,
    progress: Listener,
    making: Making = Making(),
) -> NetworkSolution:
    """Solve the layers of a prepared model in order.

    In sequential mode each stage's layers see what the solved ones before them produce; in parallel
    mode every layer sees the float network. Finished layers are taken from the checkpoint and kept in it.

    Args:
        model: prepared.
        plan: of its layers.
        config: how.
        feeds: batches of samples.
        checkpoint: of this model, configuration and samples.
        progress: told after each batch and layer.
        making: how besides.
    """
    sequential = config.mode == "sequential"
    with Calibration(
        model,
        feeds,
        sequential=sequential,
        float_rows=config.refines and config.refinement.mixing > 0,
        moments=config.para_normalise and sequential,
        memory_limit=config.memory_limit,
        seed=config.seed,
        mask=plan.mask,
        keep_back=making.keep_back,
        rows=not making.plain,
    ) as calibration:
        walk = Walk(model, plan, config, checkpoint, making)
        stages = split_stages(model, [p.layer for p in plan.layers])
        apart = model.not_comparable
        blocks = find_blocks(model, stages) if config.reconstructs else ()
        blocks = tuple(b for b in blocks if not apart.keys() & {layer.input for layer in b.layers})
        first, last = ({b.stages[at]: b for b in blocks} for at in (0, -1))
        runs = sum(bool(stage.nodes) for stage in stages) * (1 + sequential * (1 + config.para_normalise))
        total = runs * calibration.batches + len(plan.layers)
        done = 0

        def tick(detail: str, units: int) -> None:
            nonlocal done
            done += units
            progress(Progress("solve", done, total, detail))

        for stage in stages:
            tell = partial(tick, stage.layers[0].name if stage.layers else "")
            if stage in first:
                calibration.mark()
            walk.solve(stage, calibration, tell)
            if stage in last:
                walk.reconstruct(last[stage], calibration)
        judged = sequential and not making.plain
        ends = (calibration.outputs(batch) for batch in range(calibration.batches if judged else 0))
        sqnr_db, remarks = closeness(ends, apart)
        return NetworkSolution(
            layers=walk.solutions,
            outputs=walk.outputs,
            samples=calibration.samples,
            sqnr_db=sqnr_db,
            remarks=remarks,
            tables=walk.tables,
            extremes=walk.extremes,
        )


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
        inputs = {layer.name: self.solutions[layer.name].input for layer in stage.layers}
        if seen.moments:
            found = calibration.moments(stage, inputs, self._constants(stage), tell)
            for layer in stage.layers:
                solution, wanted = self.solutions[layer.name], seen.moments.get(layer.name)
                if wanted is not None and layer.name in found:  # otherwise it saw nothing
                    self.solutions[layer.name] = para_normalize(layer, solution, wanted, found[layer.name])
        calibration.advance(stage, inputs, self._constants(stage), {t: self.outputs[t] for t in own}, tell)
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
            found = reconstruct_blocks(
                self._model,
                block,
                self.solutions,
                {tensor: grid for stage in block.stages for tensor, grid in self._made_in(stage).items()},
                calibration,
                replace(options, input_rate=0.0) if shared else options,
                fixed=has_fixed_batch(self._model.inputs),
                memory_limit=self._config.memory_limit // 4,
                seed=self._config.seed + self._order[names[0]],
            )
            self._checkpoint.save_block(found)
        if all(self.solutions[name] is solution for name, solution in found.items()):
            calibration.forget_mark()
            return
        self.solutions.update(found)
        calibration.return_to_mark()
        for stage in block.stages:
            inputs = {layer.name: found[layer.name].input for layer in stage.layers}
            calibration.advance(stage, inputs, self._constants(stage), self._made_in(stage), lambda _: None)

    def _made_in(self, stage: Stage) -> dict[str, QuantParams]:
        """Grids of the tensors that are quantized where a stage makes them."""
        return {tensor: grid for tensor, grid in self.outputs.items() if self._maker[tensor] in stage.nodes}

    def _constants(self, stage: Stage) -> dict[tuple[str, str], Array]:
        """Quantized weights, biases and tables of a stage, by the constant's and the node's name."""
        return Quantized(
            self.solutions, tables=by_constant((p.table for p in self._plan.tables), self.tables)
        ).constants(stage)

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
        return make_problem(
            layer,
            self._model.constant(layer.weight),
            self._model.constant(layer.bias) if layer.bias else None,
            planned.weights,
            self._grid(layer, planned.activations, seen),
            seen.rows[layer.name],
            fit_input=self._making.ranges is Ranges.SEARCHED and self._is_alone(layer),
            block=planned.block,
            target=self._config.rules,
            bounded=self._config.bounded_influence,
            tails=seen.histograms[layer.input].tails,
            refit=seen.refit and not self._config.refines,
        )

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


def by_constant(
    tables: Iterable[Table], solutions: Mapping[str, TableSolution]
) -> dict[tuple[str, str], TableSolution]:
    """Solutions by the name of the constant and of the node, for the tables that have one."""
    return {(t.weight, t.name): solutions[t.name] for t in tables if t.name in solutions}


def _solve_tables(model: Model, plan: Plan) -> dict[str, TableSolution]:
    """Every table on its grids; Gathers that share a table and its bits share the solution."""
    known: dict[tuple[str, int], TableSolution] = {}
    for planned in plan.tables:
        table, key = planned.table, (planned.table.weight, planned.bits)
        if key not in known:
            known[key] = solve_table(table.name, model.constant(table.weight), planned.bits, blocked=bool(table.rank))
    return {p.table.name: known[p.table.weight, p.bits] for p in plan.tables}
