"""Which operators' integer kernels make a model's answers differ between onnxruntime's levels.

A kernel on integers takes an operator only where nothing but quantizers touches it. So the outputs of all operators but
those of one kind are given out beside the model's own: those then run in float as in the unoptimized model, and what is
left of the difference comes from that kind. With all of them given out, what is left comes from float kernels that add
up in another order, on either side of a rounding.

Roundings make large differences of small ones: a step in one value of a hundred thousand is carried on, and rounded up
or down again at every layer. How far the unoptimized model gets from itself when one input value of each sample moves
by one step of its grid says how far apart two exact computations of it may be.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxq.data import Feed
from onnxq.verify import LEVELS, deviation
from onnxq.verify.session import start_session

FLOAT_KERNELS = "float kernels"

_QUANTISERS = {"QuantizeLinear", "DequantizeLinear"}
_NO_ARITHMETIC = {
    *("Cast", "Constant", "Flatten", "Gather", "Identity", "Reshape", "Shape", "Slice", "Squeeze", "Transpose"),
    *("Clip", "Relu"),  # kernels of layers take them in: given out, they would keep the layers in float
}


def by_operator(model: onnx.ModelProto, feeds: Sequence[Feed]) -> dict[str, float]:
    """What each kind of operator makes the default level's first output differ, alone, and the float kernels.

    Args:
        model: quantized.
        feeds: a few batches.

    Returns:
        Root mean square of the difference to the unoptimized model relative to its output, by kind of operator.
    """
    exact = _outputs(model, feeds, LEVELS[0])
    touched = _beside_quantisers(model)
    kinds = sorted({node.op_type for node in touched})
    shares = {FLOAT_KERNELS: deviation(exact, _outputs(_giving_out(model, touched), feeds, LEVELS[-1]))}
    for kind in kinds:
        others = [node for node in touched if node.op_type != kind]
        shares[kind] = deviation(exact, _outputs(_giving_out(model, others), feeds, LEVELS[-1]))
    return shares


def one_step(model: onnx.ModelProto, feeds: Sequence[Feed]) -> float | None:
    """What one value of each sample, moved by a step of the input's grid, changes in the unoptimized model.

    Args:
        model: quantized.
        feeds: a few batches.

    Returns:
        Root mean square of the change relative to the first output; None where no input is quantized where it stands.
    """
    constants = {t.name: t for t in model.graph.initializer}
    inputs = {value.name for value in model.graph.input}
    grids = {n.input[0]: n.input[1] for n in model.graph.node if n.op_type == "QuantizeLinear" and n.input[0] in inputs}
    if not grids:
        return None
    name, scale = next(iter(grids.items()))
    step = float(numpy_helper.to_array(constants[scale]).max())
    rng = np.random.default_rng(0)
    moved = []
    for feed in feeds:
        values = feed[name].copy()
        samples = values.reshape(len(values), -1)
        samples[np.arange(len(samples)), rng.integers(0, samples.shape[1], len(samples))] += step
        moved.append({**feed, name: values})
    return deviation(_outputs(model, feeds, LEVELS[0]), _outputs(model, moved, LEVELS[0]))


def _beside_quantisers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Nodes with arithmetic that read what was quantized or make what will be."""
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
