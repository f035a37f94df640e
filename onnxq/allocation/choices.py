"""What each layer of a model may be given, and which layers must agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.allocation.problem import Agreement
from onnxq.candidate import FLOAT, Candidate
from onnxq.config import Config
from onnxq.ir.layer import Layer, find_layers
from onnxq.ir.model import Model
from onnxq.ir.paths import TRANSPARENT, edge_layers

CARRYING = (*TRANSPARENT, "Slice", "Identity", "Dropout", "Concat", "Split")
"""Operators whose inputs and outputs hold the same values, so that one grid serves all of them."""


@dataclass(frozen=True)
class Choices:
    """The candidates of every layer.

    Attributes:
        layers: of the model, in its order.
        candidates: every one that some layer may take.
        open: which of them each layer may take, (layers, candidates).
        edges: names of first and last layers.
        agreements: layers decided together.
    """

    layers: tuple[Layer, ...]
    candidates: tuple[Candidate, ...]
    open: NDArray[np.bool_]
    edges: tuple[str, ...] = ()
    agreements: tuple[Agreement, ...] = ()

    def of(self, layer: str) -> list[Candidate]:
        """Candidates of one layer."""
        row = self.open[[la.name for la in self.layers].index(layer)]
        return [c for c, taken in zip(self.candidates, row, strict=True) if taken]


def make_choices(model: Model, candidates: Sequence[Candidate], config: Config) -> Choices:
    """The candidates of a model's layers; first and last ones get theirs raised to ``edge_bits``.

    A layer that may not have a candidate on the target gets the least that has as many bits in its place.

    Args:
        model: prepared.
        candidates: to choose from.
        config: for ``edge_bits`` and the target.
    """
    layers, _ = find_layers(model)
    first, last = edge_layers(model, layers)
    edges = tuple(layer.name for layer in layers if layer.name in first | last)
    raised = tuple(_raised(c, config) for c in candidates)
    given = [
        [config.rules.least(layer.op, c) for c in (raised if layer.name in edges else candidates)] for layer in layers
    ]
    columns = tuple(dict.fromkeys((*candidates, *raised, *(c for some in given for c in some))))
    rows = [[c in some for c in columns] for some in given]
    taken = np.array(rows, bool).reshape(len(layers), len(columns))
    used: NDArray[np.bool_] = np.asarray(taken.any(axis=0))
    columns = tuple(c for c, some in zip(columns, used, strict=True) if some)
    return Choices(layers, columns, taken[:, used], edges, find_agreements(model, layers))


def find_agreements(model: Model, layers: Sequence[Layer]) -> tuple[Agreement, ...]:
    """Layers that share their weights, and layers that read one tensor or parts of one Concat.

    A tensor that is read at two widths would be quantised twice, and a Concat needs one grid for its inputs.
    """
    classes = _Classes()
    for node in model.graph.nodes:
        if node.op in CARRYING:
            data = node.inputs if node.op == "Concat" else node.inputs[:1]
            for tensor in (*data, *node.outputs[1:]):
                classes.join(node.outputs[0].name, tensor.name)
    by_weight: dict[str, list[str]] = {}
    by_input: dict[str, list[str]] = {}
    for layer in layers:
        by_weight.setdefault(layer.weight, []).append(layer.name)
        by_input.setdefault(classes.of(layer.input), []).append(layer.name)
    shared = [Agreement(tuple(names), weights=True) for names in by_weight.values() if len(names) > 1]
    read = [Agreement(tuple(names), weights=False) for names in by_input.values() if len(names) > 1]
    return (*shared, *read)


def _raised(candidate: Candidate, config: Config) -> Candidate:
    """A candidate as a first or last layer takes it."""
    if config.edge_bits == "same" or candidate == FLOAT:
        return candidate
    return Candidate(max(candidate.weights, config.edge_bits), max(candidate.activations, config.edge_bits))


class _Classes:
    """Names sorted into classes by pairs that belong together."""

    def __init__(self) -> None:
        self._parent: dict[str, str] = {}

    def of(self, name: str) -> str:
        """The name that stands for a class."""
        while self._parent.get(name, name) != name:
            name = self._parent[name]
        return name

    def join(self, a: str, b: str) -> None:
        """Put two names into one class."""
        self._parent[self.of(b)] = self.of(a)
