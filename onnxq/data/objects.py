"""Python objects as sources: arrays, mappings of arrays, and iterables of batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.data.feed import Feed, Piece, Signature
from onnxq.data.stacked import feeds_in
from onnxq.errors import CalibrationError


@dataclass(frozen=True)
class Array:
    """One array, for a single-input model, first axis samples."""

    value: NDArray[Any]
    name: str = "the array given"

    def pieces(self, signature: Signature, rows: int) -> Iterator[Piece]:
        """The array, whole: whoever cuts it takes views."""
        yield Piece(self.name, {signature.only(self.name).name: self.value})

    def count(self, signature: Signature | None) -> int | None:
        """Length of the first axis."""
        return _length(self.value, signature)


@dataclass(frozen=True)
class Arrays:
    """One array per input, first axis samples."""

    values: Feed
    name: str = "the mapping given"

    def pieces(self, signature: Signature, rows: int) -> Iterator[Piece]:
        """The arrays, whole: whoever cuts them takes views."""
        yield Piece(self.name, self.values)

    def count(self, signature: Signature | None) -> int | None:
        """Length of the first axis, where all arrays (or all inputs) agree on it."""
        shapes = {key: array.shape for key, array in self.values.items()}
        signature = None if signature is None else signature.settled(shapes)
        if signature is not None and not signature.has_sample_axis:
            return feeds_in(shapes, signature)
        lengths = {
            _length(array, signature) for key, array in self.values.items() if signature is None or signature.takes(key)
        }
        return lengths.pop() if len(lengths) == 1 else None


@dataclass(frozen=True)
class Batches:
    """An iterable of batches: mappings ``{input: array}``, or arrays for a single-input model.

    Lists, generators and data loaders alike; each batch is asked for when the ones before are used
    up. Anything with ``__array__`` counts as an array.
    """

    values: Iterable[Any]

    @property
    def name(self) -> str:
        """What it is, and that a generator runs only once: the likeliest reason why nothing came."""
        kind = type(self.values).__name__
        once = " (which can be read only once)" if isinstance(self.values, Iterator) else ""
        return f"the {kind} given{once}"

    def pieces(self, signature: Signature, rows: int) -> Iterator[Piece]:
        """One piece a batch.

        Raises:
            CalibrationError: a batch is neither an array nor a mapping of arrays. What the iterable
                itself raises passes through.
        """
        for number, batch in enumerate(self.values):
            origin = f"batch {number} of the {type(self.values).__name__} given"
            if isinstance(batch, Mapping):
                yield Piece(origin, as_arrays(batch, origin))
            elif isinstance(batch, (list, tuple, str)) or batch is None:
                raise CalibrationError(
                    f"{origin} is a {type(batch).__name__} where an array or a mapping {{input: array}} is expected: "
                    "pick the inputs out of it, as in ({'input': x} for x, label in loader)"
                )
            else:
                yield Piece(origin, {signature.only(origin).name: as_array(batch, origin)})

    def count(self, signature: Signature | None) -> int | None:
        """Unknown: counting would use the batches up."""
        return None


def as_array(value: object, origin: str) -> NDArray[Any]:
    """The value as a numpy array, without a copy where it already is one inside.

    Raises:
        CalibrationError: it cannot be converted.
    """
    try:
        return np.asarray(value)
    # Ragged lists are a ValueError; tensors on a device or with gradients raise the other two.
    except (ValueError, TypeError, RuntimeError) as error:
        raise CalibrationError(
            f"{origin} cannot be turned into a numpy array ({error}): convert it with numpy.asarray beforehand"
        ) from error


def as_arrays(values: Mapping[Any, Any], origin: str) -> Feed:
    """A mapping of array-like values as arrays.

    Raises:
        CalibrationError: a value cannot be converted.
    """
    return {str(name): as_array(value, f"{origin}, input {name!r},") for name, value in values.items()}


def _length(array: NDArray[Any], signature: Signature | None) -> int | None:
    if signature is not None and not signature.has_sample_axis:
        return 1
    return len(array) if array.ndim else None
