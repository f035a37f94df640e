"""Samples that are unlike all others: not normalized, say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.data import Feed, samples_in
from onnxq.ir.model import Remark

APART, MISTAKEN = 8.0, 32.0
"""Factors by which the range of a sample exceeds the largest of all others, from which on it is named, and taken for a
mistake: pictures of 0 to 255 among normalized ones. Loud passages among quiet ones differ step by step."""

SHARE = 8
"""At most one sample in so many is an outlier; more are a part of the data."""

FEWEST = 3
"""Samples among which one can be told from the others."""

NAMED = 5
"""Samples named at most."""


@dataclass(frozen=True)
class Unlike:
    """Samples that lie far apart from the others.

    Attributes:
        samples: indices of those that are taken for mistakes, and left out.
        remarks: one for every input in which there are any, mistakes or not.
    """

    samples: frozenset[int] = frozenset()
    remarks: tuple[Remark, ...] = ()


def find_unlike(feeds: Sequence[Feed]) -> Unlike:
    """The samples that lie far apart from the others in an input.

    Args:
        feeds: batches of samples.
    """
    ranges: dict[str, list[NDArray[np.float64]]] = {}
    for feed in feeds:
        for name, (low, high) in _ranges(feed).items():
            ranges.setdefault(name, []).append(np.stack([low, high]))
    found = Unlike()
    for name, parts in ranges.items():
        low, high = np.concatenate(parts, axis=1)
        reach = np.maximum(np.abs(low), np.abs(high))
        few, mistaken = _apart(reach, APART), _apart(reach, MISTAKEN)
        kinds = ((mistaken, True), (np.setdiff1d(few, mistaken), False))
        others = np.setdiff1d(np.arange(len(reach)), few)
        remarks = [_remark(name, kind, others, low, high, mistaken=gone) for kind, gone in kinds if len(kind)]
        found = Unlike(found.samples | set(mistaken.tolist()), (*found.remarks, *remarks))
    return found


def _ranges(feed: Feed) -> Mapping[str, tuple[NDArray[np.float64], NDArray[np.float64]]]:
    """Smallest and largest value of each sample of a feed's floating-point inputs."""
    found, count = {}, samples_in(feed)
    for name, value in feed.items():
        values = np.asarray(value)
        if np.issubdtype(values.dtype, np.floating) and values.ndim and len(values) == count and values.size:
            rows = values.reshape(count, -1).astype(np.float64)
            found[name] = rows.min(axis=1), rows.max(axis=1)
    return found


def _apart(reach: NDArray[np.float64], factor: float) -> NDArray[np.intp]:
    """Indices of the few samples that reach far beyond all others, in their order."""
    order = np.argsort(-reach, kind="stable")
    counts = range(1, max(len(reach) // SHARE, int(len(reach) >= FEWEST)) + 1)
    gaps = [count for count in counts if 0 < factor * reach[order[count]] < reach[order[count - 1]]]
    return np.sort(order[: max(gaps, default=0)])


def _remark(
    name: str,
    few: NDArray[np.intp],
    others: NDArray[np.intp],
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    *,
    mistaken: bool,
) -> Remark:
    named = ", ".join(f"{i} ({low[i]:.4g} to {high[i]:.4g})" for i in few[:NAMED].tolist())
    more = f" and {len(few) - NAMED} more" if len(few) > NAMED else ""
    which, lie, are = ("sample", "lies", "is") if len(few) == 1 else ("samples", "lie", "are")
    what = f"{are} left out" if mistaken else f"{'counts' if len(few) == 1 else 'count'} for less in the ranges"
    return Remark(
        "network",
        f"input {name}: {which} {named}{more} {lie} far outside the range of all others "
        f"({low[others].min():.4g} to {high[others].max():.4g}): {what}; "
        "prepare such samples like the others, or take them out",
    )
