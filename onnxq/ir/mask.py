"""Which graph input says what is padding: the attention mask of a model over sequences.

An attention mask reaches the scores before a Softmax by addition or by a Where, and nothing else of the input
data gets there without passing a layer: token numbers do so through Shape alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.ir.activation_matmul import is_product
from onnxq.ir.model import Model
from onnxq.ir.operators import Trait, operators_with

USUAL_NAME = "attention_mask"
KINDS = "biuf"
"""Kinds of numpy element types that a mask may have: truth values, integers, floats."""
ELEMENTWISE = operators_with(Trait.ELEMENTWISE)
"""Nodes between a product and the Softmax of its scores."""
STOPS = operators_with(Trait.LAYER, Trait.SIZES, Trait.NORMALIZES)
"""Nodes past which a tensor's values are no mask any more."""


def find_mask(model: Model) -> str | None:
    """Name of the input with two axes (samples, tokens) that is 0 for padding; None where there is none.

    The input called ``attention_mask`` where there is one; otherwise the only such input that leads to the
    scores of a Softmax without passing a layer, a table or a Shape.
    """
    inputs = {t.name: t for t in model.graph.inputs if isinstance(t, gs.Variable) and _could_be_mask(t)}
    if USUAL_NAME in inputs:
        return USUAL_NAME
    found: set[str] = set()
    for node in model.graph.nodes:
        if node.op == "Softmax" and _behind_product(node.inputs[0]):
            found |= _sources(node.inputs[0]) & inputs.keys()
    return found.pop() if len(found) == 1 else None


def _could_be_mask(tensor: gs.Variable) -> bool:
    shape = tensor.shape
    return shape is not None and len(shape) == 2 and np.dtype(tensor.dtype).kind in KINDS


def _behind_product(tensor: gs.Tensor) -> bool:
    """Whether a product of two activations leads to a tensor through element-wise nodes."""
    return any(is_product(n) for t in _reached(tensor, lambda n: n.op in ELEMENTWISE) for n in t.inputs)


def _sources(tensor: gs.Tensor) -> set[str]:
    """Graph inputs that reach a tensor without passing a MatMul, a normalization or a Shape."""
    return {t.name for t in _reached(tensor, lambda n: n.op not in STOPS) if not t.inputs}


def _reached(tensor: gs.Tensor, passes: Callable[[gs.Node], bool]) -> list[gs.Tensor]:
    """A tensor and all that it is computed from by nodes that may be passed."""
    seen: dict[str, gs.Tensor] = {}
    waiting = [tensor]
    while waiting:
        at = waiting.pop()
        if at.name in seen or isinstance(at, gs.Constant):
            continue
        seen[at.name] = at
        waiting += [t for n in at.inputs if passes(n) for t in n.inputs]
    return list(seen.values())
