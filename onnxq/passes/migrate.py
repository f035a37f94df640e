"""Migration of range from a matrix's inputs into its weights, exactly, as in SmoothQuant.

A tensor has one scale, so one channel of large range takes the resolution of all others. A factor s_c > 0 moves
it into the layers that read the tensor:

    channel c of the tensor ÷ s_c        row c of the readers' weights × s_c

A LayerNormalization that only these layers read takes the division into its scale and shift, whether it is one
node or ends in a Mul and an Add. A tensor that others read too, as in networks that normalise behind the
residual addition, and one that anything else makes, is divided by a Mul that stands before the layers alone.

Reference: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
Models", ICML 2023.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxq.ir.layer import Layer
from onnxq.ir.linear_form import stored_weight, weight_matrix
from onnxq.ir.model import Model
from onnxq.passes.draft import Draft, op_of


@dataclass(frozen=True)
class Site:
    """A tensor whose channels, its last axis, can be divided before the layers that read it.

    Attributes:
        tensor: its name.
        readers: layers that multiply it with a matrix.
        absorbed: the node that makes it takes the division in; otherwise a Mul is added.
    """

    tensor: str
    readers: tuple[Layer, ...]
    absorbed: bool


def find_sites(model: Model, layers: Sequence[Layer]) -> tuple[Site, ...]:
    """The tensors that Gemm and MatMul layers read, in the order of their first reader."""
    readers: dict[str, list[Layer]] = {}
    for layer in layers:
        if layer.window is None:
            readers.setdefault(layer.input, []).append(layer)
    draft = Draft(model)
    tensors = draft.graph.tensors()
    return tuple(
        Site(name, tuple(found), _norm(draft, tensors[name], {la.name for la in found}) is not None)
        for name, found in readers.items()
    )


def migrate(model: Model, sites: Sequence[Site], factors: Sequence[NDArray[np.float32]]) -> Model:
    """Divide the channels of tensors by factors, and multiply the weights that read them.

    Args:
        model: not changed.
        sites: as :func:`find_sites` gives them for this model.
        factors: one array for each site, (channels,), positive.
    """
    draft = Draft(model)
    nodes = {node.name: node for node in draft.nodes}
    for site, factor in zip(sites, factors, strict=True):
        for layer in site.readers:
            node = nodes[layer.name]
            matrix = weight_matrix(layer, np.asarray(node.inputs[1].values)) * factor[None, :, None]
            draft.set_constant(node, 1, stored_weight(layer, matrix), f"{node.name}/weight")
        _divide(draft, draft.graph.tensors()[site.tensor], [nodes[la.name] for la in site.readers], factor)
    return draft.finish()


def _norm(draft: Draft, tensor: gs.Tensor, readers: set[str]) -> tuple[gs.Node, ...] | None:
    """The nodes that hold a normalisation's scale and shift, if nothing but some layers reads its output."""
    if not tensor.inputs or not draft.sees_only_nodes(tensor):
        return None
    if any(n.name not in readers and op_of(n) != "Shape" for n in tensor.outputs):
        return None
    maker = tensor.inputs[0]
    if op_of(maker) == "LayerNormalization":
        constants = [draft.value(t) for t in maker.inputs[1:]]
        return (maker,) if all(v is not None and v.ndim == 1 for v in constants) else None
    if op_of(maker) != "Add":
        return None
    scaled = next((t for t in maker.inputs if t.inputs and op_of(t.inputs[0]) == "Mul"), None)
    if scaled is None or not draft.has_one_reader(scaled):
        return None
    both = (scaled.inputs[0], maker)
    return both if all(_vector(draft, node) is not None for node in both) else None


def _vector(draft: Draft, node: gs.Node) -> int | None:
    """Which input of a node is a constant with one axis."""
    found = [i for i, t in enumerate(node.inputs) if (v := draft.value(t)) is not None and v.ndim == 1]
    return found[0] if len(found) == 1 else None


def _divide(draft: Draft, tensor: gs.Tensor, readers: list[gs.Node], factor: NDArray[np.float32]) -> None:
    holders = _norm(draft, tensor, {node.name for node in readers})
    for node in holders or ():
        places = range(1, len(node.inputs)) if op_of(node) == "LayerNormalization" else [_vector(draft, node) or 0]
        for place in places:
            values = np.asarray(draft.value(node.inputs[place]))
            draft.set_constant(node, place, (values / factor).astype(values.dtype), f"{node.name}/{place}")
    if holders is None:
        divided = gs.Variable(f"{tensor.name}/migrated", tensor.dtype, tensor.shape)
        constant = gs.Constant(f"{tensor.name}/migration", np.reciprocal(factor))
        node = gs.Node("Mul", divided.name, inputs=[tensor, constant], outputs=[divided])
        draft.graph.nodes.insert(min(_place(draft, reader) for reader in readers), node)
        for reader in readers:
            reader.inputs[0] = divided


def _place(draft: Draft, node: gs.Node) -> int:
    return next(i for i, n in enumerate(draft.graph.nodes) if n is node)
