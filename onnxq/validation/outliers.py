"""Samples that are unlike all others: not normalised, or empty."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.data import Feed, samples_in
from onnxq.ir.model import Remark

APART = 8.0
"""Factor by which the range of a sample exceeds the largest of all others, from which on it is named. A set that holds
255 times too large values among normalised ones is a mistake; loud passages among quiet ones differ step by step."""

SHARE = 8
"""At most one sample in so many is an outlier; more are a part of the data."""

NAMED = 5
"""Samples named at most."""


@dataclass(frozen=True)
class Unlike:
    """Samples that lie far apart from the others.

    Attributes:
        samples: their indices in the calibration set.
        remarks: one for every input in which there are any.
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
        few = _apart(np.maximum(np.abs(low), np.abs(high)))
        if len(few):
            found = Unlike(found.samples | set(few.tolist()), (*found.remarks, _remark(name, few, low, high)))
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


def _apart(reach: NDArray[np.float64]) -> NDArray[np.intp]:
    """Indices of the few samples that reach far beyond all others, in their order."""
    order = np.argsort(-reach, kind="stable")
    counts = range(1, len(reach) // SHARE + 1)
    gaps = [count for count in counts if 0 < APART * reach[order[count]] < reach[order[count - 1]]]
    return np.sort(order[: max(gaps, default=0)])


def _remark(name: str, few: NDArray[np.intp], low: NDArray[np.float64], high: NDArray[np.float64]) -> Remark:
    named = ", ".join(f"{i} ({low[i]:.4g} to {high[i]:.4g})" for i in few[:NAMED].tolist())
    more = f" and {len(few) - NAMED} more" if len(few) > NAMED else ""
    others = np.setdiff1d(np.arange(len(low)), few)
    which, lie, count = ("sample", "lies", "counts") if len(few) == 1 else ("samples", "lie", "count")
    return Remark(
        "network",
        f"input {name}: {which} {named}{more} {lie} far outside the range of all others "
        f"({low[others].min():.4g} to {high[others].max():.4g}), {count} for little in the ranges and for nothing in "
        "the figures: take such samples out, or prepare them like the others",
    )
