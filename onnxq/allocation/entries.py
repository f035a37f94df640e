"""The entries of a table of sensitivities, filled one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from onnxq.allocation.choices import Choices, Part
from onnxq.config.bit_widths import Candidate
from onnxq.ir.layer import Layer
from onnxq.quant.solution import LayerSolution


class Entries:
    """Means of losses and their standard errors.

    Attributes:
        mean: (parts, candidates); NaN where nothing was entered.
        error: the same of their standard errors.
    """

    def __init__(self, choices: Choices) -> None:
        self._row = {name: i for i, name in enumerate(choices.names)}
        self._column = {c: i for i, c in enumerate(choices.candidates)}
        self.mean, self.error = (np.full(choices.open.shape, math.nan) for _ in range(2))

    def enter(self, part: Part, candidate: Candidate, differences: NDArray[np.float64]) -> None:
        """Enter what was measured of each sample, (samples,)."""
        place = self._row[part.name], self._column[candidate]
        self.mean[place] = differences.mean()
        spread = differences.std(ddof=1) if len(differences) > 1 else 0.0
        self.error[place] = spread / math.sqrt(len(differences))

    def scale(self, layer: Layer, anchor: Candidate, solved: Mapping[Candidate, LayerSolution]) -> None:
        """Fill a row in proportion to the squared errors of the layer's own output."""
        row, at = self._row[layer.name], self._column[anchor]
        for candidate, solution in solved.items():
            factor = solution.loss / max(solved[anchor].loss, 1e-30)
            self.mean[row, self._column[candidate]] = self.mean[row, at] * factor
            self.error[row, self._column[candidate]] = self.error[row, at] * factor
