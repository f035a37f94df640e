"""Constants that stay in float: which they are, who reads them, and why they are not quantized."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from onnx import TensorProto

from onnxq.ir.layer import LAYER_OPS
from onnxq.ir.model import Model, Remark

WORTH_SAYING = 1024
"""Bytes above which a constant that stays in float is told of."""

SMALL_TYPES = {TensorProto.BFLOAT16: 2, TensorProto.FLOAT8E4M3FN: 1, TensorProto.FLOAT8E5M2: 1}
"""Bytes of an element of the floating types that numpy lacks."""

REASONS: Mapping[str, str] = {
    "Gather": "a table is quantised where rows of 16 columns and more are looked up along the first of its two axes",
    "LSTM": "the weights of recurrent operators are not quantised",
    "GRU": "the weights of recurrent operators are not quantised",
    "RNN": "the weights of recurrent operators are not quantised",
}


@dataclass(frozen=True)
class FloatConstant:
    """A constant of a floating type that a node reads as it is.

    Attributes:
        node, op: the first node that reads it.
        name: its name.
        shape: its shape.
        bytes: that it takes in the model.
    """

    node: str
    op: str
    name: str
    shape: tuple[int, ...]
    bytes: int

    @property
    def elements(self) -> int:
        """Numbers it holds."""
        return math.prod(self.shape)

    @property
    def is_vector(self) -> bool:
        """Whether it extends along one axis at most, as biases do."""
        return sum(size > 1 for size in self.shape) < 2

    def reason(self) -> str:
        """Why it is not quantized, as the first half of a sentence."""
        if self.is_vector:
            return "biases, norms and other vectors are not quantised"
        if self.op in LAYER_OPS:
            return "it is not the weight of a layer here"
        return REASONS.get(self.op, f"the constants of {self.op} are not quantised")


def float_constants(model: Model, quantized: Collection[tuple[str, str]]) -> tuple[FloatConstant, ...]:
    """The constants that at least one node reads in float, the largest first.

    Args:
        model: prepared.
        quantized: names of a node and of a constant that it reads as integers.
    """
    found: dict[str, FloatConstant] = {}
    _gather(model.graph, quantized, found)
    return tuple(sorted(found.values(), key=lambda c: -c.bytes))


def told(
    remarks: Sequence[Remark], floats: Iterable[FloatConstant], whole: int, stored: Mapping[str, int] | None = None
) -> tuple[Remark, ...]:
    """Remarks on nodes, with what their constants take, and remarks on the nodes that had none.

    Args:
        remarks: known ones.
        floats: constants in float.
        whole: bytes of the file that shares are of.
        stored: bytes of the constants in that file, by name; as in the model where it says nothing.
    """
    held: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    for constant in floats:
        size = (stored or {}).get(constant.name, constant.bytes)
        if size > WORTH_SAYING:
            share = f"{size / 1024:.1f} KiB, {100 * size / max(whole, 1):.1f}% of the file"
            held.setdefault(constant.node, []).append(f"{constant.name} {list(constant.shape)}: {share}")
            reasons.setdefault(constant.node, f"{constant.reason()}: left in float")
    known = [Remark(r.node, r.reason + _listed(held.pop(r.node, []))) for r in remarks]
    return (*known, *(Remark(node, reasons[node] + _listed(parts)) for node, parts in held.items()))


def _listed(parts: Sequence[str]) -> str:
    return f" ({'; '.join(parts)})" if parts else ""


def _gather(graph: gs.Graph, quantized: Collection[tuple[str, str]], found: dict[str, FloatConstant]) -> None:
    for node in graph.nodes:
        own = [value for value in node.attrs.values() if isinstance(value, gs.Constant)]
        for constant in (*(t for t in node.inputs if isinstance(t, gs.Constant)), *own):
            size = _float_bytes(constant)
            name = constant.name or (node.outputs[0].name if node.outputs else node.name)
            if size and name not in found and (node.name, constant.name) not in quantized:
                shape = tuple(int(d) for d in constant.shape)
                found[name] = FloatConstant(node.name or node.op, node.op, name, shape, size)
        for subgraph in node.subgraphs():
            _gather(subgraph, quantized, found)


def _float_bytes(constant: Any) -> int:
    """Bytes of a constant of a floating type; 0 of any other."""
    elements, dtype = math.prod(int(d) for d in constant.shape), constant.dtype
    if isinstance(dtype, int):
        return elements * next((size for kind, size in SMALL_TYPES.items() if kind == dtype), 0)
    known = np.dtype(dtype)
    return elements * known.itemsize if known.kind == "f" or known.name == "bfloat16" else 0
