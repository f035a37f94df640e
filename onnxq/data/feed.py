"""What flows from the samples to the model: feeds, and the pieces that sources cut them from."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import CalibrationError
from onnxq.ir.tensor import TensorInfo, fixed_batches

Feed: TypeAlias = Mapping[str, NDArray[Any]]
"""One batch: one array per model input, first axis samples."""


@dataclass(frozen=True)
class Piece:
    """Some consecutive samples as a source holds them, not yet looked at.

    Attributes:
        origin: where they came from, as the subject of an error message (``calib.npz``, ``batch 3``).
        arrays: one array a name, first axis samples, of any number of samples. The names, shapes
            and types may be wrong still.
    """

    origin: str
    arrays: Feed


@dataclass(frozen=True)
class Signature:
    """What the model takes.

    Attributes:
        inputs: the inputs of the model, in its order.
        ignored: names that a source may hold beside the inputs, such as labels.
        whole: what comes is one feed, whatever its first axes.
    """

    inputs: tuple[TensorInfo, ...]
    ignored: Container[str] = ()
    whole: bool = False

    @property
    def fixed_batch(self) -> int | None:
        """Number of samples that the model insists on, or ``None`` where it takes any number."""
        fixed = fixed_batches(self.inputs)
        return fixed[0] if len(fixed) == 1 and self.has_sample_axis else None

    @property
    def has_sample_axis(self) -> bool:
        """Whether the first axis of every input can count samples.

        It cannot where an input is a scalar, where two inputs fix different first axes, or where one fixes it at
        more than 1 and leaves another axis open beside an input whose first is open: the state of a recurrent
        network has its layers first and the samples behind them. Nor can it where the samples have shown it
        (:meth:`settled`).
        """
        if self.whole or any(info.shape == () for info in self.inputs) or len(fixed_batches(self.inputs)) > 1:
            return False
        shapes = [info.shape for info in self.inputs if info.shape]
        elsewhere = any(shape[0] not in (None, 1) and None in shape for shape in shapes)
        return not (elsewhere and any(shape[0] is None for shape in shapes))

    def settled(self, shapes: Mapping[str, Sequence[int]]) -> Signature:
        """The signature in the light of some samples.

        An input that fixes its first axis at 1 and leaves another open, beside one whose first is open, may be the
        state of a network of one layer. Where the first axes that come differ, it is, and they are one feed.
        """
        known = [info.shape for info in self.inputs if info.shape]
        doubtful = any(s[0] == 1 and None in s for s in known) and any(s[0] is None for s in known)
        lengths = {tuple(shapes[info.name][:1]) for info in self.inputs if info.name in shapes}
        return replace(self, whole=True) if doubtful and self.has_sample_axis and len(lengths) > 1 else self

    def takes(self, name: str) -> bool:
        """Whether the model has an input of that name."""
        return any(info.name == name for info in self.inputs)

    def only(self, origin: str) -> TensorInfo:
        """The one input that nameless samples can be meant for.

        Raises:
            CalibrationError: the model has several inputs.
        """
        if len(self.inputs) != 1:
            names = ", ".join(repr(info.name) for info in self.inputs)
            raise CalibrationError(
                f"{origin} does not say which of the model's {len(self.inputs)} inputs ({names}) it is for: "
                "give one array per input, by name"
            )
        return self.inputs[0]


class Source(Protocol):
    """Samples that lie or arrive somewhere, and can be walked through without holding them all."""

    @property
    def name(self) -> str:
        """What the source is called in messages."""

    def pieces(self, signature: Signature, rows: int) -> Iterator[Piece]:
        """The samples in order.

        Where the model has a sample axis, a source that reads or makes arrays puts at most ``rows``
        samples in a piece; one that is handed arrays passes them on whole. Where the model has
        none, every piece is one complete feed.
        """

    def count(self, signature: Signature | None) -> int | None:
        """Number of samples where it costs little to know, else ``None``.

        Without a signature the answer may be ``None`` where it depends on the model.
        """


def samples_in(feed: Feed) -> int:
    """Number of samples in a feed; 1 where it has no sample axis."""
    return max((len(a) for a in feed.values() if np.ndim(a)), default=1)
