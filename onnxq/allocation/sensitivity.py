"""What each layer's quantisation alone does to the network's output, for every candidate.

The network runs stage by stage. At each stage every candidate of its layers is solved on the stage's own
inputs; then the stage runs once with each of them, and the rest of the network behind it from there: nothing
before the changed layer runs again. All candidates see the same samples, and an entry is the mean of the
samples' own differences from the reference network, so that what samples have in common cancels.

Cheaper by as many times as there are candidates, the ``scaled`` method runs the rest of the network for one
candidate a layer. The others' losses are that one's in proportion to the squared errors of the layer's own output:
to first order the loss is quadratic in it, and its curvature is the layer's, not the candidate's.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxq.allocation.choices import Choices
from onnxq.allocation.output_loss import OutputLoss
from onnxq.allocation.tables import SensitivityTable, as_matrix
from onnxq.calibrate import Calibration, Observation
from onnxq.candidate import FLOAT, Candidate
from onnxq.config import FLOAT_BITS, Config
from onnxq.data import Feed
from onnxq.execute.chain import Chain, Quantised, make_step
from onnxq.execute.frontier import passed
from onnxq.ir.layer import Layer, find_layers
from onnxq.ir.model import Model
from onnxq.ir.stage import Stage, split_stages
from onnxq.plan import block_of, make_plan
from onnxq.progress import Listener, Progress, silent
from onnxq.quant.scale_search import activation_params
from onnxq.quant.solution import LayerSolution
from onnxq.quant.spec import QuantSpec, activation_spec
from onnxq.solve.groundwork import lay_groundwork
from onnxq.solve.layer import make_problem, solve_layer
from onnxq.solve.start import fitted_input

Array = NDArray[np.float64]

METHODS = ("full", "scaled")


@dataclass(frozen=True)
class Reference:
    """The network whose layers are changed one at a time.

    Attributes:
        bits: of its layers.
        quantised: their solutions.
    """

    bits: Mapping[str, Candidate]
    quantised: Quantised


def measure_sensitivities(
    model: Model,
    choices: Choices,
    feeds: Iterable[Feed],
    config: Config,
    *,
    judged: Iterable[Feed] = (),
    method: str = "full",
    metric: str | None = None,
    reference: Reference | None = None,
    progress: Listener = silent,
) -> SensitivityTable:
    """The loss of every layer at every candidate.

    Args:
        model: prepared; not changed.
        choices: layers and candidates.
        feeds: batches of samples, which the candidates are solved on.
        judged: batches of other samples, which their losses are measured on; the same when there are none.
        config: container, memory limit, seed, second-order start; layers are solved by closed forms.
        method: ``full`` or ``scaled``.
        metric: ``kl`` or ``mse``; None to choose by the outputs.
        reference: a quantised network around which to measure; the float network when None.
        progress: told after each layer.

    Raises:
        CalibrationError: a layer reads or makes NaN or infinity in the float network.
    """
    config = replace(config, preset="light")
    with Calibration(
        model,
        feeds,
        passing=judged,
        sequential=True,
        float_rows=False,
        memory_limit=config.memory_limit,
        seed=config.seed,
    ) as calibration:
        walk = _Walk(model, choices, calibration, config, reference or Reference({}, Quantised()), metric)
        done = 0
        for index, stage in enumerate(walk.stages):
            walk.observe(stage)
            for layer in stage.layers:
                walk.measure(index, layer, method)
                done += 1
                progress(Progress("measure", done, len(choices.layers), layer.name))
            walk.advance(stage)
        return walk.table(method)


class _Walk:
    """The state of a measurement between two stages."""

    def __init__(
        self,
        model: Model,
        choices: Choices,
        calibration: Calibration,
        config: Config,
        reference: Reference,
        metric: str | None,
    ) -> None:
        self._model, self._choices, self._calibration, self._config = model, choices, calibration, config
        self._reference = reference
        self.stages = split_stages(model, choices.layers)
        self._row = {layer.name: i for i, layer in enumerate(choices.layers)}
        self._column = {c: i for i, c in enumerate(choices.candidates)}
        self._mean, self._error = (np.full(choices.open.shape, math.nan) for _ in range(2))
        self._places = {c: _outputs(model, config, c) for c in choices.candidates}
        self._readers = Counter(layer.input for layer in choices.layers)
        self._seen = Observation({}, {})
        self._judged = calibration.passing or range(calibration.batches)
        exact_chain = Chain(model, self.stages, Quantised())
        exact = [exact_chain.run(calibration.before(b), 0) for b in self._judged]
        self._loss = OutputLoss(exact, metric)
        self._chain = Chain(model, self.stages, reference.quantised) if reference.bits else exact_chain
        self._base = [
            self._loss.of(place, self._chain.run(calibration.before(batch), 0))
            for place, batch in enumerate(self._judged)
        ]

    def observe(self, stage: Stage) -> None:
        """Draw what the solvers of a stage's layers need."""
        wanted = {t for places in self._places.values() for t in places}
        self._seen = self._calibration.observe(stage, [t for t in _made(stage) if t in wanted], _silent)

    def advance(self, stage: Stage) -> None:
        """Let the reference network pass a stage."""
        quantised = self._reference.quantised
        grids, constants = quantised.grids(stage), quantised.constants(stage)
        self._calibration.advance(stage, grids, constants, quantised.quantisers(stage), _silent)

    def measure(self, index: int, layer: Layer, method: str) -> None:
        """Fill a layer's row."""
        candidates = [c for c in self._choices.of(layer.name) if c != FLOAT]
        solved = self._solved(layer, candidates)
        anchors = candidates if method == "full" else _middle(candidates, solved)
        if self._reference.bits or FLOAT not in self._choices.of(layer.name):
            anchors = [*anchors, FLOAT] if FLOAT in self._choices.of(layer.name) else anchors
        else:
            self._enter(layer, FLOAT, np.zeros(1))
        for candidate in anchors:
            self._enter(layer, candidate, self._differences(index, layer, candidate, solved.get(candidate)))
        if method == "scaled":
            self._scale(layer, anchors[0] if anchors else FLOAT, solved)

    def table(self, method: str) -> SensitivityTable:
        """All rows."""
        reference = np.concatenate(self._base)
        return SensitivityTable(
            layers=tuple(layer.name for layer in self._choices.layers),
            candidates=self._choices.candidates,
            loss=as_matrix(self._mean),
            error=as_matrix(self._error),
            metric=self._loss.metric,
            method=method,
            samples=len(reference),
            reference=self._reference.bits,
            reference_loss=float(reference.mean()) if self._reference.bits else 0.0,
        )

    def _solved(self, layer: Layer, candidates: list[Candidate]) -> dict[Candidate, LayerSolution]:
        """A layer at each of its candidates, on the reference network's inputs."""
        seen = self._seen.rows[layer.name]
        rows = (seen.x, seen.x_float, seen.y, seen.train)
        weight = self._model.constant(layer.weight)
        bias = self._model.constant(layer.bias) if layer.bias else None
        found: dict[Candidate, LayerSolution] = {}
        for bits in dict.fromkeys(c.activations for c in candidates):
            grid = None
            if bits != FLOAT_BITS:
                grid = activation_params(self._seen.histograms[layer.input], self._spec(bits))
            alone = self._readers[layer.input] == 1
            posed = partial(
                make_problem, layer, weight, bias, target=self._config.rules, bounded=self._config.bounded_influence
            )
            shared = fitted_input(posed(FLOAT_BITS, grid, rows, alone))
            ground = lay_groundwork(shared) if self._config.second_order else None
            for candidate in (c for c in candidates if c.activations == bits):
                block = block_of(layer, candidate, self._config)
                problem = posed(candidate.weights, shared.input, rows, False, block=block)
                found[candidate] = solve_layer(layer, problem, self._config, self._config.seed, ground)
        return {c: found[c] for c in candidates}

    def _differences(self, index: int, layer: Layer, candidate: Candidate, solution: LayerSolution | None) -> Array:
        """Loss of each sample with one layer changed, minus that of the reference network, (samples,)."""
        stage = self.stages[index]
        layers, outputs = dict(self._reference.quantised.layers), dict(self._reference.quantised.outputs)
        layers.pop(layer.name, None)
        outputs.pop(layer.activated, None)
        if solution is not None:
            layers[layer.name] = solution
            bits = self._places[candidate].get(layer.activated)
            if bits is not None:
                histogram = self._seen.histograms[layer.activated]
                outputs[layer.activated] = activation_params(histogram, self._spec(bits))
        changed = Quantised(layers, outputs)
        step, parts = None, []
        for place, batch in enumerate(self._judged):
            arrays = self._calibration.before(batch)
            step = step or make_step(self._model, stage, arrays, changed)
            outcome = self._chain.run(passed(stage, arrays, step.run(arrays)), index + 1)
            parts.append(self._loss.of(place, outcome) - self._base[place])
        return np.concatenate(parts)

    def _spec(self, bits: int) -> QuantSpec:
        return activation_spec(bits, symmetric=self._config.rules.symmetric)

    def _enter(self, layer: Layer, candidate: Candidate, differences: Array) -> None:
        place = self._row[layer.name], self._column[candidate]
        self._mean[place] = differences.mean()
        spread = differences.std(ddof=1) if len(differences) > 1 else 0.0
        self._error[place] = spread / math.sqrt(len(differences))

    def _scale(self, layer: Layer, anchor: Candidate, solved: Mapping[Candidate, LayerSolution]) -> None:
        """Fill a row in proportion to the squared errors of the layer's own output."""
        row, at = self._row[layer.name], self._column[anchor]
        for candidate, solution in solved.items():
            factor = solution.loss / max(solved[anchor].loss, 1e-30)
            self._mean[row, self._column[candidate]] = self._mean[row, at] * factor
            self._error[row, self._column[candidate]] = self._error[row, at] * factor


def _middle(candidates: list[Candidate], solved: Mapping[Candidate, LayerSolution]) -> list[Candidate]:
    """The candidate whose error lies in the middle."""
    return sorted(candidates, key=lambda c: solved[c].loss)[len(candidates) // 2 : len(candidates) // 2 + 1]


def _made(stage: Stage) -> list[str]:
    return list(dict.fromkeys(layer.activated for layer in stage.layers))


def _outputs(model: Model, config: Config, candidate: Candidate) -> dict[str, int]:
    """Bits of tensors that are quantised where they are made when every layer that may has the candidate's bits."""
    choice = {layer.name: config.rules.least(layer.op, candidate) for layer in find_layers(model)[0]}
    if all(bits == FLOAT for bits in choice.values()):
        return {}
    return {q.tensor: q.bits for q in make_plan(model, config, choice).outputs}


def _silent(_: int) -> None:
    """Progress that nobody hears."""
