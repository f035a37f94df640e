"""A bias for every layer: solvers close means with it, and integer kernels take it for free.

A shared bias is given to each layer as a copy of its own, because each layer's solution changes it.
"""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.ir.model import Model
from onnxq.passes.graph_editor import Draft, op_of


def explicit_bias(model: Model) -> Model:
    """Give Conv, ConvTranspose and Gemm nodes with a constant weight a constant bias of their own, 1-D.

    1. No bias: one of zeros, named after the layer.
    2. A bias that others read too: a copy.
    3. A Gemm's bias that broadcasts from one number or from (1, N): written out as (N,).
    """
    draft = Draft(model)
    for node in draft.nodes:
        if op_of(node) not in ("Conv", "ConvTranspose", "Gemm"):
            continue
        weight = draft.value(node.inputs[1])
        if weight is None or weight.dtype != np.float32:
            continue
        channels = _channels(node, weight.shape)
        if len(node.inputs) < 3 or node.inputs[2].is_empty():
            draft.set_constant(node, 2, np.zeros(channels, np.float32), f"{node.name}/bias")
            continue
        bias = draft.value(node.inputs[2])
        if bias is None or (bias.ndim > 1 and bias.size != bias.shape[-1]):
            continue
        shared = isinstance(node.inputs[2], gs.Constant) and not draft.has_one_reader(node.inputs[2])
        if shared or bias.shape != (channels,):
            draft.set_constant(node, 2, np.broadcast_to(bias.reshape(-1), (channels,)).copy(), f"{node.name}/bias")
    return draft.finish()


def _channels(node: gs.Node, shape: tuple[int, ...]) -> int:
    if op_of(node) == "Conv":
        return shape[0]
    if op_of(node) == "ConvTranspose":
        return shape[1] * int(node.attrs.get("group", 1))
    return shape[0] if node.attrs.get("transB", 0) else shape[1]
