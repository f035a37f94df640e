"""What every layer loses and what it costs at every candidate."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxq.config.bit_widths import Candidate

Matrix = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class SensitivityTable:
    """What each layer's quantization alone does to the network's output.

    Attributes:
        layers: names of layers, tables and products, in graph order: the rows of the matrices.
        candidates: bits that each may take: the columns of the matrices.
        loss: mean over the samples of the loss with this layer at this candidate minus that of the reference
            network, (layers, candidates); negative where quantizing helps; NaN where it was not measured.
        error: standard error of each mean in ``loss``, from the samples' own differences.
        metric: ``kl`` (mean over softmax outputs, nats) or ``mse`` (relative to the output's variance).
        method: ``full`` where every entry was measured; ``scaled`` where a layer's entries but one are its own
            output's squared error times a factor that the one measured gives.
        samples: number of samples that it was measured on.
        reference: bits of the network whose layers were changed one at a time; empty for the float network.
        reference_loss: loss of the reference network.
    """

    layers: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    loss: Matrix
    error: Matrix
    metric: str
    method: str
    samples: int
    reference: Mapping[str, Candidate] = field(default_factory=dict)
    reference_loss: float = 0.0

    def predicted(self, choice: Mapping[str, Candidate]) -> tuple[float, float]:
        """Loss of an allocation if losses add up, and its standard error if they are independent."""
        rows = [(i, self.candidates.index(choice[name])) for i, name in enumerate(self.layers)]
        total = self.reference_loss + math.fsum(self.loss[i][j] for i, j in rows)
        return total, math.sqrt(math.fsum(self.error[i][j] ** 2 for i, j in rows))


@dataclass(frozen=True)
class CostTable:
    """What each layer spends at each candidate.

    Attributes:
        layers: as in the table of sensitivities.
        candidates: as there.
        values: by quantity, (layers, candidates); NaN where a candidate cannot run.
        whole: by quantity, what the float network spends; NaN where that is not known.
        rest: by quantity, what the network spends besides its layers.
        sources: by quantity, where the numbers come from.
    """

    layers: tuple[str, ...]
    candidates: tuple[Candidate, ...]
    values: Mapping[str, Matrix]
    whole: Mapping[str, float]
    rest: Mapping[str, float]
    sources: Mapping[str, str] = field(default_factory=dict)

    def total(self, quantity: str, choice: Mapping[str, Candidate]) -> float:
        """What an allocation spends."""
        rows = self.values[quantity]
        spent = (rows[i][self.candidates.index(choice[name])] for i, name in enumerate(self.layers))
        return self.rest[quantity] + math.fsum(spent)

    def merged(self, other: CostTable) -> CostTable:
        """Both tables' quantities; the other's where both have one."""
        return CostTable(
            self.layers,
            self.candidates,
            {**self.values, **other.values},
            {**self.whole, **other.whole},
            {**self.rest, **other.rest},
            {**self.sources, **other.sources},
        )


def as_matrix(array: NDArray[np.float64]) -> Matrix:
    """An array as the tables hold it."""
    return tuple(tuple(float(v) for v in row) for row in array)
