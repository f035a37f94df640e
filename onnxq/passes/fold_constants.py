"""Weights that a graph works out from constants, worked out once: weight normalization, parts of a joint matrix, masks.

Whatever has no input of the network before it is a constant, in whatever form the exporter wrote it down. onnxruntime
works it out here as it would when it loads the model, so that the layers behind see the same numbers. Folded is what a
layer reads, or what takes no more room folded than the constants it is made of.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from onnxq.errors import UnsupportedError
from onnxq.ir.constant import is_plain
from onnxq.ir.layer import LAYER_OPS
from onnxq.ir.model import Model
from onnxq.ir.operators import Trait, operators_with
from onnxq.ir.subgraph import part_model, set_ends
from onnxq.passes.graph_editor import Draft, op_of
from onnxq.passes.lift_constants import MOVING, WORTH_LIFTING
from onnxq.runtime.session import Session

LARGEST = 2**30
"""Bytes of a constant that is not worked out, nor any on the way to it."""

GROWTH = {True: 4, False: 1}
"""Times that the constants it is made of may fit into a folded one: where a layer reads it, which stores it in fewer
bits then, and elsewhere."""

LITTLE = 2**12
"""Bytes of a constant that may grow all the same."""

READERS = operators_with(Trait.HOLDS_PARAMETERS)
"""Operators besides the layers whose constants are of interest."""

LEFT = operators_with(Trait.QUANTIZED, Trait.GRID, Trait.DRAWS)
"""What is not worked out: numbers that are quantized already, and those that are drawn."""


def fold_constants(model: Model) -> Model:
    """The model with its computed weights as constants.

    Args:
        model: as loaded; it is not changed.
    """
    if not any(_is_fixed(node) for node in model.graph.nodes):
        return model
    draft = Draft(model)
    fixed = _fixed(draft)
    made = {id(t): node for node in fixed.values() for t in node.outputs}
    for node in list(fixed.values()):
        readers = [r for t in node.outputs for r in t.outputs if id(r) not in fixed]
        layer = any(op_of(r) in LAYER_OPS for r in readers)
        if not (layer or any(op_of(r) in READERS for r in readers)):
            continue
        if not all(draft.sees_only_nodes(t) for t in node.outputs):
            continue
        before = _before(node, made)
        lifted = all(op_of(n) in MOVING or op_of(n) == "Constant" for n in before)
        if lifted and any(op_of(r) in WORTH_LIFTING for r in readers):
            continue  # these are lifted without a run
        values = _worked_out(draft, model, before, node, GROWTH[layer])
        if values is not None:
            outputs = [t for t in node.outputs if not t.is_empty()]
            draft.drop(node)
            for tensor in outputs:
                tensor.to_constant(values[tensor.name])
    return draft.finish()


def _is_fixed(node: Any) -> bool:
    """Whether a node reads stored constants alone, at least one."""
    read = [t for t in node.inputs if not t.is_empty()]
    return bool(read or op_of(node) == "Constant") and all(is_plain(t) for t in read)


def _fixed(draft: Draft) -> dict[int, Any]:
    """The nodes that no input of the network stands before, by identity, in their order."""
    fixed: dict[int, Any] = {}
    known: set[int] = set()
    for node in draft.nodes:
        op = op_of(node)
        if not op or op in LEFT or list(node.subgraphs()):
            continue
        if all(t.is_empty() or id(t) in known or draft.is_known(t) for t in node.inputs):
            fixed[id(node)] = node
            known.update(id(t) for t in node.outputs)
    return fixed


def _before(node: Any, made: dict[int, Any]) -> list[Any]:
    """A node and all that it is made of."""
    found, waiting = {id(node): node}, [node]
    while waiting:
        for tensor in waiting.pop().inputs:
            maker = made.get(id(tensor))
            if maker is not None and id(maker) not in found:
                found[id(maker)] = maker
                waiting.append(maker)
    return list(found.values())


def _worked_out(draft: Draft, model: Model, before: list[Any], node: Any, growth: int) -> dict[str, Any] | None:
    """What a node makes of constants, by name; None where that would take too much room or cannot be run."""
    sources = {id(t): t for n in before for t in n.inputs if draft.is_known(t)}
    room = growth * (sum(_bytes(t) or 0 for t in sources.values()) + sum(_of_constants(before))) + LITTLE
    expected = [_bytes(t) or 0 for n in before for t in n.outputs]
    if max(expected) > LARGEST or sum(_bytes(t) or 0 for t in node.outputs) > room:
        return None
    names = [t.name for t in node.outputs if not t.is_empty()]
    part = part_model(model.with_graph(draft.graph), {n.name for n in before}, "constants")
    set_ends(part.proto, {}, names)
    part.drop_unread()
    try:
        values: dict[str, Any] = Session(part, f"what {node.name} is made of").run({}, names)
    except UnsupportedError:  # the graph is left as it is, and whatever is wrong with it is said where it is run
        return None
    plain = all(isinstance(v, np.ndarray) and v.dtype.kind in "fiub" for v in values.values())
    return values if plain and sum(v.nbytes for v in values.values()) <= room else None


def _of_constants(nodes: list[Any]) -> Iterator[int]:
    """Bytes in nodes that hold a constant."""
    for node in nodes:
        if op_of(node) == "Constant" and "value" in node.attrs:
            yield _bytes(node.attrs["value"]) or 0


def _bytes(tensor: Any) -> int | None:
    """Bytes of a tensor; None where its shape is not known."""
    shape = tensor.shape
    if shape is None or not all(isinstance(d, int) for d in shape):
        return None
    dtype = tensor.dtype
    size = np.dtype(dtype).itemsize if dtype is not None and not isinstance(dtype, int) else 4
    return size * math.prod(int(d) for d in shape)
