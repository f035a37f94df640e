"""Outputs of the network kept out of quantizers that stand behind an operator which only moves values.

onnxruntime moves a QuantizeLinear backwards past a Transpose, a Reshape and their like, and where it lands on an output
of the network, that output is rounded and clipped with it. So the pair is put there from the start, on a branch of its
own: behind the output, before copies of the operators that move values.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import onnx

from onnxq.ir.operators import STANDARD, Trait, operators_with
from onnxq.ir.topological_sort import reads

MOVERS = operators_with(Trait.MOVES, Trait.PICKS)
"""Operators that make their first output of values of their first input."""


def spare_outputs(graph: onnx.GraphProto, fresh: Callable[[str], str]) -> None:
    """Move pairs of QuantizeLinear and DequantizeLinear before what stands between them and an output, in place.

    Args:
        graph: with its pairs; its nodes need not be in order.
        fresh: makes a name that is not taken yet of one that may be.
    """
    final = {output.name for output in graph.output}
    maker = {name: node for node in graph.node for name in node.output if name}
    behind = {node.input[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    read = Counter(name for node in graph.node for name in reads(node))
    for quantise in [node for node in graph.node if node.op_type == "QuantizeLinear"]:
        before = maker.get(quantise.input[0])
        clips = before is not None and before.op_type == "Clip" and read[before.output[0]] == 1
        first = before if before is not None and clips and before.output[0] not in final else quantise
        chain = _movers_behind_output(first.input[0], final, maker)
        pair = behind.get(quantise.output[0])
        if not chain or pair is None:
            continue
        wanted, at = pair.output[0], fresh(f"{pair.output[0]}/unmoved")
        pair.output[0], first.input[0] = at, chain[-1].input[0]
        for mover in reversed(chain):
            copy = graph.node.add()
            copy.CopyFrom(mover)
            copy.name = fresh(f"{mover.name}/quantized")
            copy.input[0] = at
            at = wanted if mover is chain[0] else fresh(f"{mover.output[0]}/quantized")
            copy.output[:] = [at]
    _drop_unread(graph)


def _movers_behind_output(tensor: str, final: set[str], maker: dict[str, onnx.NodeProto]) -> list[onnx.NodeProto]:
    """The operators between a tensor and an output of the network, the last first; empty where others lie between."""
    chain: list[onnx.NodeProto] = []
    while tensor not in final:
        node = maker.get(tensor)
        if node is None or node.op_type not in MOVERS or node.domain not in STANDARD or node.output[0] != tensor:
            return []
        chain.append(node)
        tensor = node.input[0]
    return chain if tensor in maker else []


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Take out movers that only the pair read."""
    final = {output.name for output in graph.output}
    while True:
        read = {name for node in graph.node for name in reads(node)} | final
        unread = [i for i, n in enumerate(graph.node) if n.op_type in MOVERS and not read & set(n.output)]
        if not unread:
            return
        for index in unread[::-1]:
            del graph.node[index]
