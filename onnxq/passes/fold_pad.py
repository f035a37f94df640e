"""Folding a Pad with zeros into the convolutions behind it."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxq.ir.model import Model
from onnxq.passes.graph_editor import Draft, op_of


def fold_pad(model: Model) -> Model:
    """Add the zeros of a Pad to the pads of the Conv nodes that read it, and take the Pad out.

    It is done where the Pad writes zeros around the spatial axes only, by constant amounts that are not
    negative, and where nothing but Conv nodes without automatic padding see the result. A Pad before a
    Conv that is left as it is gets a remark.
    """
    draft = Draft(model)
    for node in draft.nodes:
        if op_of(node) != "Pad" or not any(op_of(reader) == "Conv" for reader in node.outputs[0].outputs):
            continue
        reason = _obstacle(draft, node)
        pads = _spatial_pads(draft, node) if reason is None else None
        if isinstance(pads, list):
            _fold(draft, node, pads)
        else:
            draft.remark(node, f"Pad is not folded because {reason or pads}")
    return draft.finish()


def _obstacle(draft: Draft, pad: gs.Node) -> str | None:
    output = pad.outputs[0]
    if not draft.sees_only_nodes(output):
        return f"{output.name!r} is also a graph output or read by a subgraph"
    for reader in output.outputs:
        if op_of(reader) != "Conv" or any(t is output for t in reader.inputs[1:]):
            return f"{reader.op} {reader.name!r} reads {output.name!r} too"
        if reader.attrs.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            return f"Conv {reader.name!r} pads automatically"
    if pad.attrs.get("mode", "constant") != "constant":
        return f"its mode is {pad.attrs['mode']}"
    if len(pad.inputs) > 2 and not pad.inputs[2].is_empty():
        fill = draft.value(pad.inputs[2])
        if fill is None or fill.any():
            return "it does not pad with zeros"
    return None


def _spatial_pads(draft: Draft, pad: gs.Node) -> list[int] | str:
    """The pads in the order of a Conv's attribute: all begins, then all ends, of the spatial axes."""
    amounts = draft.value(pad.inputs[1])
    if amounts is None:
        return f"its amounts are no constants: {draft.why_no_value(pad.inputs[1])}"
    rank = _rank(pad, amounts.size // 2)
    axes = list(range(rank))
    if len(pad.inputs) > 3 and not pad.inputs[3].is_empty():
        named = draft.value(pad.inputs[3])
        if named is None:
            return f"its axes are no constants: {draft.why_no_value(pad.inputs[3])}"
        axes = [int(a) % rank for a in named]
    full = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        full[axis], full[rank + axis] = int(amounts[i]), int(amounts[len(axes) + i])
    if min(full) < 0:
        return "it crops"
    if any(full[i] for i in (0, 1, rank, rank + 1)):
        return "it pads the batch or the channels"
    return full[2:rank] + full[rank + 2 :]


def _rank(pad: gs.Node, amounts: int) -> int:
    """Number of axes: that of the weight behind it, or of the padded tensor itself."""
    weight = pad.outputs[0].outputs[0].inputs[1].shape
    known = weight if weight is not None else pad.inputs[0].shape
    return amounts if known is None else len(known)


def _fold(draft: Draft, pad: gs.Node, pads: list[int]) -> None:
    source, output = pad.inputs[0], pad.outputs[0]
    for conv in list(output.outputs):
        valid = conv.attrs.pop("auto_pad", "NOTSET") == "VALID"
        own = [0] * len(pads) if valid else conv.attrs.get("pads") or [0] * len(pads)
        conv.attrs["pads"] = [a + b for a, b in zip(own, pads, strict=True)]
        conv.inputs[0] = source
    draft.drop(pad)
