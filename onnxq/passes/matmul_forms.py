"""Matrix products whose weights stand first, or are several matrices side by side, in the form of a layer.

A product W·x over the middle axis of three, such as the mixing of tokens, is a convolution of width 1. With more axes
it is the product of the transposed operands. Matrices of their own for each of E experts or heads, x [N, E, T, K] times
W [E, K, M], are a convolution of width 1 in E groups, between transpositions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxq.ir.model import Model
from onnxq.passes.graph_editor import Draft, op_of

Shape = tuple[Any, ...]


def matmul_forms(model: Model) -> Model:
    """Bring such products into the form of a layer; those of other shapes stay as they are."""
    draft = Draft(model)
    for node in list(draft.nodes):
        if op_of(node) != "MatMul":
            continue
        first, second = (draft.value(t) for t in node.inputs)
        if first is not None and second is None and _is_float(first, node.inputs[1]):
            _weight_first(draft, node, first)
        elif second is not None and first is None and second.ndim > 2 and _is_float(second, node.inputs[0]):
            _several_weights(draft, node, second)
    return draft.finish()


def _is_float(weight: NDArray[Any], data: gs.Tensor) -> bool:
    return weight.dtype == np.float32 and 0 not in weight.shape and data.dtype in (None, np.float32)


def _weight_first(draft: Draft, node: gs.Node, weight: NDArray[Any]) -> None:
    shape = node.inputs[1].shape
    if shape is None or len(shape) < 3 or weight.size != int(np.prod(weight.shape[-2:])) or weight.ndim > len(shape):
        return
    weight, data, output = weight.reshape(weight.shape[-2:]), node.inputs[1], node.outputs[0]
    if len(shape) == 3:
        node.op, node.attrs = "Conv", {"kernel_shape": [1]}
        node.inputs = [data, gs.Constant(draft.new_name(f"{node.name}/weight"), weight[:, :, None])]
        return
    turned = [*range(len(shape) - 2), len(shape) - 1, len(shape) - 2]
    before = _moved(draft, node, "Transpose", data, {"perm": turned}, [shape[i] for i in turned])
    made = [*(shape[i] for i in turned[:-1]), len(weight)]
    node.inputs = [before, gs.Constant(draft.new_name(f"{node.name}/weight"), np.ascontiguousarray(weight.T))]
    _made_of(draft, node, output, "Transpose", {"perm": turned}, made)


def _several_weights(draft: Draft, node: gs.Node, weight: NDArray[Any]) -> None:
    data, output = node.inputs[0], node.outputs[0]
    shape = data.shape
    while weight.ndim > 2 and len(weight) == 1 and shape is not None and len(shape) >= weight.ndim:
        weight = weight[0]
    if weight.ndim == 2:
        node.inputs[1] = gs.Constant(draft.new_name(f"{node.name}/weight"), weight)
        return
    if weight.ndim != 3 or shape is None or len(shape) != 4 or shape[1] != len(weight):
        return
    matrices, inputs, channels = weight.shape
    stored = weight.transpose(0, 2, 1).reshape(matrices * channels, inputs, 1)
    samples, _, rows, _ = shape
    before = _moved(draft, node, "Transpose", data, {"perm": [0, 1, 3, 2]}, [samples, matrices, inputs, rows])
    joined = _reshaped(draft, node, before, [0, matrices * inputs, -1], [samples, matrices * inputs, rows])
    node.op, node.attrs = "Conv", {"kernel_shape": [1], "group": matrices}
    node.inputs = [joined, gs.Constant(draft.new_name(f"{node.name}/weight"), np.ascontiguousarray(stored))]
    apart = gs.Variable(draft.new_name(f"{output.name}/apart"), np.float32, [samples, matrices, channels, rows])
    turn = gs.Node("Transpose", draft.new_name(f"{node.name}/back"), {"perm": [0, 1, 3, 2]}, [apart], [output])
    node.outputs = [
        gs.Variable(draft.new_name(f"{output.name}/joined"), np.float32, [samples, matrices * channels, rows])
    ]
    sizes = gs.Constant(draft.new_name(f"{node.name}/sizes"), np.array([0, matrices, channels, -1]))
    take = gs.Node("Reshape", draft.new_name(f"{node.name}/apart"), {}, [node.outputs[0], sizes], [apart])
    _insert(draft, node, behind=[take, turn])


def _moved(
    draft: Draft, node: gs.Node, op: str, data: gs.Tensor, attributes: dict[str, Any], shape: Sequence[Any]
) -> gs.Variable:
    """What an operator that moves values makes of a node's operand, before the node."""
    made = gs.Variable(draft.new_name(f"{data.name}/for/{node.name}"), np.float32, list(shape))
    mover = gs.Node(op, draft.new_name(f"{node.name}/turned"), attributes, [data], [made])
    _insert(draft, node, before=[mover])
    return made


def _reshaped(draft: Draft, node: gs.Node, data: gs.Tensor, sizes: list[int], shape: list[Any]) -> gs.Variable:
    made = gs.Variable(draft.new_name(f"{data.name}/joined"), np.float32, shape)
    wanted = gs.Constant(draft.new_name(f"{node.name}/sizes"), np.array(sizes))
    _insert(draft, node, before=[gs.Node("Reshape", draft.new_name(f"{node.name}/join"), {}, [data, wanted], [made])])
    return made


def _made_of(
    draft: Draft, node: gs.Node, output: gs.Tensor, op: str, attributes: dict[str, Any], shape: Sequence[Any]
) -> None:
    """Let a node's output be what an operator makes of it, behind the node."""
    raw = gs.Variable(draft.new_name(f"{output.name}/turned"), np.float32, list(shape))
    node.outputs = [raw]
    mover = gs.Node(op, draft.new_name(f"{node.name}/back"), attributes, [raw], [output])
    _insert(draft, node, behind=[mover])


def _insert(draft: Draft, node: gs.Node, *, before: Sequence[gs.Node] = (), behind: Sequence[gs.Node] = ()) -> None:
    at = next(i for i, other in enumerate(draft.graph.nodes) if other is node)
    draft.graph.nodes[at : at + 1] = [*before, node, *behind]
