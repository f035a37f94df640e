"""Quantized tables written into the graph: rows of integers are looked up first and dequantized then.

A DequantizeLinear before the Gather would work out the whole table at every inference (15 to 50 ms for 30,000
rows; onnxruntime neither folds nor fuses it). So the Gather reads integers, a second one their scales:

    codes = Gather(integers, ids)             (…, blocks, columns of a block), uint8
    rows  = DequantizeLinear(codes, unit, zero point) · Cast(Gather(scales, ids)),  reshaped to (…, columns)

No Gather of onnxruntime takes 4-bit types: two 4-bit codes share a byte, the first half of a block in the
low bits and the second half in the high ones, and two shifts bring each out. Only operators of opset 13 are used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxq.ir.table import Table
from onnxq.quant.table import TableSolution

HALF_BYTE = 4


def emit_tables(proto: onnx.ModelProto, tables: Iterable[Table], solutions: Mapping[str, TableSolution]) -> None:
    """Replace Gathers of float rows by Gathers of integers, in place; the float tables stay for other readers."""
    for table in tables:
        _replace(proto.graph, table, solutions[table.name])


def stored_codes(solution: TableSolution) -> NDArray[np.uint8]:
    """The bytes that are stored, (rows, blocks, bytes of a block)."""
    rows, blocks = solution.scale.shape
    codes = (solution.integers.astype(np.int16) + (1 << (solution.bits - 1))).astype(np.uint8)
    codes = codes.reshape(rows, blocks, solution.block)
    if solution.bits > HALF_BYTE:
        return codes
    half = solution.block // 2
    return np.asarray(codes[..., :half] | (codes[..., half:] << HALF_BYTE), np.uint8)


def _replace(graph: onnx.GraphProto, table: Table, solution: TableSolution) -> None:
    place = next(i for i, node in enumerate(graph.node) if node.name == table.name)
    stored_names = {t.name for t in graph.initializer}
    nodes: list[onnx.NodeProto] = []

    def constant(name: str, value: NDArray[np.generic] | np.generic) -> str:
        full = f"{table.weight}/rows at {solution.bits} bits/{name}"
        if full not in stored_names:  # another Gather may read the same table
            graph.initializer.append(numpy_helper.from_array(np.asarray(value), full))
        return full

    def node(op: str, *inputs: str, into: str, **attributes: Any) -> str:
        made = into if into == table.output else f"{table.name}/{into}"
        nodes.append(helper.make_node(op, list(inputs), [made], f"{made}/{op}", **attributes))
        return made

    blocks = solution.scale.shape[1]
    stored = stored_codes(solution)
    scale = solution.scale[..., None]
    if blocks == 1:
        stored, scale = stored[:, 0], scale[:, 0]
    codes = node("Gather", constant("codes", stored), table.indices, into="code_rows")
    if solution.bits <= HALF_BYTE:
        four = constant("four", np.uint8(HALF_BYTE))
        high = node("BitShift", codes, four, into="high", direction="RIGHT")
        raised = node("BitShift", codes, four, into="raised", direction="LEFT")
        low = node("BitShift", raised, four, into="low", direction="RIGHT")
        codes = node("Concat", low, high, into="unpacked", axis=-1)
    zero = constant("zero_point", np.uint8(1 << (solution.bits - 1)))
    steps = node("DequantizeLinear", codes, constant("unit", solution.unit), zero, into="steps")
    scales = node("Gather", constant("scales", scale), table.indices, into="scale_rows")
    wide = node("Cast", scales, into="wide_scales", to=TensorProto.FLOAT)
    if blocks == 1:
        node("Mul", steps, wide, into=table.output)
    else:
        rows = node("Mul", steps, wide, into="blocks")
        shape = constant("shape", np.array([0] * (table.rank or 0) + [table.shape[1]], np.int64))
        node("Reshape", rows, shape, into=table.output)
    kept = [*graph.node[:place], *nodes, *graph.node[place + 1 :]]
    copies = [onnx.NodeProto.FromString(n.SerializeToString()) for n in kept]
    del graph.node[:]
    graph.node.extend(copies)
