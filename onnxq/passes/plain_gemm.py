"""Bringing every Gemm with constant weights to the form x·W + b."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxq.ir.model import Model
from onnxq.passes.graph_editor import Draft, op_of
from onnxq.passes.linear import read_layer, write_layer


def plain_gemm(model: Model) -> Model:
    """Work the scalars alpha and beta of a Gemm into its weight and bias, and write the bias as one axis.

    A Gemm that is plain already stays as it is, and so does, with a remark, one whose weight or bias is no
    constant or whose input is transposed.
    """
    draft = Draft(model)
    for node in draft.nodes:
        if op_of(node) != "Gemm":
            continue
        if _is_plain(draft, node):
            continue
        layer = read_layer(draft, node)
        if isinstance(layer, str):
            draft.remark(node, f"its scalars and transpositions are kept because {layer}")
        else:
            write_layer(draft, layer)
    return draft.finish()


def _is_plain(draft: Draft, gemm: gs.Node) -> bool:
    if gemm.attrs.get("transA", 0) or gemm.attrs.get("alpha", 1.0) != 1.0:
        return False
    if len(gemm.inputs) < 3 or gemm.inputs[2].is_empty():
        return True
    bias = draft.value(gemm.inputs[2])
    has_one_axis = bias is None or (bias.ndim == 1 and bias.size > 1)
    return has_one_axis and bool(gemm.attrs.get("beta", 1.0) == 1.0)
