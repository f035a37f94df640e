"""How close the outputs of the simulated quantized network are to the float network's, whatever they are made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from onnxq.errors import NotFiniteError
from onnxq.ir.model import Remark
from onnxq.quant.decibels import decibels
from onnxq.verify import Finiteness, is_numeric


@dataclass
class _Output:
    """Sums over the batches taken in.

    Attributes:
        signal, noise: squares of the float values and of the errors, over values finite in both networks.
        values, equal: numbers, and those that are the same.
        apart: why the networks may differ in it without a fault; None where they may not.
        whole: they are integers or truth values.
        uneven: batches whose shapes differ between the networks.
        told: batches that hold no tensor of numbers.
        finiteness: NaN and infinities.
    """

    apart: str | None = None
    signal: float = 0.0
    noise: float = 0.0
    values: int = 0
    equal: int = 0
    whole: bool = False
    uneven: int = 0
    told: int = 0
    finiteness: Finiteness = field(default_factory=Finiteness)

    def add(self, exact: Any, found: Any) -> None:
        """Take in one batch of both networks."""
        if not is_numeric(exact) or not is_numeric(found):
            self.told += 1
            return
        self.finiteness = self.finiteness.plus(exact, found)
        if self.apart or exact.shape != found.shape:
            self.uneven += exact.shape != found.shape
            return
        self.whole |= not np.issubdtype(exact.dtype, np.floating)
        self.values += exact.size
        self.equal += int(np.count_nonzero((exact == found) | ((exact != exact) & (found != found))))
        a, b = exact.astype(np.float64), found.astype(np.float64)
        finite = np.isfinite(a) & np.isfinite(b)
        self.signal += float(np.square(a[finite]).sum())
        self.noise += float(np.square(a[finite] - b[finite]).sum())


def closeness(
    batches: Iterable[tuple[Mapping[str, Any], Mapping[str, Any]]], apart: Mapping[str, str] | None = None
) -> tuple[dict[str, float | None], tuple[Remark, ...]]:
    """Signal to noise of every output that has one, and what is to be said of the others.

    Args:
        batches: the outputs of the float and of the quantized network, by name.
        apart: tensors in which the two may differ without a fault, and why.

    Returns:
        10·log₁₀(Σ float² / Σ (float − quantized)²) over values that are finite in both; None where they are equal,
        and of outputs that are no floats or cannot be compared, of which there is a remark.

    Raises:
        NotFiniteError: an output is NaN or infinite where the float network's is not.
    """
    outputs: dict[str, _Output] = {}
    for exact, found in batches:
        for name, values in exact.items():
            outputs.setdefault(name, _Output(apart=(apart or {}).get(name))).add(values, found[name])
    broken = next((name for name, output in outputs.items() if output.finiteness.fault), None)
    if broken is not None:
        raise NotFiniteError(f"output {broken!r}")
    sqnr = {
        name: None if o.told or o.apart or o.uneven or o.whole else decibels(o.signal, o.noise)
        for name, o in outputs.items()
    }
    return sqnr, tuple(Remark("network", text) for name, output in outputs.items() for text in _told(name, output))


def _told(name: str, output: _Output) -> Iterator[str]:
    if output.told:
        yield f"output {name} is no tensor of numbers in every sample: what it holds is not compared"
    if output.apart or output.uneven:
        yield (
            f"output {name} is not compared: {output.apart or 'its length depends on values'}"
            + (f" (it differs in shape in {output.uneven} batches)" if output.uneven else "")
        )
    if output.whole and output.equal < output.values:
        share = 100 * output.equal / output.values
        yield f"output {name} holds integers, {share:.1f}% of which are those of the float model on these samples"
    if output.finiteness.usual:
        yield (
            f"output {name} is not finite in {output.finiteness.usual:,} values of the float model, and in "
            f"{output.finiteness.broken:,} others of the quantised model: its signal to noise is that of the values "
            "that are finite in both"
        )
