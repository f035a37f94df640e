"""Migration of range from a layer's inputs into its weights, exactly, as in SmoothQuant.

A tensor has one scale, so one channel of large range takes the resolution of all others. A factor s_c > 0 moves
it into the layers that read the tensor:

    channel c of the tensor ÷ s_c        what the readers' weights multiply it with × s_c

Where only these layers read the tensor, constants on the way to it take the division in: the scale and shift of a
LayerNormalization or RMSNormalization, whether it is one node or ends in a Mul and an Add, or the constant of a Mul or
Div, as at the end of a decomposed HardSwish. A tensor that others read too, as in networks that normalize behind the
residual addition, and one that anything else makes, is divided by a Mul that stands before the layers alone, if they
are matrices.

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
from onnxq.ir.linear_form import beside_rows, stored_weight, weight_matrix
from onnxq.ir.model import Model
from onnxq.ir.operators import Trait, operators_with
from onnxq.passes.graph_editor import Draft, op_of

SCALING_ROWS = operators_with(Trait.SCALES_ROWS)


@dataclass(frozen=True)
class Site:
    """A tensor whose channels can be divided before the layers that read it.

    Attributes:
        tensor: its name.
        axis: of its channels: 1 before convolutions, the last one (-1) before matrices.
        readers: layers that multiply it with weights.
        absorbed: constants on the way to it take the division in; otherwise a Mul is added.
    """

    tensor: str
    axis: int
    readers: tuple[Layer, ...]
    absorbed: bool


def find_sites(model: Model, layers: Sequence[Layer]) -> tuple[Site, ...]:
    """The tensors that layers read, in the order of their first reader.

    One that convolutions read counts only where the division is absorbed: multiplying feature maps takes longer than
    it gains. So does none that both kinds read, for their channels are not the same axis.
    """
    readers: dict[str, list[Layer]] = {}
    for layer in layers:
        readers.setdefault(layer.input, []).append(layer)
    draft = Draft(model)
    tensors = draft.graph.tensors()
    sites = []
    for name, found in readers.items():
        axes = {layer.output_axis for layer in found}
        if len(axes) == 1 and (tensors[name].shape is not None or axes == {-1}):
            axis = axes.pop()
            absorbed = bool(_absorbers(draft, tensors[name], {la.name for la in found}, axis))
            if absorbed or axis == -1:
                sites.append(Site(name, axis, tuple(found), absorbed))
    return tuple(sites)


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
            matrix = weight_matrix(layer, np.asarray(node.inputs[1].values)) * beside_rows(layer, factor)
            draft.set_constant(node, 1, stored_weight(layer, matrix), f"{node.name}/weight")
        _divide(draft, site, [nodes[la.name] for la in site.readers], factor)
    return draft.finish()


@dataclass(frozen=True)
class _Absorber:
    """A constant that takes a division in: input ``place`` of a node, multiplied by the factors where ``up``."""

    node: gs.Node
    place: int
    up: bool


def _absorbers(draft: Draft, tensor: gs.Tensor, readers: set[str], axis: int) -> tuple[_Absorber, ...]:
    """The constants that take in a tensor's division, if nothing but some layers reads it."""
    if any(n.name not in readers and op_of(n) != "Shape" for n in tensor.outputs) or not draft.sees_only_nodes(tensor):
        return ()
    return _way_in(draft, tensor, axis)


def _way_in(draft: Draft, tensor: gs.Tensor, axis: int) -> tuple[_Absorber, ...]:
    """The constants that take in the division of a tensor that nothing else sees; none where there is no such way."""
    maker = tensor.inputs[0] if tensor.inputs else None
    if maker is None:
        return ()
    if op_of(maker) in SCALING_ROWS and axis == -1:
        constants = [draft.value(t) for t in maker.inputs[1:]]
        known = all(v is not None and v.ndim == 1 for v in constants)
        return tuple(_Absorber(maker, place, False) for place in range(1, len(maker.inputs))) if known else ()
    if op_of(maker) not in ("Add", "Mul", "Div"):
        return ()
    here = _constant(draft, maker, tensor, axis)
    if here is not None and op_of(maker) != "Add":
        return (here,)
    if here is None and op_of(maker) == "Add":
        return ()  # a sum of two computed tensors would have to be divided twice
    for operand in maker.inputs[: 1 if op_of(maker) == "Div" else 2]:
        if draft.value(operand) is None and draft.has_one_reader(operand) and _aligned(operand, tensor, axis):
            further = _way_in(draft, operand, axis)
            if further:
                return (*further, here) if here else further
    return ()


def _aligned(operand: gs.Tensor, tensor: gs.Tensor, axis: int) -> bool:
    """Whether an operand has the channels of the result; the gate of a channel has no other axes."""
    if operand.shape is None or tensor.shape is None or len(operand.shape) != len(tensor.shape):
        return False
    return bool(operand.shape[axis] == tensor.shape[axis])


def _constant(draft: Draft, node: gs.Node, tensor: gs.Tensor, axis: int) -> _Absorber | None:
    """Which input of a node is a constant that a division can go into: one number a channel or before convolutions.

    A single number before a matrix stays what it is: onnxruntime knows Gelu by it.
    """
    found = [i for i, t in enumerate(node.inputs) if draft.value(t) is not None]
    if len(found) != 1 or (op_of(node) == "Div" and found != [1]):
        return None
    shape = tuple(node.inputs[found[0]].shape)
    at = 1 if axis == -1 else len(tensor.shape) - 1  # the axis of the channels, counted from the last
    if any(size != 1 for i, size in enumerate(reversed(shape), 1) if i != at) or (axis == -1 and len(shape) != 1):
        return None
    return _Absorber(node, found[0], op_of(node) == "Div")


def _divide(draft: Draft, site: Site, readers: list[gs.Node], factor: NDArray[np.float32]) -> None:
    tensor = draft.graph.tensors()[site.tensor]
    along = factor if site.axis == -1 else factor.reshape(-1, *(1,) * (len(tensor.shape) - 2))
    absorbers = _absorbers(draft, tensor, {node.name for node in readers}, site.axis)
    for a in absorbers:
        values = np.asarray(draft.value(a.node.inputs[a.place]))
        changed = (values * along if a.up else values / along).astype(values.dtype)
        draft.set_constant(a.node, a.place, changed, f"{a.node.name}/{a.place}")
    if not absorbers:
        divided = gs.Variable(draft.new_name(f"{tensor.name}/migrated"), tensor.dtype, tensor.shape)
        constant = gs.Constant(draft.new_name(f"{tensor.name}/migration"), np.reciprocal(along))
        node = gs.Node("Mul", divided.name, inputs=[tensor, constant], outputs=[divided])
        draft.graph.nodes.insert(min(_place(draft, reader) for reader in readers), node)
        for reader in readers:
            reader.inputs[0] = divided


def _place(draft: Draft, node: gs.Node) -> int:
    return next(i for i, n in enumerate(draft.graph.nodes) if n is node)
