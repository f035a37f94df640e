"""What the quantization of each layer, table or product alone does to the network's output, for every candidate.

The network runs stage by stage. At each stage every candidate of its layers is solved on the stage's own
inputs; then the stage runs once with each of them, and the rest of the network behind it from there: nothing
before the changed layer runs again. All candidates see the same samples, and an entry is the mean of the
samples' own differences from the reference network, so that what samples have in common cancels.

Cheaper by as many times as there are candidates, the ``scaled`` method runs the rest of the network for one
candidate a layer. The others' losses are that one's in proportion to the squared errors of the layer's own output:
to first order the loss is quadratic in it, and its curvature is the layer's, not the candidate's.

Tables and products have few forms, in which several candidates come out alike: each form is run once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxq.allocation.candidate_solutions import solve_candidates
from onnxq.allocation.changed_loss import ChangedLoss
from onnxq.allocation.choices import Choices, Part
from onnxq.allocation.entries import Entries
from onnxq.allocation.sensitivity_table import SensitivityTable, as_matrix
from onnxq.calibration.calibrate import Calibration
from onnxq.calibration.observer import Observation
from onnxq.calibration.output_quantizer import output_grid
from onnxq.calibration.wanted import Wanted
from onnxq.config import FLOAT_BITS, Config
from onnxq.config.bit_widths import FLOAT, Candidate
from onnxq.data import Feed
from onnxq.ir.activation_matmul import Product, find_products
from onnxq.ir.layer import Layer, find_layers
from onnxq.ir.mask import find_mask
from onnxq.ir.model import Model
from onnxq.ir.stage import Stage, split_stages
from onnxq.ir.table import Table
from onnxq.plan.make_plan import make_plan, table_bits
from onnxq.progress import Listener, Progress, silent
from onnxq.quant.histogram import Histogram
from onnxq.quant.scale_search import activation_params
from onnxq.quant.solution import LayerSolution
from onnxq.quant.spec import QuantParams, QuantSpec, activation_spec
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.solve.closed_form.embedding import solve_table

Array = NDArray[np.float64]

METHODS = ("full", "scaled")


@dataclass(frozen=True)
class How:
    """How losses are measured.

    Attributes:
        method: ``full`` runs the rest of the network for every candidate, ``scaled`` for one a layer.
        metric: ``kl`` or ``mse``; None to choose by the outputs.
    """

    method: str = "full"
    metric: str | None = None


@dataclass(frozen=True)
class Reference:
    """The network whose layers are changed one at a time.

    Attributes:
        bits: of its layers.
        network: their solutions.
    """

    bits: Mapping[str, Candidate]
    network: QuantizedNetwork


def measure_sensitivities(
    model: Model,
    choices: Choices,
    feeds: Iterable[Feed],
    config: Config,
    *,
    judged: Iterable[Feed] = (),
    how: How = How(),
    reference: Reference | None = None,
    progress: Listener = silent,
) -> SensitivityTable:
    """The loss of every part at every candidate.

    Args:
        model: prepared; not changed.
        choices: parts and candidates.
        feeds: batches of samples, which the candidates are solved on.
        judged: batches of other samples, which their losses are measured on; the same when there are none.
        config: container, memory limit, seed, second-order start; layers are solved by closed forms.
        how: the method and the metric.
        reference: a quantized network around which to measure; the float network when None.
        progress: told after each part.

    Raises:
        CalibrationError: a layer reads or makes NaN or infinity in the float network.
    """
    config = replace(config, preset="light")
    wanted = Wanted(sequential=True, mask=find_mask(model))
    with Calibration(
        model, feeds, wanted, memory_limit=config.memory_limit, seed=config.seed, passing=judged
    ) as calibration:
        walk = _Walk(model, choices, calibration, config, reference or Reference({}, QuantizedNetwork()), how)
        done = 0

        def tell(part: Part) -> None:
            nonlocal done
            done += 1
            progress(Progress("measure", done, len(choices.parts), part.name))

        for index, stage in enumerate(walk.stages):
            walk.observe(stage)
            for layer in stage.layers:
                walk.measure(index, layer)
                tell(layer)
            for table in (t for t in choices.tables if t.name in stage.nodes):
                walk.measure_forms(index, table)
                tell(table)
            for product in walk.products_of(stage):
                walk.measure_forms(index, product)
                tell(product)
            walk.advance(stage)
        return walk.table()


class _Walk:
    """The state of a measurement between two stages."""

    def __init__(
        self,
        model: Model,
        choices: Choices,
        calibration: Calibration,
        config: Config,
        reference: Reference,
        how: How,
    ) -> None:
        self._model, self._choices, self._calibration, self._config = model, choices, calibration, config
        self._reference, self._method = reference, how.method
        self.stages = split_stages(model, choices.layers)
        self._entries = Entries(choices)
        self._places = {c: _outputs(model, config, c) for c in choices.candidates}
        self._operands: dict[str, Histogram | None] = {t: None for p in choices.products for t in (p.left, p.right)}
        self._readers = Counter(layer.input for layer in choices.layers)
        self._seen = Observation({}, {})
        around = reference.network if reference.bits else None
        self._loss = ChangedLoss(model, self.stages, calibration, around, how.metric)

    def observe(self, stage: Stage) -> None:
        """Draw what the solvers of a stage's layers need."""
        made = {layer.activated for layer in stage.layers}
        wanted = {t for places in self._places.values() for t in places if t in made} | self._operands.keys()
        self._seen = self._calibration.observe(stage, [t for t in stage.tensors if t in wanted], _silent)
        self._operands |= {t: h for t, h in self._seen.histograms.items() if t in self._operands}

    def products_of(self, stage: Stage) -> list[Product]:
        """The products whose operands are complete with what a stage makes."""
        found = []
        for product in self._choices.products:
            operands = (product.left, product.right)
            if all(self._operands[t] for t in operands) and any(t in stage.tensors for t in operands):
                found.append(product)
        return found

    def advance(self, stage: Stage) -> None:
        """Let the reference network pass a stage."""
        quantized = self._reference.network
        grids, constants = quantized.grids(stage), quantized.constants(stage)
        self._calibration.advance(stage, grids, constants, quantized.quantizers(stage), _silent)

    def measure(self, index: int, layer: Layer) -> None:
        """Fill a layer's row."""
        candidates = [c for c in self._choices.of(layer.name) if c != FLOAT]
        solved = solve_candidates(
            self._model, layer, candidates, self._seen, self._config, alone=self._readers[layer.input] == 1
        )
        anchors = candidates if self._method == "full" else _middle(candidates, solved)
        if self._reference.bits or FLOAT not in self._choices.of(layer.name):
            anchors = [*anchors, FLOAT] if FLOAT in self._choices.of(layer.name) else anchors
        else:
            self._entries.enter(layer, FLOAT, np.zeros(1))
        for candidate in anchors:
            self._entries.enter(layer, candidate, self._differences(index, layer, candidate, solved.get(candidate)))
        if self._method == "scaled":
            self._entries.scale(layer, anchors[0] if anchors else FLOAT, solved)

    def measure_forms(self, index: int, part: Table | Product) -> None:
        """Fill a table's or a product's row."""
        forms: dict[int, list[Candidate]] = {}
        for candidate in self._choices.of(part.name):
            forms.setdefault(self._form(part, candidate), []).append(candidate)
        for bits, candidates in forms.items():
            if bits == FLOAT_BITS and not self._reference.bits:
                found = np.zeros(1)
            elif isinstance(part, Table):
                found = self._loss.of(index, self._with_table(part, bits))
            else:
                found = self._loss.of(index, *self._with_product(index, part, bits))
            for candidate in candidates:
                self._entries.enter(part, candidate, found)

    def table(self) -> SensitivityTable:
        """All rows."""
        reference = self._loss.reference
        return SensitivityTable(
            layers=self._choices.names,
            candidates=self._choices.candidates,
            loss=as_matrix(self._entries.mean),
            error=as_matrix(self._entries.error),
            metric=self._loss.metric,
            method=self._method,
            samples=len(reference),
            reference=self._reference.bits,
            reference_loss=float(reference.mean()) if self._reference.bits else 0.0,
        )

    def _form(self, part: Table | Product, candidate: Candidate) -> int:
        """Bits that a candidate means for a table or a product's operands."""
        if isinstance(part, Table):
            return table_bits(part, candidate, self._config)
        return 8 if self._config.quantizes_products(candidate.activations) else FLOAT_BITS

    def _with_table(self, table: Table, bits: int) -> QuantizedNetwork:
        """The reference network with one table at other bits."""
        tables = {name: rows for name, rows in self._reference.network.tables.items() if name != table.name}
        if bits != FLOAT_BITS:
            values = self._model.constant(table.weight)
            tables[table.name] = solve_table(table.weight, values, bits, blocked=bool(table.rank))
        return replace(self._reference.network, tables=tables)

    def _with_product(self, index: int, product: Product, bits: int) -> tuple[QuantizedNetwork, dict[str, QuantParams]]:
        """The reference network with one product's operands at other bits, and grids of those made in earlier stages.

        Those come as the reference network has them: where it has rounded them they stay so.
        """
        operands = (product.left, product.right)
        outputs = {t: grid for t, grid in self._reference.network.outputs.items() if t not in operands}
        earlier: dict[str, QuantParams] = {}
        for tensor in operands if bits != FLOAT_BITS else ():
            histogram = self._operands[tensor]
            assert histogram is not None
            made_here = tensor in self.stages[index].tensors
            (outputs if made_here else earlier)[tensor] = activation_params(histogram, self._spec(bits))
        return replace(self._reference.network, outputs=outputs), earlier

    def _differences(self, index: int, layer: Layer, candidate: Candidate, solution: LayerSolution | None) -> Array:
        """Loss of each sample with one layer changed, minus that of the reference network, (samples,)."""
        layers, outputs = dict(self._reference.network.layers), dict(self._reference.network.outputs)
        layers.pop(layer.name, None)
        if layer.activated not in self._operands:
            outputs.pop(layer.activated, None)
        if solution is not None:
            layers[layer.name] = solution
            bits = self._places[candidate].get(layer.activated)
            if bits is not None:
                histogram = self._seen.histograms[layer.activated]
                outputs[layer.activated] = output_grid(self._model, layer.activated, histogram, self._spec(bits))
        return self._loss.of(index, replace(self._reference.network, layers=layers, outputs=outputs))

    def _spec(self, bits: int) -> QuantSpec:
        return activation_spec(bits, symmetric=self._config.rules.symmetric)


def _middle(candidates: list[Candidate], solved: Mapping[Candidate, LayerSolution]) -> list[Candidate]:
    """The candidate whose error lies in the middle."""
    return sorted(candidates, key=lambda c: solved[c].loss)[len(candidates) // 2 : len(candidates) // 2 + 1]


def _outputs(model: Model, config: Config, candidate: Candidate) -> dict[str, int]:
    """Bits of tensors that are quantized where they are made when every layer that may has the candidate's bits."""
    choice = {layer.name: config.rules.least(layer.op, candidate) for layer in find_layers(model)[0]}
    if all(bits == FLOAT for bits in choice.values()):
        return {}
    choice |= {product.name: FLOAT for product in find_products(model)}
    return {q.tensor: q.bits for q in make_plan(model, config, choice).outputs}


def _silent(_: int) -> None:
    """Progress that nobody hears."""
