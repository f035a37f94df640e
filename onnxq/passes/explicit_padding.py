"""Writing out the padding that a convolution's auto_pad leaves to the runtime."""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxq.ir.model import Model
from onnxq.passes.draft import Draft, op_of


def explicit_padding(model: Model) -> Model:
    """Replace auto_pad of Conv by the pads it stands for.

    SAME pads an axis of size n, with stride s and dilated kernel k, by max(0, (⌈n/s⌉ − 1)·s + k − n) in
    all; the odd element goes behind (SAME_UPPER) or before (SAME_LOWER). With stride 1 that is k − 1 for
    every n; otherwise a Conv whose input size is open is left with a remark.
    """
    draft = Draft(model)
    for node in draft.nodes:
        mode = node.attrs.get("auto_pad", "NOTSET")
        if op_of(node) != "Conv" or mode == "NOTSET":
            continue
        pads = _pads(node, mode)
        if pads is None:
            draft.remark(node, f"auto_pad={mode} is kept because the size of {node.inputs[0].name!r} is open")
        else:
            del node.attrs["auto_pad"]
            node.attrs["pads"] = pads
    return draft.finish()


def _pads(node: gs.Node, mode: str) -> list[int] | None:
    kernel = node.attrs.get("kernel_shape") or list(node.inputs[1].shape or ())[2:]
    axes = len(kernel)
    if axes == 0 or not all(isinstance(k, int) for k in kernel):
        return None
    if mode == "VALID":
        return [0] * (2 * axes)
    sizes = list(node.inputs[0].shape or [None] * (2 + axes))[2:]
    strides = node.attrs.get("strides") or [1] * axes
    dilations = node.attrs.get("dilations") or [1] * axes
    begins, ends = [], []
    for size, k, stride, dilation in zip(sizes, kernel, strides, dilations, strict=True):
        reach = (k - 1) * dilation + 1
        if stride == 1:
            total = reach - 1
        elif isinstance(size, int) and size > 0:
            total = max(0, (-(-size // stride) - 1) * stride + reach - size)
        else:
            return None
        begins.append(total // 2 if mode == "SAME_UPPER" else total - total // 2)
        ends.append(total - begins[-1])
    return [int(p) for p in (*begins, *ends)]
