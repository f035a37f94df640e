"""What is known of a graph input or output: name, element type and shape."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class TensorInfo:
    """A graph input or output.

    Attributes:
        name: as it stands in the model.
        dtype: element type in numpy's words.
        shape: one entry an axis; ``None`` where the model leaves the size open. ``None`` as a
            whole when even the rank is unknown.
    """

    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int | None, ...] | None

    def describe(self) -> str:
        """The tensor in the words of an error message, such as ``image float32 [?, 3, 32, 32]``."""
        axes = "any shape" if self.shape is None else f"[{', '.join('?' if d is None else str(d) for d in self.shape)}]"
        return f"{self.name} {self.dtype.name} {axes}"


def fixed_batches(inputs: Iterable[TensorInfo]) -> tuple[int, ...]:
    """The sizes that inputs fix their first axes at, each once, in their order."""
    return tuple(dict.fromkeys(i.shape[0] for i in inputs if i.shape and i.shape[0] is not None))


def has_fixed_batch(inputs: Iterable[TensorInfo]) -> bool:
    """Whether an input has a batch size of its own, or none that is known, which nodes may rely on."""
    inputs = tuple(inputs)
    return bool(fixed_batches(inputs)) or not all(i.shape for i in inputs)
