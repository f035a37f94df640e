"""Complete feeds stacked in one array an input: samples of a model whose inputs have no axis of samples in common.

The state of a recurrent network has its layers or its single direction first. Many samples of such a model may come
with one more axis in front that counts them, or, where the model fixes the first axes, one behind the other along
these.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from onnxq.data.feed import Piece, Signature
from onnxq.ir.tensor import fixed_batches

Shapes = Mapping[str, Sequence[int]]


def feeds_in(shapes: Shapes, signature: Signature) -> int:
    """Complete feeds that arrays of some shapes hold; 1 where they are one, or fit the model in no way."""
    return max(_stacked(shapes, signature) or 1, _in_a_row(shapes, signature) or 1)


def complete_feeds(piece: Piece, signature: Signature) -> Iterator[Piece]:
    """The feeds in a piece, one by one; the piece itself where it is one."""
    shapes = {name: array.shape for name, array in piece.arrays.items()}
    count, along = _stacked(shapes, signature), _in_a_row(shapes, signature)
    if count is not None:
        for index in range(count):
            yield Piece(piece.origin, {name: array[index] for name, array in piece.arrays.items()})
    elif along is not None:
        for index in range(along):
            arrays = {}
            for name, array in piece.arrays.items():
                length = len(array) // along
                arrays[name] = array[index * length : (index + 1) * length]
            yield Piece(piece.origin, arrays)
    else:
        yield piece


def _stacked(shapes: Shapes, signature: Signature) -> int | None:
    """Length of an axis in front of all that the model takes; None where there is none."""
    wanted = {info.name: info.shape for info in signature.inputs}
    lengths = set()
    for name, expected in wanted.items():
        shape = shapes.get(name)
        if not shape or expected is None or not _fits(shape[1:], expected):
            return None
        lengths.add(int(shape[0]))
    return lengths.pop() if len(lengths) == 1 else None


def _in_a_row(shapes: Shapes, signature: Signature) -> int | None:
    """How many times the first axes that the model fixes lie one behind the other; None where they do not."""
    counts = set()
    for info in signature.inputs:
        shape = shapes.get(info.name)
        if not shape or not info.shape or len(shape) != len(info.shape) or not _fits(shape[1:], info.shape[1:]):
            return None
        first = info.shape[0] or 1
        if shape[0] % first:
            return None
        counts.add(int(shape[0]) // first)
    return counts.pop() if len(counts) == 1 and fixed_batches(signature.inputs) else None


def _fits(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    return len(shape) == len(expected) and all(e is None or s == e for s, e in zip(shape, expected, strict=True))
