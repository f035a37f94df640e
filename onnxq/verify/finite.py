"""Does a quantized model answer NaN or infinity where the float model answers numbers?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.verify.source import Feed, ModelLike, ModelSource


@dataclass(frozen=True)
class Finiteness:
    """NaN and infinities in the answers of two models.

    Attributes:
        broken: values that are NaN or infinite in the quantized model alone.
        usual: values that are NaN or infinite in the float model.
    """

    broken: int = 0
    usual: int = 0

    @property
    def fault(self) -> bool:
        """Whether it goes beyond what happens at the edge of a region where the float model has no values either."""
        return self.broken > self.usual

    def plus(self, expected: Any, found: Any) -> Finiteness:
        """With one more pair of answers; what is no float array says nothing."""
        comparable = all(is_numeric(a) and np.issubdtype(a.dtype, np.floating) for a in (expected, found))
        if not comparable:
            return self
        finite, missing = np.isfinite(expected), ~np.isfinite(found)
        broken = int(np.count_nonzero(finite & missing if finite.shape == missing.shape else missing))
        return Finiteness(self.broken + broken, self.usual + int(np.count_nonzero(~finite)))


def is_numeric(values: Any) -> bool:
    """Whether an answer of onnxruntime is a tensor of numbers: no sequence, no map, no text, and there at all."""
    return isinstance(values, np.ndarray) and values.dtype.kind in "fiub"


def finiteness(
    quantized: ModelLike, batches: Iterable[tuple[Feed, Mapping[str, NDArray[Any]]]]
) -> dict[str, Finiteness]:
    """NaN and infinities of each output at the default level.

    Args:
        quantized: path or proto.
        batches: feeds and the float model's outputs for each, by name.
    """
    source = ModelSource.open(quantized, "quantised")
    session = source.start()
    judged = {name: Finiteness() for name in source.outputs}
    for feed, expected in batches:
        found = session.run(list(source.outputs), source.fit(feed))
        judged = {n: judged[n].plus(expected.get(n), f) for n, f in zip(source.outputs, found, strict=True)}
    return judged
