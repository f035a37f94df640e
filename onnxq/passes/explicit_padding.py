"""Writing out the padding that a convolution's auto_pad or output_shape leaves to the runtime."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_graphsurgeon as gs

from onnxq.ir.model import Model
from onnxq.passes.graph_editor import Draft, op_of


def explicit_padding(model: Model) -> Model:
    """Replace auto_pad of Conv, and auto_pad and output_shape of ConvTranspose, by the pads they stand for.

    With stride s and dilated kernel k, on an axis of size n:

    1. Conv, SAME: max(0, (⌈n/s⌉ − 1)·s + k − n) in all. With stride 1 that is k − 1 for every n; otherwise a
       Conv whose input size is open is left with a remark.
    2. ConvTranspose with output padding p, SAME (an output of n·s): k + p − s in all, for every n.
    3. ConvTranspose with an output of size m: (n − 1)·s + k + p − m in all, where n is known.

    The odd element goes behind (SAME_UPPER) or before (all others). Padding that would be negative, which
    runtimes round up to none, is left with a remark.
    """
    draft = Draft(model)
    for node in draft.nodes:
        mode = node.attrs.get("auto_pad", "NOTSET")
        if op_of(node) not in ("Conv", "ConvTranspose") or (mode == "NOTSET" and "output_shape" not in node.attrs):
            continue
        pads = _pads(node, mode)
        _set_shape(node)
        if pads is None:
            what = "output_shape" if "output_shape" in node.attrs else f"auto_pad={mode}"
            why = f"the size of {node.inputs[0].name!r} is open, or the padding negative"
            draft.remark(node, f"{what} is kept because {why}")
        else:
            node.attrs.pop("auto_pad", None)
            node.attrs.pop("output_shape", None)
            node.attrs["pads"] = pads
    return draft.finish()


def _pads(node: gs.Node, mode: str) -> list[int] | None:
    kernel = node.attrs.get("kernel_shape") or list(node.inputs[1].shape or ())[2:]
    axes = len(kernel)
    if axes == 0 or not all(isinstance(k, int) for k in kernel):
        return None
    if mode == "VALID" and "output_shape" not in node.attrs:
        return [0] * (2 * axes)
    shape = list(node.inputs[0].shape or [None] * (2 + axes))
    if len(shape) != 2 + axes:
        return None
    sizes = [d if isinstance(d, int) and d > 0 else None for d in shape[2:]]
    dilations = node.attrs.get("dilations") or [1] * axes
    reaches = [(k - 1) * dilation + 1 for k, dilation in zip(kernel, dilations, strict=True)]
    totals = _of_conv(node, sizes, reaches) if node.op == "Conv" else _of_transposed(node, sizes, reaches)
    begins, ends = [], []
    for total in totals:
        if total is None or total < 0:
            return None
        begins.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
        ends.append(total - begins[-1])
    return [int(p) for p in (*begins, *ends)]


def _set_shape(node: gs.Node) -> None:
    """Write down the shape that output_shape gives: onnx infers one without batch and channels from it."""
    wanted, axes = node.attrs.get("output_shape"), len(node.inputs[1].shape or ()) - 2
    if wanted and axes > 0 and len(wanted) >= axes:
        batch = (node.inputs[0].shape or [None])[0]
        channels = node.inputs[1].shape[1]
        if isinstance(channels, int):
            node.outputs[0].shape = [batch, channels * node.attrs.get("group", 1), *wanted[-axes:]]


def _of_conv(node: gs.Node, sizes: Sequence[int | None], reaches: Sequence[int]) -> list[int | None]:
    """Padding of each axis under SAME; None where it depends on an open size."""
    totals: list[int | None] = []
    for size, reach, stride in zip(sizes, reaches, _attribute(node, "strides", 1, len(reaches)), strict=True):
        if stride == 1:
            totals.append(reach - 1)
        else:
            totals.append(None if size is None else max(0, (-(-size // stride) - 1) * stride + reach - size))
    return totals


def _of_transposed(node: gs.Node, sizes: Sequence[int | None], reaches: Sequence[int]) -> list[int | None]:
    """What is cut off each axis; None where it depends on an open size."""
    strides = _attribute(node, "strides", 1, len(reaches))
    added = _attribute(node, "output_padding", 0, len(reaches))
    full = [reach + extra for reach, extra in zip(reaches, added, strict=True)]
    if "output_shape" not in node.attrs:
        return [f - stride for f, stride in zip(full, strides, strict=True)]
    wanted = list(node.attrs["output_shape"])[-len(reaches) :]
    return [
        None if size is None else (size - 1) * stride + f - m
        for size, stride, f, m in zip(sizes, strides, full, wanted, strict=True)
    ]


def _attribute(node: gs.Node, name: str, default: int, axes: int) -> list[int]:
    return list(node.attrs.get(name) or [default] * axes)
