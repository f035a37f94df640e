"""A few rows of chosen tensors of a model: their last axes at positions of real tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.execute.ort import Arrays, Session
from onnxq.execute.tokens import read_mask, real_positions
from onnxq.ir.outline import Outline

Array = NDArray[np.float32]

SAMPLES_AT_ONCE = 8
"""Samples run together: the tensors of all layers are held for so many."""


def rows_of_tensors(
    model: Outline,
    tensors: Sequence[str],
    feeds: Iterable[Mapping[str, NDArray[np.generic]]],
    mask: str | None,
    count: int,
) -> dict[str, Array]:
    """Rows of tensors at evenly spread positions, (rows, channels) by name.

    Args:
        model: its outputs change.
        tensors: names of the tensors wanted.
        feeds: samples.
        mask: name of the input that is 0 for padding, which is left out.
        count: rows of each tensor at most.
    """
    graph = model.proto.graph
    given = {i.name for i in graph.input}
    made_inside = [name for name in tensors if name not in given]
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in made_inside)
    session = Session(model, "the model up to its layers' inputs") if made_inside else None
    any_batch = _any_batch(graph)
    gathered: dict[str, list[Array]] = {name: [] for name in tensors}
    for feed in _parts(feeds, any_batch):
        made = {**feed, **(session.run(feed) if session else {})}
        real = read_mask(feed, mask)
        for name in tensors:
            values = made[name]
            wanted = real_positions(real, values.shape[:-1])
            rows = values.reshape(-1, values.shape[-1]) if wanted is None else values[wanted]
            gathered[name].append(rows.astype(np.float32))
    return {name: _spread(np.concatenate(parts), count) for name, parts in gathered.items()}


def _spread(rows: Array, count: int) -> Array:
    return rows[:: -(-len(rows) // count)] if len(rows) > count else rows


def _any_batch(graph: onnx.GraphProto) -> bool:
    """Whether the model leaves the number of samples open."""
    given = {t.name for t in graph.initializer}
    dims = [i.type.tensor_type.shape.dim for i in graph.input if i.name not in given]
    return all(len(d) > 0 and not d[0].HasField("dim_value") for d in dims)


def _parts(feeds: Iterable[Mapping[str, NDArray[np.generic]]], cut: bool) -> Iterator[Arrays]:
    """The feeds, or smaller ones where they may be cut and their samples lie along the first axis."""
    for feed in feeds:
        arrays = {name: np.asarray(value) for name, value in feed.items()}
        lengths = {len(a) if a.ndim else 0 for a in arrays.values()}
        length = lengths.pop() if len(lengths) == 1 else 0
        if not cut or length <= SAMPLES_AT_ONCE:
            yield arrays
            continue
        for first in range(0, length, SAMPLES_AT_ONCE):
            yield {name: a[first : first + SAMPLES_AT_ONCE] for name, a in arrays.items()}
