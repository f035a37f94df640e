"""Small allocation problems drawn at random, and their optimum by trying everything."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from onnxq.allocation.problem import Agreement, AllocationProblem
from onnxq.allocation.sensitivity_table import CostTable, SensitivityTable, as_matrix
from onnxq.config.bit_widths import Candidate

CANDIDATES = tuple(Candidate(w, a) for w in (2, 4, 8) for a in (4, 8))


def problem(
    loss: Sequence[Sequence[float]],
    costs: Mapping[str, Sequence[Sequence[float]]],
    candidates: Sequence[Candidate] = CANDIDATES,
    agreements: tuple[Agreement, ...] = (),
    in_float: float = 100.0,
    rest: float = 0.0,
    reference_loss: float = 0.0,
) -> AllocationProblem:
    """A problem from its numbers; layers are called a, b, c …, and each spends ``in_float`` in float."""
    names = tuple(chr(ord("a") + i) for i in range(len(loss)))
    losses = as_matrix(np.array(loss, np.float64))
    return AllocationProblem(
        SensitivityTable(
            names, tuple(candidates), losses, losses, "kl", "full", samples=8, reference_loss=reference_loss
        ),
        CostTable(
            names,
            tuple(candidates),
            {q: as_matrix(np.array(rows, np.float64)) for q, rows in costs.items()},
            {q: rest + in_float * len(names) for q in costs},
            dict.fromkeys(costs, rest),
        ),
        agreements,
    )


def drawn(rng: np.random.Generator) -> AllocationProblem:
    """Two to four layers, two to six candidates; every other problem in small whole numbers, so full of ties."""
    layers, count = int(rng.integers(2, 5)), int(rng.integers(2, 7))
    whole = bool(rng.integers(2))

    def numbers(low: int) -> np.ndarray:
        shape = (layers, count)
        return rng.integers(low, 6, shape).astype(float) if whole else rng.normal(0.5, 1.0, shape) + low + 1

    agreements = []
    if rng.integers(2):
        pair = rng.choice(layers, 2, replace=False)
        agreements.append(Agreement(tuple(chr(ord("a") + int(i)) for i in pair), bool(rng.integers(2))))
    return problem(numbers(-1), {"size": numbers(1), "bops": np.abs(numbers(1))}, CANDIDATES[:count], tuple(agreements))


def agree(found: AllocationProblem, choice: Mapping[str, Candidate]) -> bool:
    """Whether a choice keeps the agreements."""
    for agreement in found.agreements:
        kinds = {choice[n] if agreement.weights else choice[n].activations for n in agreement.layers}
        if len(kinds) > 1:
            return False
    return True


def brute_force(found: AllocationProblem, minimised: str, limits: Mapping[str, float]) -> float | None:
    """The least of a quantity over all choices within the limits; None where there is none."""
    tables = {q: found.matrix(q) for q in (minimised, *limits)}
    best = math.inf
    rows = range(len(found.layers))
    for columns in itertools.product(range(len(found.candidates)), repeat=len(found.layers)):
        choice = {name: found.candidates[c] for name, c in zip(found.layers, columns, strict=True)}
        if agree(found, choice):
            spent = {q: math.fsum(t[i, c] for i, c in zip(rows, columns, strict=True)) for q, t in tables.items()}
            if all(spent[q] <= limit + 1e-9 * abs(limit) for q, limit in limits.items()):
                best = min(best, spent[minimised])
    return None if best == math.inf else best
