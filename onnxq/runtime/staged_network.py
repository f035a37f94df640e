"""A network as a chain of stages, to be run from any of them to the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxq.ir.model import Model
from onnxq.ir.stage import Stage, stage_model
from onnxq.ir.subgraph import kind_of
from onnxq.quant.solution import LayerSolution
from onnxq.quant.spec import QuantParams
from onnxq.quant.table import TableSolution
from onnxq.runtime.activation_cache import Step, passed, stage_feed
from onnxq.runtime.session import Session
from onnxq.runtime.spool import Arrays


@dataclass(frozen=True)
class Quantized:
    """What is quantized in a network or in a stage of it; nothing by default.

    Attributes:
        layers: solutions by layer name; layers that are not there stay in float.
        outputs: 8-bit grids of tensors quantized where they are made, by tensor name.
        tables: rows of integers, by the name of the constant and of the node that looks them up.
    """

    layers: Mapping[str, LayerSolution] = field(default_factory=dict)
    outputs: Mapping[str, QuantParams] = field(default_factory=dict)
    tables: Mapping[tuple[str, str], TableSolution] = field(default_factory=dict)

    def grids(self, stage: Stage) -> dict[str, QuantParams | None]:
        """Grids of the inputs of a stage's layers, by layer name."""
        return {la.name: self.layers[la.name].input for la in stage.layers if la.name in self.layers}

    def constants(self, stage: Stage) -> dict[tuple[str, str], NDArray[np.float32]]:
        """Weights, biases and tables to put in place of a stage's own, by the constant's and the node's name."""
        found = {key: solution.dequantized() for key, solution in self.tables.items() if key[1] in stage.nodes}
        for layer in stage.layers:
            solution = self.layers.get(layer.name)
            if solution is not None:
                found[layer.weight, layer.name] = solution.dequantized(layer.channel_axis)
                if layer.bias and solution.bias is not None:
                    found[layer.bias, layer.name] = solution.bias
        return found

    def quantizers(self, stage: Stage) -> dict[str, QuantParams]:
        """Grids of the tensors that a stage makes."""
        return {name: params for name, params in self.outputs.items() if name in stage.tensors}


class Chain:
    """The stages of a network, made ready to run when they are first reached.

    Args:
        model: prepared.
        stages: all of them.
        quantized: what is quantized in them.
    """

    def __init__(self, model: Model, stages: Sequence[Stage], quantized: Quantized) -> None:
        self._model, self._stages, self._quantized = model, stages, quantized
        self._steps: dict[int, Step] = {}

    def run(self, arrays: Arrays, start: int) -> Arrays:
        """The network's outputs from the tensors before a stage.

        Args:
            arrays: of one batch, at the cut before the stage.
            start: the stage's index; one behind the last for the outputs themselves.
        """
        for index in range(start, len(self._stages)):
            stage = self._stages[index]
            if index not in self._steps and stage.makes:
                self._steps[index] = make_step(self._model, stage, arrays, self._quantized)
            made = self._steps[index].run(arrays) if stage.makes else {}
            arrays = passed(stage, arrays, made)
        return arrays


def make_step(model: Model, stage: Stage, arrays: Arrays, quantized: Quantized) -> Step:
    """A stage ready to run on tensors of the types of ``arrays``."""
    types = {name: kind_of(value) for name, value in stage_feed(stage, arrays, {}).items()}
    part = stage_model(model, stage, stage.makes, types, quantized.constants(stage), quantized.quantizers(stage))
    session = Session(part, f"the part of the model from {stage.nodes[0]} to {stage.nodes[-1]}")
    return Step(stage, session, quantized.grids(stage))
