"""Tables that a model looks rows up in: the float constants behind Gather, such as word embeddings."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.ir.model import Model
from onnxq.ir.operators import STANDARD

LEAST_WIDTH = 16
"""Columns of the narrowest table worth quantizing: a row's scale takes the space of four 8-bit entries."""


@dataclass(frozen=True)
class Table:
    """A Gather of rows.

    Attributes:
        name: the node's name.
        weight: name of the constant.
        indices: name of the tensor of row numbers.
        output: name of the tensor of rows that it makes.
        shape: rows and columns of the constant.
        rank: number of axes of the indices; None where it is not known.
    """

    name: str
    weight: str
    indices: str
    output: str
    shape: tuple[int, int]
    rank: int | None

    @property
    def parameters(self) -> int:
        """Entries of the table."""
        return math.prod(self.shape)


def find_tables(model: Model) -> tuple[Table, ...]:
    """The tables of a prepared model that rows are looked up in by computed or given numbers, in graph order."""
    overridable = {t.name for t in model.graph.inputs if isinstance(t, gs.Constant)}
    return tuple(
        _table(node)
        for node in model.graph.nodes
        if node.name not in model.in_float and _looks_up_rows(node, overridable)
    )


def _looks_up_rows(node: gs.Node, overridable: set[str]) -> bool:
    if node.op != "Gather" or node.domain not in STANDARD or node.attrs.get("axis", 0) not in (0, -2):
        return False
    table, indices = node.inputs
    return (
        isinstance(table, gs.Constant)
        and isinstance(indices, gs.Variable)
        and table.name not in overridable
        and table.dtype == np.float32
        and len(table.shape) == 2
        and table.shape[0] > 0
        and table.shape[1] >= LEAST_WIDTH
    )


def _table(node: gs.Node) -> Table:
    table, indices = node.inputs
    rows, columns = (int(d) for d in table.shape)
    rank = None if indices.shape is None else len(indices.shape)
    return Table(node.name, table.name, indices.name, node.outputs[0].name, (rows, columns), rank)
