"""Taking out nodes that hand their input on unchanged: Identity, and Dropout as it is in inference."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxq.ir.model import Model
from onnxq.passes.graph_editor import Draft, op_of


def drop_identity(model: Model) -> Model:
    """Let the readers of an Identity or an inactive Dropout read its input instead.

    A node stays where it gives a graph output its name and nothing else could: when its input is a graph
    input, a constant or another output, or when a subgraph reads one of its two tensors.
    """
    draft = Draft(model)
    for node in draft.nodes:
        if op_of(node) == "Identity" or (op_of(node) == "Dropout" and _is_inactive(draft, node)):
            _bypass(draft, node)
    return draft.finish()


def _is_inactive(draft: Draft, node: gs.Node) -> bool:
    mask_is_used = len(node.outputs) > 1 and (node.outputs[1].outputs or not draft.sees_only_nodes(node.outputs[1]))
    if mask_is_used:
        return False
    if len(node.inputs) < 3 or node.inputs[2].is_empty():
        return True
    training = draft.value(node.inputs[2])
    return training is not None and not training.any()


def _bypass(draft: Draft, node: gs.Node) -> None:
    source, result = node.inputs[0], node.outputs[0]
    if draft.is_read_inside(result):
        return
    if draft.is_output(result):
        if source.inputs and draft.sees_only_nodes(source):
            maker = source.inputs[0]
            _redirect(source, result)
            draft.drop(node)
            maker.outputs[next(i for i, t in enumerate(maker.outputs) if t is source)] = result
        return
    _redirect(result, source)
    draft.drop(node)


def _redirect(old: gs.Tensor, new: gs.Tensor) -> None:
    for reader in list(old.outputs):
        for index, tensor in enumerate(reader.inputs):
            if tensor is old:
                reader.inputs[index] = new
