"""Layers that calibration samples never reach: what reads them is empty.

A relative-position slice of no length, the past of a decoder's first step, the head of a detector that finds nothing:
there are no values to find a range for. Such layers, tables excepted, stay in float.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper

from onnxq.data import Feed
from onnxq.ir.activation_matmul import find_products
from onnxq.ir.layer import find_layers
from onnxq.ir.model import Model
from onnxq.ir.operators import STANDARD, Trait, operators_with
from onnxq.ir.save import to_outline
from onnxq.runtime.session import Session

CUTTING = operators_with(Trait.EMPTIES)
"""Operators that can make a tensor without elements of one that has some."""


def without_empty(model: Model, feeds: Sequence[Feed]) -> Model:
    """The model with the layers and products left in float whose operands are empty in all of some samples.

    Args:
        model: prepared.
        feeds: a few samples.
    """
    cuts = any(node.op in CUTTING or node.domain not in STANDARD for node in model.graph.nodes)
    if not cuts and all(np.size(a) for feed in feeds for a in feed.values()):
        return model
    operands: dict[str, tuple[str, ...]] = {layer.name: (layer.input,) for layer in find_layers(model)[0]}
    operands |= {p.name: (p.left, p.right) for p in find_products(model)}
    empty = _empty(model, {t for read in operands.values() for t in read}, feeds)
    count = sum(max((len(a) for a in feed.values() if np.ndim(a)), default=1) for feed in feeds)
    why = f"what it reads is empty in each of {count} calibration samples, so no range can be found: left in float"
    found = [name for name, read in operands.items() if empty & set(read)]
    return model.leaving_in_float(dict.fromkeys(found, why)) if found else model


def _empty(model: Model, tensors: set[str], feeds: Sequence[Feed]) -> set[str]:
    """Those of some tensors that have no element in any feed."""
    given = {i.name for i in model.inputs}
    open_ones = {t for t in tensors if t not in given or all(np.size(feed[t]) == 0 for feed in feeds)}
    empty = open_ones & given
    inner = sorted(open_ones - given)
    outline = to_outline(model)
    graph = outline.proto.graph
    del graph.output[:]
    sizes = {tensor: f"onnxq/size/{index}" for index, tensor in enumerate(inner)}
    graph.node.extend(helper.make_node("Size", [tensor], [size], size) for tensor, size in sizes.items())
    graph.output.extend(onnx.ValueInfoProto(name=size) for size in sizes.values())
    session = Session(outline, "the model up to its layers' inputs") if inner else None
    for feed in feeds:
        if session is None or not inner:
            break
        made = session.run(feed, [sizes[tensor] for tensor in inner])
        inner = [tensor for tensor in inner if int(made[sizes[tensor]]) == 0]
    return empty | set(inner)
