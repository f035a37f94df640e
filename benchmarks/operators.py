"""Which operators' integer kernels make a model's answers differ between onnxruntime's levels.

A kernel on integers takes an operator only where nothing but quantisers touches it. So the outputs of all operators but
those of one kind are given out beside the model's own: those then run in float as in the unoptimised model, and what is
left of the difference comes from that kind. With all of them given out, what is left comes from float kernels that add
up in another order, on either side of a rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.data import Feed
from onnxq.verify import LEVELS, deviation
from onnxq.verify.session import start_session

FLOAT_KERNELS = "float kernels"

_QUANTISERS = {"QuantizeLinear", "DequantizeLinear"}
_NO_ARITHMETIC = {
    "Cast",
    "Constant",
    "Flatten",
    "Gather",
    "Identity",
    "Reshape",
    "Shape",
    "Slice",
    "Squeeze",
    "Transpose",
}


def by_operator(model: onnx.ModelProto, feeds: Sequence[Feed]) -> dict[str, float]:
    """What each kind of operator makes the default level's first output differ, alone, and the float kernels.

    Args:
        model: quantised.
        feeds: a few batches.

    Returns:
        Root mean square of the difference to the unoptimised model relative to its output, by kind of operator.
    """
    exact = _outputs(model, feeds, LEVELS[0])
    touched = _beside_quantisers(model)
    kinds = sorted({node.op_type for node in touched})
    shares = {FLOAT_KERNELS: deviation(exact, _outputs(_giving_out(model, touched), feeds, LEVELS[-1]))}
    for kind in kinds:
        others = [node for node in touched if node.op_type != kind]
        shares[kind] = deviation(exact, _outputs(_giving_out(model, others), feeds, LEVELS[-1]))
    return shares


def _beside_quantisers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes with arithmetic that read what was quantised or make what will be."""
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    quantised = {name for node in model.graph.node if node.op_type == "QuantizeLinear" for name in node.input[:1]}
    return [
        node
        for node in model.graph.node
        if node.op_type not in _QUANTISERS | _NO_ARITHMETIC
        and (quantised & set(node.output) or any(made_by.get(name) == "DequantizeLinear" for name in node.input))
    ]


def _giving_out(model: onnx.ModelProto, nodes: Sequence[onnx.NodeProto]) -> onnx.ModelProto:
    """The model with outputs of nodes among its own."""
    open_ = onnx.ModelProto()
    open_.CopyFrom(model)
    known = {output.name for output in model.graph.output}
    open_.graph.output.extend(onnx.ValueInfoProto(name=n.output[0]) for n in nodes if n.output[0] not in known)
    return open_


def _outputs(model: onnx.ModelProto, feeds: Sequence[Feed], level: str) -> list[NDArray[np.generic]]:
    """The first output of the model, batch by batch."""
    session = start_session(model.SerializeToString(), level)
    return [session.run([model.graph.output[0].name], dict(feed))[0] for feed in feeds]
