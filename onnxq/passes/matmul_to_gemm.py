"""Writing a MatMul of two axes, and the Add of its bias, as one Gemm.

onnxruntime does the same when it loads a model, and then quantizes a bias that it finds in float: only a
bias that is written as a Gemm's is quantized the same way at every optimization level.
"""

from __future__ import annotations

from onnxq.ir.model import Model
from onnxq.passes.graph_editor import Draft, op_of
from onnxq.passes.linear import read_layer


def matmul_to_gemm(model: Model) -> Model:
    """Make a Gemm of every MatMul with a constant weight whose input is known to have two axes.

    A bias that is added behind it becomes the Gemm's own; a MatMul with more axes stays as it is.
    """
    draft = Draft(model)
    for node in draft.nodes:
        layer = read_layer(draft, node) if op_of(node) == "MatMul" else ""
        weight = draft.value(node.inputs[1]) if layer else None
        if isinstance(layer, str) or weight is None:
            continue
        node.op = "Gemm"
        if layer.adder is not None:
            draft.set_constant(node, 2, layer.bias.astype(weight.dtype), f"{node.name}/bias")
            draft.replace_output(node, layer.adder)
    return draft.finish()
