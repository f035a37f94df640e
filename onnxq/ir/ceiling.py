"""Tensors whose grid ends at a number whatever comes in: what a Clip makes, raised or not, and copies of it."""

from __future__ import annotations

import math

import numpy as np

from onnxq.ir.model import Model
from onnxq.ir.operators import STANDARD, Trait, operators_with

COPYING = operators_with(Trait.MOVES, Trait.PICKS)
"""Operators whose first output holds values of their first input and no others."""


def find_ceilings(model: Model) -> dict[str, float]:
    """Where the grid of a tensor ends at most, by tensor name.

    For a Clip that is its upper end. Where every channel was raised together with its upper end, it is the one that
    they had in common before: none was lowered, so a grid that ends there ends below all of them.

    Args:
        model: its nodes in topological order.
    """
    found = dict(model.raised)
    fed = {t.name for t in model.graph.inputs}
    for node in model.graph.nodes:
        if node.domain not in STANDARD or not node.outputs:
            continue
        ceiling = math.inf
        if node.op == "Clip" and len(node.inputs) > 2 and node.inputs[2].name not in fed:
            end = model.value(node.inputs[2].name)
            ceiling = math.inf if end is None else float(np.max(end, initial=-math.inf))
        elif node.op in COPYING:
            ceiling = found.get(node.inputs[0].name, math.inf)
        if 0 < ceiling < math.inf:
            found[node.outputs[0].name] = ceiling
    return found
