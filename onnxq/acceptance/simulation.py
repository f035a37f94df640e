"""A quantized network as the solver sees it, run on a few samples: what the emitted model is held against."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from onnxq.data import Feed
from onnxq.ir.model import Model
from onnxq.ir.stage import split_stages
from onnxq.plan.values import Plan
from onnxq.runtime.activation_cache import Step, passed
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.runtime.spool import Arrays
from onnxq.runtime.staged_network import make_step


def simulated(
    model: Model, plan: Plan, network: QuantizedNetwork, feeds: Sequence[Feed], *, within: bool = False
) -> list[Arrays]:
    """The outputs of the quantized network, by batch.

    Args:
        model: prepared.
        plan: of its layers.
        network: their solutions.
        feeds: batches.
        within: what its stages hand on, in their order, too.
    """
    ahead: list[Arrays] = [{name: np.asarray(value) for name, value in feed.items()} for feed in feeds]
    kept: list[Arrays] = [{} for _ in feeds]
    for stage in split_stages(model, [p.layer for p in plan.layers]):
        step: Step | None = None
        for batch, arrays in enumerate(ahead):
            if stage.makes:
                step = step or make_step(model, stage, arrays, network)
            made = step.run(arrays) if step else {}
            kept[batch] |= made if within else {}
            ahead[batch] = passed(stage, arrays, made)
    return [before | outputs for before, outputs in zip(kept, ahead, strict=True)]
