"""Every layer of a network solved, one stage after another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.calibrate import Calibration
from onnxq.calibration.wanted import Wanted
from onnxq.config import Config
from onnxq.data import Feed
from onnxq.ir.block import find_blocks
from onnxq.ir.model import Model
from onnxq.ir.stage import split_stages
from onnxq.plan.values import Plan
from onnxq.progress import Listener, Progress
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.solve.checkpoint import Checkpoint
from onnxq.solve.closeness import closeness
from onnxq.solve.making import USUAL, Making
from onnxq.solve.walk import Walk

Array = NDArray[np.float32]


def solve_network(
    model: Model,
    plan: Plan,
    config: Config,
    feeds: Iterable[Feed],
    checkpoint: Checkpoint,
    progress: Listener,
    making: Making = USUAL,
) -> QuantizedNetwork:
    """Solve the layers of a prepared model in order.

    In sequential mode each stage's layers see what the solved ones before them produce; in parallel
    mode every layer sees the float network. Finished layers are taken from the checkpoint and kept in it.

    Args:
        model: prepared.
        plan: of its layers.
        config: how.
        feeds: batches of samples.
        checkpoint: of this model, configuration and samples.
        progress: told after each batch and layer.
        making: how besides.
    """
    sequential = config.mode == "sequential"
    wanted = Wanted(
        sequential=sequential,
        rows=not making.plain,
        float_rows=config.refines and config.refinement.mixing > 0,
        moments=config.para_normalise and sequential,
        mask=plan.mask,
        keep_back=making.keep_back,
    )
    with Calibration(model, feeds, wanted, memory_limit=config.memory_limit, seed=config.seed) as calibration:
        walk = Walk(model, plan, config, checkpoint, making)
        stages = split_stages(model, [p.layer for p in plan.layers])
        apart = model.not_comparable
        blocks = find_blocks(model, stages) if config.reconstructs else ()
        blocks = tuple(b for b in blocks if not apart.keys() & {layer.input for layer in b.layers})
        first, last = ({b.stages[at]: b for b in blocks} for at in (0, -1))
        runs = sum(bool(stage.nodes) for stage in stages) * (1 + sequential * (1 + config.para_normalise))
        total = runs * calibration.batches + len(plan.layers)
        done = 0

        def tick(detail: str, units: int) -> None:
            nonlocal done
            done += units
            progress(Progress("solve", done, total, detail))

        for stage in stages:
            tell = partial(tick, stage.layers[0].name if stage.layers else "")
            if stage in first:
                calibration.mark()
            walk.solve(stage, calibration, tell)
            if stage in last:
                walk.reconstruct(last[stage], calibration)
        judged = sequential and not making.plain
        ends = (calibration.outputs(batch) for batch in range(calibration.batches if judged else 0))
        sqnr_db, remarks = closeness(ends, apart)
        return replace(walk.network, samples=calibration.samples, sqnr_db=sqnr_db, remarks=remarks)
