"""The layers of a block refined together, for what leaves the block.

Each has been solved on its own before. Here the block is run as a whole, on what the quantized network brings to
it, and is held to what leaves it in the float network (Li et al., "BRECQ", ICLR 2021; the random mixing of rounded
and unrounded inputs is Wei et al., "QDrop", ICLR 2022).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
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
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.runtime.spool import Arrays, Spool
from onnxq.solve.gradient.circumstances import Circumstances

RECONSTRUCTED = "refined in its block"
"""Status of a layer whose block gained."""


def reconstruct_blocks(
    model: Model,
    block: Block,
    network: QuantizedNetwork,
    calibration: Calibration,
    options: Tuning,
    circumstances: Circumstances,
) -> dict[str, LayerSolution]:
    """The solutions of a block's layers, refined together where the hold-out gains.

    Args:
        model: prepared.
        block: which part of it; the calibration stands behind it and was marked before it.
        network: solutions of its layers so far, and grids of the tensors quantized where it makes them.
        calibration: what enters and leaves the block.
        options: how long and how fast.
        circumstances: sizes and seed.
    """
    from onnxq.solve.gradient.objective import Objective, make_target
    from onnxq.solve.gradient.tuning import Outcome, tune_region  # they load JAX

    types = {name: kind_of(value) for name, value in calibration.marked(0).items()}
    proto = block_model(model, block, types)
    read = [i.name for i in proto.graph.input]
    with Spool(circumstances.memory_limit) as wanted:
        leaves = _keep(calibration, block.leaves, wanted)
        targets = [
            make_target(name, Objective.MSE, _Batches(partial(_one, wanted, name), calibration.batches))
            for name in leaves
        ]
        found = tune_region(
            proto,
            block.layers,
            network,
            _Batches(partial(_some, calibration, read), calibration.batches),
            lambda: targets,
            options,
            circumstances,
        )
    if found.outcome is not Outcome.TUNED:
        return dict(network.layers)
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
