"""A quantized network as a value: what stands in place of its float weights, and the grids of what flows through it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from onnxq.ir.model import Remark
from onnxq.ir.stage import Stage
from onnxq.quant.solution import LayerSolution
from onnxq.quant.spec import QuantParams
from onnxq.quant.table import TableSolution


@dataclass(frozen=True)
class QuantizedNetwork:
    """What is quantized in a network or in a part of it, before it is written down; nothing by default.

    Attributes:
        layers: solutions by layer name; layers that are not there stay in float.
        outputs: grids of tensors that are quantized where they are made, by tensor name.
        tables: rows of integers, by the name of the node that looks them up; tables that are not there stay in float.
        samples: calibration samples seen.
        sqnr_db: by network output, float against simulated quantized network on these samples, which it was fitted
            to; empty in parallel mode, which does not run the quantized network, and after tuning.
        remarks: what later changes came to.
        extremes: ranges from the smallest to the largest value seen, by the name of the layer that reads the tensor,
            or of the tensor where it is quantized where it is made.
    """

    layers: Mapping[str, LayerSolution] = field(default_factory=dict)
    outputs: Mapping[str, QuantParams] = field(default_factory=dict)
    tables: Mapping[str, TableSolution] = field(default_factory=dict)
    samples: int = 0
    sqnr_db: Mapping[str, float | None] = field(default_factory=dict)
    remarks: tuple[Remark, ...] = ()
    extremes: Mapping[str, QuantParams] = field(default_factory=dict)

    def with_extremes(self) -> QuantizedNetwork:
        """The same integers with ranges from the smallest to the largest value seen."""
        layers = {
            name: replace(solution, input=self.extremes[name]) if solution.input is not None else solution
            for name, solution in self.layers.items()
        }
        return replace(self, layers=layers, outputs={t: self.extremes[t] for t in self.outputs})

    def grids(self, stage: Stage) -> dict[str, QuantParams | None]:
        """Grids of the inputs of a stage's layers, by layer name."""
        return {la.name: self.layers[la.name].input for la in stage.layers if la.name in self.layers}

    def constants(self, stage: Stage) -> dict[tuple[str, str], NDArray[np.float32]]:
        """Weights, biases and tables to put in place of a stage's own, by the constant's and the node's name."""
        tables = {node: solution for node, solution in self.tables.items() if node in stage.nodes}
        found = {(solution.constant, node): solution.dequantized() for node, solution in tables.items()}
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
