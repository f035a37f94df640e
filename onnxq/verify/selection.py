"""Tensors whose length, or whose choice of rows, depends on values that quantization changes.

How many boxes a NonMaxSuppression lets pass, which rows a Compress keeps, how long the speech of predicted durations
becomes: rounding may change all this. What follows cannot be compared with the float network value by value, nor can a
layer behind it be shown the same rows of both networks.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import onnx
from onnx import TensorProto, numpy_helper

STANDARD = ("", "ai.onnx")

CHOSEN = "its length or choice of rows depends on values"
DRAWN = "it depends on numbers that the network draws at random"

ROUNDED = ("Conv", "ConvTranspose", "Gemm", "MatMul", "DequantizeLinear")
"""Operators of the standard whose results quantization changes; all of other domains count too."""

SELECTING = ("NonMaxSuppression", "NonZero", "Unique")
"""Operators that make as many rows as values ask for."""

# fmt: off
DRAWING = (
    "Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike",
)
"""Operators that draw numbers at random; a Dropout in training mode does too."""

STRUCTURAL: Mapping[str, Collection[int]] = {
    "Compress": (1,), "ConstantOfShape": (0,), "CenterCropPad": (1,), "Expand": (1,), "Gather": (1,),
    "GatherElements": (1,), "GatherND": (1,), "If": (0,), "Loop": (0, 1), "Pad": (1,), "Range": (0, 1, 2),
    "Reshape": (1,), "Resize": (1, 2, 3), "ReverseSequence": (1,), "ScatterElements": (1,), "ScatterND": (1,),
    "SequenceAt": (1,), "Slice": (1, 2, 3, 4), "Split": (1,), "SplitToSequence": (1,), "Squeeze": (1,), "Tile": (1,),
    "TopK": (1,), "Unsqueeze": (1,), "Upsample": (1,),
}
"""Inputs that say which rows there are, or how many."""

WHOLE = frozenset((
    "And", "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN", "Less", "LessOrEqual",
    "NonMaxSuppression", "NonZero", "Not", "Or", "Shape", "Size", "Xor",
))
"""Operators whose results are integers or truth values whatever they read."""
# fmt: on

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16)


def chosen_tensors(graph: onnx.GraphProto) -> set[str]:
    """Names of the tensors of a main graph whose length or choice of rows quantization may change.

    Args:
        graph: its nodes in order.
    """
    whole = {t.name for t in graph.initializer if t.data_type not in FLOATS}
    whole |= {v.name for v in graph.input if v.type.tensor_type.elem_type not in FLOATS}
    live: set[str] = set()
    chosen: set[str] = set()
    for node in graph.node:
        read = set(reads(node))
        made = [name for name in node.output if name]
        standard = node.domain in STANDARD
        whole.update(name for at, name in enumerate(made) if _is_whole(node, at, whole))
        rounded = node.op_type in ROUNDED if standard else bool(node.input)
        if (rounded or live & read) and not (standard and node.op_type in ("Shape", "Size")):
            live.update(made)
        deciding = [node.input[i] for i in STRUCTURAL.get(node.op_type, ()) if standard and i < len(node.input)]
        selects = standard and node.op_type in SELECTING and bool(live & read)
        if selects or chosen & read or any(name in live and name in whole for name in deciding):
            chosen.update(made)
    return chosen


def drawn_tensors(graph: onnx.GraphProto) -> set[str]:
    """Names of the tensors of a main graph that depend on numbers drawn at random in it, other ones at every run."""
    stored = {t.name: t for t in graph.initializer}
    drawn: set[str] = set()
    for node in graph.node:
        if drawn & set(reads(node)) or _draws(node, stored):
            drawn.update(name for name in node.output if name)
    return drawn


def not_comparable(graph: onnx.GraphProto) -> dict[str, str]:
    """Tensors of a main graph that two networks, or two runs, may make otherwise without a fault, and why, by name."""
    return dict.fromkeys(chosen_tensors(graph), CHOSEN) | dict.fromkeys(drawn_tensors(graph), DRAWN)


def _draws(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> bool:
    """Whether a node draws numbers, in a subgraph perhaps."""
    if node.domain in STANDARD and node.op_type in DRAWING:
        return True
    if node.op_type == "Dropout" and len(node.input) > 2 and node.input[2]:
        training = stored.get(node.input[2])
        return training is None or bool(numpy_helper.to_array(training).any())
    graphs = [g for a in node.attribute for g in (*a.graphs, *([a.g] if a.HasField("g") else []))]
    return any(_draws(inner, stored) for graph in graphs for inner in graph.node)


def reads(node: onnx.NodeProto) -> Iterator[str]:
    """Names that a node reads, its subgraphs included."""
    yield from (name for name in node.input if name)
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            for inner in graph.node:
                yield from reads(inner)
            yield from (output.name for output in graph.output)


def _is_whole(node: onnx.NodeProto, at: int, whole: Collection[str]) -> bool:
    """Whether a node's output of that place holds integers or truth values."""
    if node.op_type in WHOLE or (node.op_type in ("TopK", "MaxPool", "Dropout", "Unique") and at > 0):
        return True
    if node.op_type == "Cast":
        return not any(a.name == "to" and a.i in FLOATS for a in node.attribute)
    if node.op_type in ("Constant", "ConstantOfShape"):
        return _holds_whole(node.attribute)
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return False
    values = node.input[1] if node.op_type == "Where" and len(node.input) > 1 else next(iter(node.input), "")
    return values in whole


def _holds_whole(attributes: Iterable[onnx.AttributeProto]) -> bool:
    for attribute in attributes:
        if attribute.name == "value":
            return attribute.t.data_type not in FLOATS
        if attribute.name in ("value_int", "value_ints"):
            return True
    return False
