"""A quantised network as the solver sees it, run on a few samples: what the emitted model is held against."""

from __future__ import annotations

import numpy as np

from onnxq.data import Feed
from onnxq.execute.chain import Quantised
from onnxq.execute.frontier import Step, passed, stage_feed
from onnxq.execute.ort import Session
from onnxq.execute.spool import Arrays
from onnxq.ir.model import Model
from onnxq.ir.stage import split_stages, stage_model
from onnxq.network import NetworkSolution
from onnxq.plan import Plan


def simulated(model: Model, plan: Plan, network: NetworkSolution, feed: Feed) -> Arrays:
    """What the stages of the quantised network hand on, in their order, the network's outputs among it.

    Args:
        model: prepared.
        plan: of its layers.
        network: their solutions.
        feed: one batch.
    """
    quantised, names = Quantised(network.layers), {t.name: n.name for n in model.graph.nodes for t in n.outputs}
    tables = {(p.table.weight, p.table.name): network.tables[p.table.name].dequantized() for p in plan.tables}
    arrays: Arrays = {name: np.asarray(value) for name, value in feed.items()}
    kept: Arrays = {}
    for stage in split_stages(model, [p.layer for p in plan.layers]):
        made: Arrays = {}
        if stage.makes:
            here = set(stage.nodes)
            constants = quantised.constants(stage) | {key: v for key, v in tables.items() if key[1] in here}
            grids = {tensor: grid for tensor, grid in network.outputs.items() if names[tensor] in here}
            types = {name: array.dtype for name, array in stage_feed(stage, arrays, {}).items()}
            session = Session(stage_model(model, stage, stage.makes, types, constants, grids), "the simulated model")
            made = Step(stage, session, quantised.grids(stage)).run(arrays)
        kept |= made
        arrays = passed(stage, arrays, made)
    return kept | arrays
