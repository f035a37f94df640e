"""Some nodes of a model as a model of their own."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from onnx import helper

from onnxq.ir.model import Model
from onnxq.ir.outline import Outline, outline_of


def part_model(model: Model, nodes: Collection[str], name: str) -> Outline:
    """Nodes with their constants; what goes in and out of them is given by :func:`set_ends`.

    Args:
        model: the whole model.
        nodes: names of those wanted.
        name: of the new graph.
    """
    graph = gs.Graph(
        nodes=[node for node in model.graph.nodes if node.name in nodes],
        opset=model.graph.opset,
        import_domains=model.graph.import_domains,
        name=name,
    )
    return outline_of(graph)


def set_ends(proto: onnx.ModelProto, inputs: Mapping[str, np.dtype[np.generic]], outputs: Iterable[str]) -> None:
    """Name what a part reads, with its element types, and what it gives back; the shapes it knew go."""
    del proto.graph.value_info[:]
    proto.graph.input.extend(
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(dtype), None)
        for name, dtype in inputs.items()
    )
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
