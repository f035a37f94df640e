"""Every attribute of a convolution written out.

The standard has defaults, but not every runtime does: AMD's VitisAI provider of onnxruntime aborts on a Conv without
strides.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import onnx
from onnx import helper

from onnxq.ir.topological_sort import subgraphs

CONVOLUTIONS = ("Conv", "ConvTranspose")


def write_out_windows(graph: onnx.GraphProto, kernels: dict[str, Sequence[int]]) -> None:
    """Give every convolution of a graph and its subgraphs the attributes that it leaves to defaults, in place.

    Args:
        graph: whose constants tell the sizes of kernels.
        kernels: sizes of those that something else makes, by the name of the convolution.
    """
    for node, shapes in _convolutions(graph, {}):
        stated = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        size = stated.get("kernel_shape") or kernels.get(node.name) or shapes.get(node.input[1], ())[2:]
        if size:
            node.attribute.extend(
                helper.make_attribute(name, value)
                for name, value in _defaults(node.op_type, stated, size).items()
                if name not in stated
            )


def _defaults(op: str, stated: dict[str, object], size: Sequence[int]) -> dict[str, int | list[int] | str]:
    ones = [1] * len(size)
    pads_elsewhere = stated.get("auto_pad", b"NOTSET") != b"NOTSET" or "output_shape" in stated
    return {
        "dilations": ones,
        "group": 1,
        "kernel_shape": list(size),
        **({} if pads_elsewhere else {"auto_pad": "NOTSET", "pads": [0] * (2 * len(size))}),
        **({"output_padding": [0] * len(size)} if op == "ConvTranspose" else {}),
        "strides": ones,
    }


def _convolutions(
    graph: onnx.GraphProto, outer: dict[str, Sequence[int]]
) -> Iterator[tuple[onnx.NodeProto, dict[str, Sequence[int]]]]:
    """Every convolution, with the shapes of the constants that it may read."""
    shapes = {**outer, **{t.name: tuple(t.dims) for t in graph.initializer}}
    for node in graph.node:
        if node.op_type in CONVOLUTIONS and node.domain in ("", "ai.onnx"):
            yield node, shapes
        for subgraph in subgraphs(node):
            yield from _convolutions(subgraph, shapes)
