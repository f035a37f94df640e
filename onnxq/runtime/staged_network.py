"""A network as a chain of stages, to be run from any of them to the end."""

from __future__ import annotations

from collections.abc import Sequence

from onnxq.ir.model import Model
from onnxq.ir.stage import Stage
from onnxq.runtime.activation_cache import Step, passed, stage_feed
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.runtime.spool import Arrays
from onnxq.runtime.stage_session import stage_session


class Chain:
    """The stages of a network, made ready to run when they are first reached.

    Args:
        model: prepared.
        stages: all of them.
        quantized: what is quantized in them.
    """

    def __init__(self, model: Model, stages: Sequence[Stage], quantized: QuantizedNetwork) -> None:
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


def make_step(model: Model, stage: Stage, arrays: Arrays, quantized: QuantizedNetwork) -> Step:
    """A stage ready to run on tensors of the types of ``arrays``."""
    feed = stage_feed(stage, arrays, {})
    session = stage_session(model, stage, stage.makes, feed, quantized.constants(stage), quantized.quantizers(stage))
    return Step(stage, session, quantized.grids(stage))
