"""Blocks: regions of several layers that one tensor enters and one tensor leaves.

A residual block or a transformer's sub-layer is such a region. What leaves it is what the rest of the network
sees of it, so its layers are best judged together, there (Li et al., "BRECQ: Pushing the Limit of Post-Training
Quantization by Block Reconstruction", ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs

from onnxq.ir.layer import Layer
from onnxq.ir.model import Model
from onnxq.ir.stage import Stage, reads
from onnxq.ir.subgraph import Kind, part_model, set_ends

MOST_LAYERS = 16
"""A region of more layers is no block but a network that is nowhere cut."""


@dataclass(frozen=True)
class Block:
    """Consecutive stages between two places where one tensor carries everything.

    Attributes:
        stages: in order.
        leaves: the floating-point tensors that later stages read: one, and what follows from it alone.
    """

    stages: tuple[Stage, ...]
    leaves: tuple[str, ...]

    @property
    def layers(self) -> tuple[Layer, ...]:
        """The layers of all its stages."""
        return tuple(layer for stage in self.stages for layer in stage.layers)


def find_blocks(model: Model, stages: Sequence[Stage]) -> tuple[Block, ...]:
    """The blocks of two layers and more in a network that has been cut into stages."""
    given = _given(model, stages)
    blocks, begin = [], 1
    for index, stage in enumerate(stages):
        if not _narrow(model, stage, given):
            continue
        block = Block(tuple(stages[begin : index + 1]), tuple(t for t in stage.frontier if t not in given))
        if 2 <= len(block.layers) <= MOST_LAYERS and block.leaves:
            blocks.append(block)
        begin = index + 1
    return tuple(blocks)


def block_model(model: Model, block: Block, types: Mapping[str, Kind]) -> onnx.ModelProto:
    """A block in float as a model of its own.

    Args:
        model: the whole model.
        block: which part of it.
        types: element types of the tensors at the cut before it.
    """
    wanted = {name for stage in block.stages for name in stage.nodes}
    nodes = [node for node in model.graph.nodes if node.name in wanted]
    made = {t.name for node in nodes for t in node.outputs}
    read = dict.fromkeys(t.name for node in nodes for t in reads(node) if t.name in types and t.name not in made)
    proto = part_model(model, wanted, block.layers[0].name).filled()
    set_ends(proto, {name: types[name] for name in read}, block.leaves)
    return proto


def _given(model: Model, stages: Sequence[Stage]) -> set[str]:
    """Tensors that stand before every layer and lead to none's input: masks and the like, read all along."""
    leading = {layer.input for stage in stages for layer in stage.layers}
    for node in reversed(model.graph.nodes):
        if node.name in stages[0].nodes and any(t.name in leading for t in node.outputs):
            leading.update(t.name for t in reads(node))
    return ({t.name for t in model.graph.inputs} | set(stages[0].makes)) - leading


def _narrow(model: Model, stage: Stage, given: set[str]) -> bool:
    """Whether all that crosses the cut behind a stage follows from one tensor made there, what was given apart."""
    crossing = {name for name in stage.frontier if name not in given}
    return any(crossing <= _following(model, stage, name, given) for name in stage.makes if name not in given)


def _following(model: Model, stage: Stage, tensor: str, given: set[str]) -> set[str]:
    """Tensors that nodes of a stage make from one tensor, from constants and from what was given."""
    inside, known = set(stage.nodes), {tensor} | given
    for node in model.graph.nodes:
        if node.name in inside and all(isinstance(t, gs.Constant) or t.name in known for t in reads(node)):
            known.update(t.name for t in node.outputs)
    return known
