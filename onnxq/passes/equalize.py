"""Cross-layer equalization: channels of one tensor brought to one range, exactly.

A tensor has one scale, so a channel of small range is left with few of its steps. Where the operators
between the layers that make a tensor and the layers that read it are positively homogeneous channel by
channel (ReLU, pooling, addition, a gate, …), a factor s_c > 0 can be moved across:

    rows c of the makers' weights and biases × s_c        columns c of the readers' weights ÷ s_c

The network computes the same function. Weights have a scale for each output channel, so the makers pay
nothing for it. The upper end b of a clip (ReLU6) moves with each channel, to s_c·b: min(max(x, 0), b) becomes a ReLU
and a minimum with a number a channel, equal for every input. Such channels are raised only, so that a grid that ends
at b cuts off no less than all these ends, and the minimum need not be computed before it (:mod:`onnxq.emit.bounds`).
Where all these operators are linear, as around the bottlenecks of MobileNet-V2, s_c may be negative too.

Reference: Nagel et al., "Data-Free Quantization through Weight Equalization and Bias Correction",
ICCV 2019; ranges here are those of the activations, and groups reach across residual additions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxq.ir.disjoint_sets import DisjointSets
from onnxq.ir.layer import Layer
from onnxq.ir.linear_form import beside_rows, stored_weight, weight_matrix
from onnxq.ir.model import Model
from onnxq.ir.operators import Trait, operators_with
from onnxq.passes.graph_editor import Draft, op_of

HOMOGENEOUS = operators_with(Trait.HOMOGENEOUS)
ONE_SIGNED = operators_with(Trait.ONE_SIGNED)
"""Those of them that do something else to a negative multiple."""


@dataclass(frozen=True)
class Group:
    """Tensors whose channels must be scaled alike.

    Attributes:
        tensors: names, of which the layers' inputs are those that are quantized.
        makers: layers whose outputs are in the group.
        readers: layers whose inputs are in the group.
        linear: factors may be negative.
        clips: names of the Clip nodes between them that have an upper end, which moves with each channel.
    """

    tensors: tuple[str, ...]
    makers: tuple[Layer, ...]
    readers: tuple[Layer, ...]
    linear: bool
    clips: tuple[str, ...] = ()

    @property
    def quantized(self) -> tuple[str, ...]:
        """The tensors that are quantized, whose ranges are brought together."""
        return tuple(dict.fromkeys(layer.input for layer in self.readers))


@dataclass
class _Draft:
    tensors: set[str] = field(default_factory=set)
    makers: list[Layer] = field(default_factory=list)
    readers: list[Layer] = field(default_factory=list)
    blocked: bool = False
    linear: bool = True
    clips: list[str] = field(default_factory=list)


def find_groups(model: Model, layers: Sequence[Layer]) -> tuple[Group, ...]:
    """The groups of tensors that can be equalized; makers and readers are convolutions and Gemm."""
    known = {layer.name: layer for layer in layers if layer.op != "MatMul"}
    classes = DisjointSets()
    draft = Draft(model)
    for node in draft.nodes:
        if _joins(draft, node):
            for tensor in (*_operands(node), node.outputs[0]):
                classes.join(node.outputs[0].name, tensor.name)
    found: dict[str, _Draft] = {}
    for tensor in draft.graph.tensors().values():
        if isinstance(tensor, gs.Variable):
            group = found.setdefault(classes.of(tensor.name), _Draft())
            group.tensors.add(tensor.name)
            group.blocked |= not draft.sees_only_nodes(tensor) or not tensor.inputs or tensor.shape is None
    for node in draft.nodes:
        _enter(draft, node, known, found, classes)
    return tuple(
        Group(tuple(sorted(g.tensors)), tuple(g.makers), tuple(g.readers), g.linear, tuple(g.clips))
        for g in found.values()
        if g.makers and g.readers and not g.blocked
    )


def observed_ranks(model: Model, groups: Sequence[Group]) -> dict[str, int]:
    """Number of axes of every tensor whose channel ranges the groups ask for, by name."""
    tensors = model.tensors
    return {name: len(tensors[name].shape) for group in groups for name in group.quantized}


def equalize(model: Model, groups: Sequence[Group], factors: Sequence[NDArray[np.float32]]) -> Model:
    """Move the factors of every group from its makers to its readers.

    Args:
        model: not changed.
        groups: as :func:`find_groups` gives them for this model.
        factors: one array for each group, (channels,), positive where the group is not linear, at least 1 where it
            has clips, nowhere 0.
    """
    draft = Draft(model)
    nodes = {node.name: node for node in draft.nodes}
    raised: dict[str, float] = {}
    for group, factor in zip(groups, factors, strict=True):
        for layer in group.makers:
            _scale_outputs(draft, nodes[layer.name], layer, factor)
        for layer in group.readers:
            _scale_inputs(draft, nodes[layer.name], layer, np.reciprocal(factor))
        for name in group.clips:
            raised |= _raise_bound(draft, nodes[name], factor)
    return draft.finish(raised={**model.raised, **raised})


def _joins(draft: Draft, node: gs.Node) -> bool:
    """Whether a node lets a factor of each channel pass from its operands to its output."""
    op = op_of(node)
    if op == "Flatten":
        shape = node.inputs[0].shape
        return (
            node.attrs.get("axis", 1) == 1 and shape is not None and len(shape) > 2 and all(d == 1 for d in shape[2:])
        )
    if op == "Add":
        return not any(isinstance(t, gs.Constant) for t in node.inputs) and _same_channels(*node.inputs)
    if op == "Mul":
        return _gated(node) is not None
    if op == "Resize":
        return _keeps_channels(node)
    if op == "ReduceMean":
        return _is_spatial(draft, node)
    if op == "Clip":
        low = draft.value(node.inputs[1]) if len(node.inputs) > 1 and not node.inputs[1].is_empty() else None
        return low is not None and not low.any() and _upper_end(draft, node) is not None
    return op in HOMOGENEOUS and len(node.outputs) == 1


def _same_channels(first: gs.Tensor, second: gs.Tensor) -> bool:
    """Whether two tensors have as many axes and as many channels; sizes that are not known are told apart by name."""
    shapes = [t.shape for t in (first, second)]
    if any(s is None or len(s) < 2 for s in shapes) or len(shapes[0]) != len(shapes[1]):
        return False
    return bool(shapes[0][1] == shapes[1][1])


def _gated(node: gs.Node) -> gs.Tensor | None:
    """The operand of a product that its other operand, one computed number a channel, opens or shuts."""
    if any(isinstance(t, gs.Constant) for t in node.inputs) or not _same_channels(*node.inputs):
        return None
    shut = [all(d == 1 for d in t.shape[2:]) for t in node.inputs]
    return None if len(set(shut)) == 1 else node.inputs[shut.index(False)]


def _keeps_channels(resize: gs.Node) -> bool:
    """Whether a Resize interpolates within channels, with no value of its own outside."""
    if not _same_channels(resize.inputs[0], resize.outputs[0]):
        return False
    return str(resize.attrs.get("coordinate_transformation_mode", "half_pixel")) != "tf_crop_and_resize"


def _is_spatial(draft: Draft, mean: gs.Node) -> bool:
    """Whether a mean is taken over axes behind the channels."""
    axes = draft.value(mean.inputs[1]) if len(mean.inputs) > 1 else mean.attrs.get("axes")
    shape = mean.inputs[0].shape
    return axes is not None and shape is not None and all(int(a) % len(shape) > 1 for a in np.atleast_1d(axes))


def _operands(node: gs.Node) -> list[gs.Tensor]:
    if node.op == "Mul":
        gated = _gated(node)
        return [] if gated is None else [gated]
    return list(node.inputs[: 2 if node.op == "Add" else 1])


def _upper_end(draft: Draft, clip: gs.Node) -> float | None:
    """The upper end of a Clip, infinity where it has none; None where it is computed or not above 0."""
    if len(clip.inputs) < 3 or clip.inputs[2].is_empty():
        return math.inf
    high = draft.value(clip.inputs[2])
    end = 0.0 if high is None else float(high.reshape(()))
    return end if end > 0 else None


def _enter(
    draft: Draft, node: gs.Node, known: Mapping[str, Layer], found: dict[str, _Draft], classes: DisjointSets
) -> None:
    """Enter a node's part in the groups it touches: maker, reader, bound, or an obstacle."""
    layer = known.get(node.name)
    for tensor in (t for t in node.outputs if not t.is_empty()):
        if layer is not None:
            found[classes.of(tensor.name)].makers.append(layer)
        elif not _joins(draft, node):
            found[classes.of(tensor.name)].blocked = True
    if op_of(node) in ONE_SIGNED:
        found[classes.of(node.outputs[0].name)].linear = False
    if op_of(node) == "Clip" and _joins(draft, node) and _upper_end(draft, node) != math.inf:
        found[classes.of(node.outputs[0].name)].clips.append(node.name)
    for index, tensor in enumerate(node.inputs):
        if isinstance(tensor, gs.Constant) or not tensor.name:
            continue
        if layer is not None and index == 0:
            found[classes.of(tensor.name)].readers.append(layer)
        elif layer is not None or not _joins(draft, node) or not any(t is tensor for t in _operands(node)):
            found[classes.of(tensor.name)].blocked = True


def _scale_outputs(draft: Draft, node: gs.Node, layer: Layer, factors: NDArray[np.float32]) -> None:
    weight = np.asarray(node.inputs[1].values)
    matrix = weight_matrix(layer, weight)
    scaled = matrix * factors.reshape(matrix.shape[0], 1, -1)
    draft.set_constant(node, 1, stored_weight(layer, scaled), f"{node.name}/weight")
    draft.set_constant(node, 2, np.asarray(node.inputs[2].values) * factors, f"{node.name}/bias")


def _scale_inputs(draft: Draft, node: gs.Node, layer: Layer, factors: NDArray[np.float32]) -> None:
    weight = np.asarray(node.inputs[1].values)
    matrix = weight_matrix(layer, weight)
    scaled = matrix * beside_rows(layer, factors)
    draft.set_constant(node, 1, stored_weight(layer, scaled), f"{node.name}/weight")


def _raise_bound(draft: Draft, clip: gs.Node, factors: NDArray[np.float32]) -> dict[str, float]:
    """Let every channel's upper end move with its factor: a ReLU, and a minimum with one number a channel.

    Returns:
        The end before, by the name of what is clipped.
    """
    end = _upper_end(draft, clip)
    if end is None or np.all(factors == 1):
        return {}
    assert factors.min() >= 1, clip.name
    axes = len(clip.inputs[0].shape)
    bounds = np.asarray(end * factors, np.float32).reshape(-1, *(1,) * (axes - 2))
    rectified = gs.Variable(draft.new_name(f"{clip.name}/rectified"), np.float32, clip.outputs[0].shape)
    node = gs.Node("Relu", draft.new_name(f"{clip.name}/Relu"), inputs=[clip.inputs[0]], outputs=[rectified])
    draft.graph.nodes.insert(draft.graph.nodes.index(clip), node)
    clip.op, clip.attrs = "Min", {}
    clip.inputs = [rectified, gs.Constant(draft.new_name(f"{clip.name}/bounds"), bounds)]
    return {clip.outputs[0].name: end}
