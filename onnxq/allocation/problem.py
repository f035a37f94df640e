"""All that an allocation is made from, as a file too."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.allocation.json_file import parsed, read_text
from onnxq.allocation.sensitivity_table import CostTable, Matrix, SensitivityTable
from onnxq.config.bit_widths import Candidate, parse_candidate
from onnxq.config.budget import LOSS
from onnxq.errors import ConfigError


@dataclass(frozen=True)
class Agreement:
    """Layers that must not be decided apart.

    Attributes:
        layers: names, at least two.
        weights: they share their weights, hence the whole candidate; otherwise the bits of their inputs alone.
    """

    layers: tuple[str, ...]
    weights: bool


@dataclass(frozen=True)
class AllocationProblem:
    """Everything an allocation is made from.

    Attributes:
        sensitivity: what each layer loses at each candidate.
        costs: what each layer spends at each candidate.
        agreements: layers decided together.
        edges: names of the first and last layers.
        model: file name of the model that the tables were made of.
    """

    sensitivity: SensitivityTable
    costs: CostTable
    agreements: tuple[Agreement, ...] = ()
    edges: tuple[str, ...] = ()
    model: str = ""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names, in graph order."""
        return self.sensitivity.layers

    @property
    def candidates(self) -> tuple[Candidate, ...]:
        """What each layer may take."""
        return self.sensitivity.candidates

    @property
    def quantities(self) -> tuple[str, ...]:
        """What a budget may limit."""
        return (LOSS, *self.costs.values)

    def matrix(self, quantity: str) -> NDArray[np.float64]:
        """Losses or costs, (layers, candidates), NaN where there is none.

        Raises:
            ConfigError: the tables do not hold that quantity.
        """
        if quantity != LOSS and quantity not in self.costs.values:
            how = (
                ": measure it with onnxq sensitivity --latency, or give --latency-table"
                if quantity == "latency"
                else ""
            )
            raise ConfigError(f"the table holds no {quantity}; it holds {', '.join(self.quantities)}{how}.")
        return np.array(self.sensitivity.loss if quantity == LOSS else self.costs.values[quantity], np.float64)

    def to_json(self) -> str:
        """One JSON object."""
        s, c = self.sensitivity, self.costs
        plain = {
            "model": self.model,
            "layers": s.layers,
            "candidates": [str(x) for x in s.candidates],
            "edges": self.edges,
            "agreements": [{"layers": a.layers, "weights": a.weights} for a in self.agreements],
            "sensitivity": {
                "metric": s.metric,
                "method": s.method,
                "samples": s.samples,
                "loss": _plain(s.loss),
                "error": _plain(s.error),
                "reference": {name: str(x) for name, x in s.reference.items()},
                "reference_loss": s.reference_loss,
            },
            "costs": {
                q: {
                    "values": _plain(c.values[q]),
                    "whole": c.whole[q] if math.isfinite(c.whole[q]) else None,
                    "rest": c.rest[q],
                    "source": c.sources.get(q, ""),
                }
                for q in c.values
            },
        }
        return json.dumps(plain, allow_nan=False)


def problem_from_json(text: str, what: str = "the table") -> AllocationProblem:
    """The problem that :meth:`AllocationProblem.to_json` wrote.

    Raises:
        ConfigError: it is something else.
    """
    return parsed(text, what, _problem, "onnxq sensitivity")


def read_problem(path: Path) -> AllocationProblem:
    """The problem in a file.

    Raises:
        ConfigError: it cannot be read or holds something else.
    """
    return problem_from_json(read_text(path, "table"), f"table {path}")


def _problem(plain: Any) -> AllocationProblem:
    layers = tuple(plain["layers"])
    candidates = tuple(parse_candidate(word) for word in plain["candidates"])
    s, costs = plain["sensitivity"], plain["costs"]
    shape = (len(layers), len(candidates))
    sensitivity = SensitivityTable(
        layers=layers,
        candidates=candidates,
        loss=_matrix(s["loss"], shape),
        error=_matrix(s["error"], shape),
        metric=str(s["metric"]),
        method=str(s["method"]),
        samples=int(s["samples"]),
        reference={name: parse_candidate(word) for name, word in s["reference"].items()},
        reference_loss=float(s["reference_loss"]),
    )
    return AllocationProblem(
        sensitivity=sensitivity,
        costs=CostTable(
            layers,
            candidates,
            values={q: _matrix(c["values"], shape) for q, c in costs.items()},
            whole={q: math.nan if c["whole"] is None else float(c["whole"]) for q, c in costs.items()},
            rest={q: float(c["rest"]) for q, c in costs.items()},
            sources={q: str(c["source"]) for q, c in costs.items()},
        ),
        agreements=tuple(Agreement(tuple(a["layers"]), bool(a["weights"])) for a in plain["agreements"]),
        edges=tuple(plain["edges"]),
        model=str(plain["model"]),
    )


def _plain(matrix: Matrix) -> list[list[float | None]]:
    return [[v if math.isfinite(v) else None for v in row] for row in matrix]


def _matrix(rows: Sequence[Sequence[float | None]], shape: tuple[int, int]) -> Matrix:
    found = tuple(tuple(math.nan if v is None else float(v) for v in row) for row in rows)
    if len(found) != shape[0] or any(len(row) != shape[1] for row in found):
        raise ValueError(f"a row for each of {shape[0]} layers and a number for each of {shape[1]} candidates")
    return found
