"""Weights stored in their bits, written into the graph before a DequantizeLinear; see :mod:`onnxq.quant.packing`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeAlias

from numpy.typing import NDArray
from onnx import TensorProto

from onnxq.quant.packing import Packing

WIDTH = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "int8": 8}
"""Bits of an element."""

NODE = 24
"""Bytes of a node in the file beside its names, roughly."""

SHARED = "unpack"
"""What the names of constants that weights share start with, and of what is made on the way: they are many."""

COUNT = 3
"""Characters that make such a name one of its own."""

PART = 24
"""Bytes of a further stored tensor beside its values and the start of its name, roughly."""


class NodeMaker(Protocol):
    """Adds a node and gives the name of its output, which is like the one asked for."""

    def __call__(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Add a node."""


ConstantMaker: TypeAlias = Callable[[str, NDArray[Any]], str]
"""Adds a constant and gives its name, which is like the one asked for."""


def emit_packed(packing: Packing, base: str, node: NodeMaker, constant: ConstantMaker, helper: ConstantMaker) -> str:
    """Write a weight's parts and the nodes that unpack it; the name of the int8 tensor.

    Args:
        packing: of the weight.
        base: what names start with.
        node: adds a node.
        constant: adds a constant of this weight alone.
        helper: adds one that other weights may share.
    """
    names = {part: constant(f"{base}/{part}", values) for part, values in packing.parts.items()}
    names |= {name: helper(f"{SHARED}/{name}", values) for name, values in packing.helpers.items()}
    for step in packing.steps:
        typed = {"to": TensorProto.INT8} if step.op == "Cast" else {}
        inputs = [names[name] for name in step.inputs]
        start = base if step is packing.steps[-1] else SHARED
        names[step.output] = node(step.op, inputs, f"{start}/{step.output}", **step.attributes, **typed)
    return names[packing.steps[-1].output]


def pays(packing: Packing, base: str) -> bool:
    """Whether a weight is smaller packed than in a byte each, its nodes counted with the names that they bring."""
    own = {*packing.parts, packing.steps[-1].output}
    named = [[*step.inputs, step.output, step.output] for step in packing.steps]
    starts = [[len(base) if name in own else len(SHARED) + COUNT for name in names] for names in named]
    nodes = sum(NODE + sum(len(name) + 1 for name in names) + sum(s) for names, s in zip(named, starts, strict=True))
    first, *others = packing.parts.items()
    parts = sum(len(base) + PART + _bytes(values) for _, values in others)
    return nodes + parts + _bytes(first[1]) < packing.size


def _bytes(values: NDArray[Any]) -> int:
    """Bytes of a stored tensor, whose elements may take fewer than 8 bits."""
    return -(-values.size * WIDTH[values.dtype.name] // 8)
