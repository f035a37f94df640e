"""The calibration set cut into what is fitted and what is judged by.

With many samples every eighth is kept back from all that is fitted, and judges it. With few, a figure that eighth
could give would be worth nothing, and the samples are missed where they are fitted: the network is made several times
from parts of them, each judged by the rest (cross-fitting; Stone, "Cross-validatory choice and assessment of
statistical predictions", J. R. Stat. Soc. B 1974), and once more from all. One sample can judge nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.hold_out import FEW, HoldOut, KeepBack
from onnxq.data import Feed, samples_in

FOLDS = {True: 6, False: 3}
"""Times that a network is made for cross-fitting, by whether it is small: the more, the less samples each lacks. As
often as there are samples, where these are fewer."""

FEW_FOLDS, ENOUGH_FOR_FEW = {True: 3, False: 2}, {True: FEW, False: 16}
"""Times where there are so many samples that half of them, or two thirds, are enough to fit."""

SMALL, ENOUGH_FOR_SMALL = 300_000, 128
"""A network of so many weights at most is cross-fitted up to so many samples, for it takes seconds."""


class Part(Sequence[Feed]):
    """Some samples of a sequence of feeds, cut when they are asked for.

    Args:
        feeds: all of them.
        chosen: which samples of each feed, (samples,) each.
        starts: index of each feed's first sample.
    """

    def __init__(self, feeds: Sequence[Feed], chosen: Sequence[NDArray[np.bool_]], starts: Sequence[int]) -> None:
        self._feeds = feeds
        self._places = [(i, mask) for i, mask in enumerate(chosen) if mask.any()]
        found = [starts[i] + np.flatnonzero(mask) for i, mask in self._places]
        self.indices: NDArray[np.int64] = np.concatenate([np.zeros(0, np.int64), *found])

    def __len__(self) -> int:
        """Feeds that hold any of the samples."""
        return len(self._places)

    def __getitem__(self, index: Any) -> Any:
        """One feed with its chosen samples, or a list of several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        at, mask = self._places[index]
        feed = self._feeds[at]
        return feed if mask.all() else {name: np.asarray(value)[mask] for name, value in feed.items()}

    def __iter__(self) -> Iterator[Feed]:
        """The feeds in their order."""
        return (self[i] for i in range(len(self)))


def without(feeds: Sequence[Feed], left_out: Collection[int], *, whole: bool) -> Part:
    """All samples but some.

    Args:
        feeds: batches of samples.
        left_out: indices of those; what is in a batch that is not cut stays, unless it is all that is in it.
        whole: batches are not cut.
    """
    counts = [samples_in(feed) for feed in feeds]
    starts = np.cumsum([0, *counts])[:-1].tolist()
    masks = [~np.isin(np.arange(s, s + c), list(left_out)) for s, c in zip(starts, counts, strict=True)]
    return Part(feeds, [np.full(len(m), m.any()) if whole else m for m in masks], starts)


@dataclass(frozen=True)
class Fold:
    """A cut of the calibration set.

    Attributes:
        fitted: samples that a network is made from.
        judged: others, which tell how well it does.
    """

    fitted: Part
    judged: Part


@dataclass(frozen=True)
class Folds:
    """The cuts of a calibration set.

    Attributes:
        cuts: one, or several for cross-fitting; none where there is one sample.
        crossed: the networks that are judged are made from parts of what the last one is made from.
    """

    cuts: tuple[Fold, ...]
    crossed: bool

    @property
    def keep_back(self) -> KeepBack:
        """What the last network keeps samples back for."""
        return KeepBack.FOR_GOOD if self.cuts and not self.crossed else KeepBack.FOR_STARTS


def make_folds(feeds: Sequence[Feed], *, whole: bool, weights: int) -> Folds:
    """The cuts for so many samples.

    Args:
        feeds: batches of samples.
        whole: they are not cut, for the model insists on their size.
        weights: of the network's layers.
    """
    counts = [samples_in(feed) for feed in feeds]
    units = len(counts) if whole else sum(counts)
    if units < 2:
        return Folds((), False)
    small = weights <= SMALL
    if units >= (ENOUGH_FOR_SMALL if small else FEW):
        return Folds((_cut(feeds, counts, HoldOut(units, whole).fitted),), False)
    number = FEW_FOLDS[small] if units >= ENOUGH_FOR_FEW[small] else min(units, FOLDS[small])

    def outside(fold: int) -> Callable[[int, int, int], NDArray[np.bool_]]:
        def fitted(batch: int, start: int, count: int) -> NDArray[np.bool_]:
            unit = np.full(count, batch) if whole else np.arange(start, start + count)
            return np.asarray(unit % number != fold)

        return fitted

    return Folds(tuple(_cut(feeds, counts, outside(fold)) for fold in range(number)), True)


def _cut(feeds: Sequence[Feed], counts: Sequence[int], fitted: Callable[[int, int, int], NDArray[np.bool_]]) -> Fold:
    """A cut by a rule that tells which samples of a batch, by its index, first sample and size, are fitted."""
    starts = np.cumsum([0, *counts])[:-1].tolist()
    masks = [fitted(i, start, count) for i, (start, count) in enumerate(zip(starts, counts, strict=True))]
    return Fold(Part(feeds, masks, starts), Part(feeds, [~mask for mask in masks], starts))
