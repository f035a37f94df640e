"""A few rows of chosen tensors of a model: their channels at positions of real tokens, or of feature maps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.calibration.padding import Mask, read_mask, real_positions
from onnxq.ir.model import Model
from onnxq.ir.save import to_outline
from onnxq.ir.tensor import has_fixed_batch
from onnxq.runtime.session import Arrays, Session

Array = NDArray[np.float32]
Feed = Mapping[str, NDArray[np.generic]]

SAMPLES_AT_ONCE = 8
"""Samples run together at most: the tensors of all layers are held for so many."""

ROOM = 1 << 28
"""Bytes of these tensors beyond which fewer samples are run together."""

GOLDEN = (5**0.5 - 1) / 2


def rows_of_tensors(
    model: Model, axes: Mapping[str, int], feeds: Sequence[Feed], mask: str | None, count: int
) -> dict[str, Array]:
    """Rows of tensors at spread positions, as many from each sample, (rows, channels) by name.

    Args:
        model: whose tensors they are.
        axes: which axis of the tensors wanted counts their channels, by name.
        feeds: samples.
        mask: name of the input that is 0 for padding, which is left out.
        count: rows of each tensor at most.
    """
    outline = to_outline(model)
    graph = outline.proto.graph
    given = {i.name for i in graph.input}
    made_inside = [name for name in axes if name not in given]
    del graph.output[:]
    graph.output.extend(onnx.ValueInfoProto(name=name) for name in made_inside)
    session = Session(outline, "the model up to its layers' inputs") if made_inside else None
    samples = sum(max(_length(feed), 1) for feed in feeds)
    gathered: dict[str, list[Array]] = {name: [] for name in axes}
    for feed, made in _run(feeds, session, not has_fixed_batch(model.inputs)):
        real, share = read_mask(feed, mask), count * max(_length(feed), 1) / samples
        for name, axis in axes.items():
            values = np.asarray(feed[name] if name in feed else made[name], np.float32)
            gathered[name].append(_some(np.moveaxis(values, axis, -1), real, max(round(share), 1)))
    return {name: np.concatenate(parts) for name, parts in gathered.items()}


def _some(values: Array, real: Mask | None, count: int) -> Array:
    """At most so many rows of a tensor whose channels are its last axis, spread without a period of their own."""
    positions = real_positions(real, values.shape[:-1])
    places = np.arange(int(np.prod(values.shape[:-1]))) if positions is None else np.flatnonzero(positions)
    if len(places) > count:
        places = places[np.unique((np.arange(count) * GOLDEN % 1 * len(places)).astype(np.intp))]
    rows: Array = values[np.unravel_index(places, values.shape[:-1])]
    return rows


def _run(feeds: Sequence[Feed], session: Session | None, cut: bool) -> Iterator[tuple[Feed, Arrays]]:
    """The feeds and what comes of them, in smaller ones where they may be cut and their samples lie along one axis."""
    at_once = 1
    for feed in feeds:
        length, first = _length(feed), 0
        while first < max(length, 1):
            size = at_once if cut and length else max(length, 1)
            whole = not first and size >= length
            part = feed if whole else {name: a[first : first + size] for name, a in feed.items()}
            made = session.run(part) if session else {}
            yield part, made
            first += size
            each = sum(a.nbytes for a in made.values()) / max(_length(part), 1)
            at_once = int(np.clip(ROOM // max(each, 1), 1, SAMPLES_AT_ONCE))


def _length(feed: Feed) -> int:
    """Samples along the first axis of all arrays; 0 where these differ."""
    lengths = {len(a) if np.ndim(a) else 0 for a in feed.values()}
    return lengths.pop() if len(lengths) == 1 else 0
