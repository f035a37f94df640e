"""A calibration set part-way through the network: tensors kept at a cut, and stages to run again from there.

Writing down every tensor between every two layers can cost more than computing it again: an expanded
feature map holds many times the numbers of the bottleneck before it. So a cut is kept only where it is no
larger than the one before, is small, or lies three stages on; from the kept cut the stages since are
run again, a batch at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxq.ir.stage import QUANTIZED_INPUT, Stage
from onnxq.quant.affine import fake_quantize
from onnxq.quant.spec import QuantParams
from onnxq.runtime.session import Session
from onnxq.runtime.spool import Arrays, Spool, bytes_of

ON_DISK = 4
"""A cut of so many times what is held in memory is kept all the same: to write it costs less than to make it again."""

MOST_REPLAYS = 3
"""Stages run again at most before a cut is kept whatever its size."""


@dataclass(frozen=True)
class Step:
    """A stage ready to run.

    Attributes:
        stage: which.
        session: of the stage's model.
        grids: of its layers' inputs, by layer name; None or absent where they stay in float.
    """

    stage: Stage
    session: Session
    grids: Mapping[str, QuantParams | None]

    def run(self, arrays: Arrays) -> Arrays:
        """What the stage makes for later ones, from the tensors before it."""
        return (
            self.session.run(stage_feed(self.stage, arrays, self.grids), self.stage.makes) if self.stage.makes else {}
        )


def stage_feed(stage: Stage, arrays: Arrays, grids: Mapping[str, QuantParams | None]) -> Arrays:
    """The inputs of a stage's model: tensors as they are, layer inputs on their grids."""
    feed = {name: arrays[name] for name in stage.reads}
    for layer in stage.layers:
        x, grid = arrays[layer.input].astype(np.float32, copy=False), grids.get(layer.name)
        feed[QUANTIZED_INPUT.format(layer.input, layer.name)] = x if grid is None else fake_quantize(x, grid)
    return feed


def passed(stage: Stage, arrays: Arrays, made: Arrays) -> Arrays:
    """The tensors at the cut behind a stage, from those before it and those it made."""
    return {name: made[name] if name in made else arrays[name] for name in stage.frontier}


class Frontier:
    """The tensors of every batch at the current cut.

    Args:
        limit: bytes to hold in memory; the rest goes to a temporary folder.
        folder: where to make that folder; the system's place when None.
    """

    def __init__(self, limit: int, folder: Path | None) -> None:
        self._spool, self._limit = Spool(limit, folder), limit
        self._kept: tuple[str, ...] = ()
        self._kept_bytes = 0
        self._steps: list[Step] = []

    def close(self) -> None:
        """Remove what was written to disk."""
        self._spool.close()

    def put(self, batch: int, arrays: Arrays) -> None:
        """Take in the network's inputs of one batch."""
        self._spool.put(batch, arrays)
        self._kept = tuple(arrays)
        self._kept_bytes += _size(arrays)

    def at(self, batch: int) -> Arrays:
        """The tensors of one batch at the current cut, run up to there from the kept one."""
        arrays = self._spool.get(batch, self._kept)
        for step in self._steps:
            arrays = passed(step.stage, arrays, step.run(arrays))
        return arrays

    def worth_keeping(self, arrays: Arrays, batches: int) -> bool:
        """Whether the cut behind the next stage should be kept, judged by one batch of it."""
        size = _size(arrays) * batches
        return size <= max(ON_DISK * self._limit, self._kept_bytes) or len(self._steps) >= MOST_REPLAYS

    def keep(self, batch: int, arrays: Arrays) -> None:
        """Keep one batch at the cut behind the next stage; :meth:`move` follows when all are kept."""
        self._spool.put(batch, {name: a for name, a in arrays.items() if self._steps or name not in self._kept})

    def move(self, stage: Stage, arrays: Arrays, batches: int) -> None:
        """Stand behind the next stage, every batch of which has been kept; ``arrays`` is one of them."""
        self._spool.keep_only(stage.frontier)
        self._kept, self._kept_bytes, self._steps = stage.frontier, _size(arrays) * batches, []

    def follow(self, step: Step) -> None:
        """Stand behind the next stage, which will be run again when its tensors are wanted."""
        self._steps.append(step)


def _size(arrays: Arrays) -> int:
    return sum(bytes_of(value) for value in arrays.values())
