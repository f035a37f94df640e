"""What each part of a model may be given, and which parts must agree.

A part is a layer, a table that rows are looked up in, or a product of two activations. A table and a product take a
candidate as they would have it in a model of that candidate throughout: the table its weight bits, the product its
activation bits. So every uniform model is among the choices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxq.allocation.problem import Agreement
from onnxq.config import Config
from onnxq.config.bit_widths import Candidate
from onnxq.ir.activation_matmul import Product, find_products
from onnxq.ir.disjoint_sets import DisjointSets
from onnxq.ir.layer import Layer, find_layers
from onnxq.ir.model import Model
from onnxq.ir.operators import Trait, operators_with
from onnxq.ir.reachability import edge_layers
from onnxq.ir.table import Table, find_tables

SHARING = operators_with(Trait.MOVES, Trait.PICKS, Trait.PARTS)
"""Operators whose inputs and outputs hold the same values, so that one grid serves all of them."""

Part: TypeAlias = Layer | Table | Product


@dataclass(frozen=True)
class Choices:
    """The candidates of every part.

    Attributes:
        layers: of the model, in its order.
        candidates: every one that some part may take.
        open: which of them each part may take, (parts, candidates).
        edges: names of first and last layers.
        agreements: parts decided together.
        tables: whose bits are chosen too.
        products: whose bits are chosen too.
    """

    layers: tuple[Layer, ...]
    candidates: tuple[Candidate, ...]
    open: NDArray[np.bool_]
    edges: tuple[str, ...] = ()
    agreements: tuple[Agreement, ...] = ()
    tables: tuple[Table, ...] = ()
    products: tuple[Product, ...] = ()

    @property
    def parts(self) -> tuple[Part, ...]:
        """Everything that is chosen for, in the order of the rows."""
        return (*self.layers, *self.tables, *self.products)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the parts."""
        return tuple(part.name for part in self.parts)

    def of(self, part: str) -> list[Candidate]:
        """Candidates of one part."""
        row = self.open[self.names.index(part)]
        return [c for c, taken in zip(self.candidates, row, strict=True) if taken]


def make_choices(model: Model, candidates: Sequence[Candidate], config: Config) -> Choices:
    """The candidates of a model's parts; first and last layers get theirs raised to ``edge_bits``.

    A layer that may not have a candidate on the target gets the least that has as many bits in its place.

    Args:
        model: prepared.
        candidates: to choose from.
        config: for ``edge_bits`` and the target.
    """
    layers, _ = find_layers(model)
    tables, products = find_tables(model), find_products(model)
    first, last = edge_layers(model, layers)
    edges = tuple(layer.name for layer in layers if layer.name in first | last)
    raised = tuple(config.at_edge(c) for c in candidates)
    given = [
        [config.rules.least(layer.op, c) for c in (raised if layer.name in edges else candidates)] for layer in layers
    ]
    given += [list(candidates) for _ in (*tables, *products)]
    columns = tuple(dict.fromkeys((*candidates, *raised, *(c for some in given for c in some))))
    rows = [[c in some for c in columns] for some in given]
    taken = np.array(rows, bool).reshape(len(given), len(columns))
    used: NDArray[np.bool_] = np.asarray(taken.any(axis=0))
    columns = tuple(c for c, some in zip(columns, used, strict=True) if some)
    return Choices(layers, columns, taken[:, used], edges, find_agreements(model, layers, tables), tables, products)


def find_parts(model: Model) -> tuple[Part, ...]:
    """All that bits are chosen for in a prepared model, in the order of :attr:`Choices.parts`."""
    return (*find_layers(model)[0], *find_tables(model), *find_products(model))


def find_agreements(model: Model, layers: Sequence[Layer], tables: Sequence[Table] = ()) -> tuple[Agreement, ...]:
    """Layers or tables that share their weights, and layers that read one tensor or parts of one Concat.

    A tensor that is read at two widths would be quantized twice, and a Concat needs one grid for its inputs.
    """
    classes, given = DisjointSets(), {i.name for i in model.inputs}
    for node in model.graph.nodes:
        if node.op in SHARING:
            data = node.inputs if node.op == "Concat" else node.inputs[:1]
            computed = [tensor for tensor in data if tensor.inputs or tensor.name in given]  # constants have no grid
            for tensor in (*computed, *node.outputs[1:]):
                classes.join(node.outputs[0].name, tensor.name)
    by_weight: dict[tuple[type, str], list[str]] = {}
    by_input: dict[str, list[str]] = {}
    for table in tables:
        by_weight.setdefault((Table, table.weight), []).append(table.name)
    for layer in layers:
        by_weight.setdefault((Layer, layer.weight), []).append(layer.name)
        by_input.setdefault(classes.of(layer.input), []).append(layer.name)
    shared = [Agreement(tuple(names), weights=True) for names in by_weight.values() if len(names) > 1]
    read = [Agreement(tuple(names), weights=False) for names in by_input.values() if len(names) > 1]
    return (*shared, *read)
