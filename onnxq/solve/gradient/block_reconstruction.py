"""The layers of a block refined together, for what leaves the block.

Each has been solved on its own before. Here the block is run as a whole, on what the quantized network brings to
it, and is held to what leaves it in the float network (Li et al., "BRECQ", ICLR 2021; the random mixing of rounded
and unrounded inputs is Wei et al., "QDrop", ICLR 2022).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.calibrate import Calibration
from onnxq.config.optimization import Tuning
from onnxq.ir.block import Block, block_model
from onnxq.ir.model import Model
from onnxq.ir.subgraph import kind_of
from onnxq.quant.solution import LayerSolution
from onnxq.quant.spec import QuantParams
from onnxq.runtime.spool import Arrays, Spool

RECONSTRUCTED = "refined in its block"
"""Status of a layer whose block gained."""


def reconstruct_blocks(
    model: Model,
    block: Block,
    solutions: Mapping[str, LayerSolution],
    outputs: Mapping[str, QuantParams],
    calibration: Calibration,
    options: Tuning,
    *,
    fixed: bool,
    memory_limit: int,
    seed: int,
) -> dict[str, LayerSolution]:
    """The solutions of a block's layers, refined together where the hold-out gains.

    Args:
        model: prepared.
        block: which part of it; the calibration stands behind it and was marked before it.
        solutions: of its layers so far.
        outputs: 8-bit grids of tensors quantized where the block makes them, by tensor name.
        calibration: what enters and leaves the block.
        options: how long and how fast.
        fixed: the network takes batches of one size only.
        memory_limit: bytes that a step may take, roughly.
        seed: of the samples drawn and of the mixing.
    """
    from onnxq.solve.gradient.objective import Objective, make_target
    from onnxq.solve.gradient.tuning import Outcome, tune_region  # they load JAX

    own = {layer.name: solutions[layer.name] for layer in block.layers}
    types = {name: kind_of(value) for name, value in calibration.marked(0).items()}
    proto = block_model(model, block, types)
    read = [i.name for i in proto.graph.input]
    with Spool(memory_limit) as wanted:
        leaves = _keep(calibration, block.leaves, wanted)
        targets = [
            make_target(name, Objective.MSE, _Batches(partial(_one, wanted, name), calibration.batches))
            for name in leaves
        ]
        found = tune_region(
            proto,
            block.layers,
            own,
            outputs,
            _Batches(partial(_some, calibration, read), calibration.batches),
            lambda: targets,
            options,
            fixed,
            memory_limit=memory_limit,
            seed=seed,
        )
    if found.outcome is not Outcome.TUNED:
        return own
    return {name: dataclasses.replace(solution, status=RECONSTRUCTED) for name, solution in found.layers.items()}


def _keep(calibration: Calibration, leaves: Sequence[str], wanted: Spool) -> list[str]:
    """Write down what leaves the block in the float network; the names of the tensors that can be compared."""
    made: dict[str, NDArray[np.generic]] = {}
    for batch in range(calibration.batches):
        arrays = calibration.exact(batch)
        made = {name: arrays[name] for name in leaves if _is_float(arrays[name])}
        wanted.put(batch, made)
    return list(made)


def _one(spool: Spool, name: str, batch: int) -> NDArray[np.generic]:
    return spool.get(batch, [name])[name]


def _some(calibration: Calibration, names: Sequence[str], batch: int) -> Arrays:
    arrays = calibration.marked(batch)
    return {name: arrays[name] for name in names}


class _Batches(Sequence[Any]):
    """Something of every batch, read when it is asked for."""

    def __init__(self, read: Callable[[int], Any], count: int) -> None:
        self._read, self._count = read, count

    def __len__(self) -> int:
        """Batches."""
        return self._count

    def __getitem__(self, index: Any) -> Any:
        """Of one batch."""
        if index >= self._count:
            raise IndexError(index)  # ends an iteration
        return self._read(index)


def _is_float(values: Any) -> bool:
    return isinstance(values, np.ndarray) and values.dtype.kind == "f"
