"""The emitted model on its way through the gate: where it fails, safer forms of what is to blame are tried.

onnxruntime's fusions differ from version to version, and one of them may go wrong on a form that all others run. The
trace of the gate names a layer or a quantized tensor. What is tried then, one after the other: the layer's small
weights stored in bytes, and its matrix stored so that no kernel rounds its float input, neither of which changes a
number; its output left in float for whoever reads it; its input left in float. What is left in float is more precise
than asked for, but not what was asked for: the report counts those layers among the missed. A fault that outlives all
this is raised.

Only the default target is mended: the others have their forms prescribed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import onnx

from onnxq.acceptance.gate import FaultError, Outputs, pass_gate, require_finite
from onnxq.acceptance.localize import first_apart
from onnxq.acceptance.simulation import simulated
from onnxq.config import Config
from onnxq.data import Feed
from onnxq.emit.qdq import emit, stored_form
from onnxq.ir.layer import Layer
from onnxq.ir.model import Model, Remark
from onnxq.ir.save import to_outline
from onnxq.plan.values import Plan
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.runtime.session import Session
from onnxq.verify import FirstDifference, LevelCheck

SIMULATED_BATCHES = 4
"""First batches on which the emitted model is held against the solver's simulation."""


@dataclass(frozen=True)
class Emitted:
    """A quantized model that has passed the gate.

    Attributes:
        proto: the model.
        checks: how it runs at each optimization level.
        remarks: what had to be mended for that.
    """

    proto: onnx.ModelProto
    checks: tuple[LevelCheck, ...]
    remarks: tuple[Remark, ...]


def emit_through_gate(
    model: Model,
    plan: Plan,
    network: QuantizedNetwork,
    config: Config,
    feeds: Sequence[Feed],
    every: Iterable[Feed] = (),
) -> Emitted:
    """The quantized model that passes the gate.

    Args:
        model: prepared.
        plan: of the layers.
        network: their solutions.
        config: the container and the target.
        feeds: a few batches to run on.
        every: all batches, where nothing in the graph keeps its answers finite; the few otherwise.

    Raises:
        NotFiniteError: it answers NaN or infinity where the float model answers numbers.
        VerificationError: the model fails at a level, or means something else there, in every form.
    """
    mending = _Mending(plan, network, config)
    expected = simulated(model, plan, network, feeds[:SIMULATED_BATCHES])
    exact = [outputs for _, outputs in _float_outputs(model, feeds)]
    while True:
        proto = mending.emitted(model)
        try:
            checks = pass_gate(proto, feeds, expected, network.sqnr_db, exact[:SIMULATED_BATCHES])
        except FaultError as error:
            if error.room is not None:
                raise _located(error, first_apart(model, plan, network, proto, feeds[0], error.room)) from None
            if config.rules.outputs != "kernels" or error.difference is None or not mending.remedy(error.difference):
                raise
        else:
            require_finite(proto, _float_outputs(model, every) if every else zip(feeds, exact, strict=True))
            return Emitted(proto, checks, tuple(mending.told))


def _float_outputs(model: Model, feeds: Iterable[Feed]) -> Iterator[tuple[Feed, Outputs]]:
    """Each feed with what the float model makes of it; the session, a copy of the weights, goes behind the last."""
    session = Session(to_outline(model), "the float model")
    for feed in feeds:
        yield feed, session.run(feed)


def _located(error: FaultError, found: tuple[str, float] | None) -> FaultError:
    """The same fault with the tensor where emitted and simulated model part."""
    place = None if found is None else f"tensor {found[0]!r} differs by {found[1]:.1%}"
    return FaultError(error.sentence, room=error.room, place=place)


class _Mending:
    """The forms of the layers, and what was said about them."""

    def __init__(self, plan: Plan, network: QuantizedNetwork, config: Config) -> None:
        self._plan, self._network, self._config = plan, network, config
        self._whole: set[str] = set()
        self._apart: set[str] = set()
        self._in_float: set[str] = set()
        self.told: list[Remark] = []

    def emitted(self, model: Model) -> onnx.ModelProto:
        """The model in the present forms."""
        solutions = {
            p.layer.name: replace(self._network.layers[p.layer.name], input=None)
            if p.layer.input in self._in_float
            else self._network.layers[p.layer.name]
            for p in self._plan.layers
        }
        outputs = {t: grid for t, grid in self._network.outputs.items() if t not in self._in_float}
        network = replace(self._network, layers=solutions, outputs=outputs)
        return emit(model, self._plan, network, self._config, byte_weights=self._whole, no_nbits=self._apart)

    def remedy(self, found: FirstDifference) -> bool:
        """Take the next safer form for what is to blame; False where there is none left."""
        layer = self._layer(found)
        small = layer is not None and stored_form(layer, self._network.layers[layer.name], self._config) != "int8"
        if layer is not None and small and layer.name not in self._whole:
            self._whole.add(layer.name)
            self.told.append(Remark(layer.name, f"its weights take a byte each: in onnxruntime, {found}"))
            return True
        if layer is not None and self._beside_float(layer) and layer.name not in self._apart:
            self._apart.add(layer.name)
            told = f"its weights are kept from a kernel that rounds its input: in onnxruntime, {found}"
            self.told.append(Remark(layer.name, told))
            return True
        for tensor in (self._tensor(found), *((layer.activated, layer.input) if layer else ())):
            if tensor in self._quantized() - self._in_float:
                self._in_float.add(tensor)
                self.told.append(Remark(tensor, f"this tensor is left in float: in onnxruntime, {found}"))
                return True
        return False

    def _beside_float(self, layer: Layer) -> bool:
        """Whether a matrix with a scale a channel reads floats, which onnxruntime may round at its own discretion.

        A transposed one has the safe form already: to emit it again would change nothing.
        """
        solution, matrix = self._network.layers[layer.name], layer.op in ("Gemm", "MatMul") and not layer.transposed
        return matrix and solution.input is None and solution.weight.scale.ndim < 2

    def _quantized(self) -> set[str]:
        inputs = (p.layer.input for p in self._plan.layers if self._network.layers[p.layer.name].input is not None)
        return {*self._network.outputs, *inputs}

    def _layer(self, found: FirstDifference) -> Layer | None:
        """The layer that makes what differs, before or behind its clipping."""
        names = {found.tensor, found.node, found.computed_by}
        layers = (p.layer for p in self._plan.layers)
        return next((la for la in layers if names & {la.name, la.output, la.activated}), None)

    def _tensor(self, found: FirstDifference) -> str:
        """The tensor whose quantized form differs; the pair behind it is named after it."""
        owners = [t for t in self._quantized() if found.tensor.startswith(f"{t}/")]
        return max(owners, key=len, default=found.tensor)
