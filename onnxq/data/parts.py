"""Samples set apart from others, so that what was fitted to some can be judged by the rest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from onnxq.data.feed import Feed, samples_in


def content(feeds: Iterable[Feed]) -> Iterator[bytes]:
    """What samples hold, piece by piece: names, types, shapes and values."""
    for feed in feeds:
        for name in sorted(feed):
            array = np.asarray(feed[name])
            yield f"{name} {array.dtype} {array.shape}".encode()
            yield array.tobytes()


def first_feeds(feeds: Iterable[Feed], count: int) -> list[Feed]:
    """The first feeds that hold so many samples, uncut; at least one where there is one."""
    found: list[Feed] = []
    left = count
    for feed in feeds:
        if left <= 0 and found:
            break
        found.append(feed)
        left -= samples_in(feed)
    return found


def set_apart(feeds: Sequence[Feed], count: int, *, whole: bool) -> tuple[Iterator[Feed], list[Feed]]:
    """Samples to fit, and the first ones to judge by: at most as many as asked for, and at most half.

    A single sample, or a single feed that must stay whole, is there for both.

    Args:
        feeds: batches of samples.
        count: of samples to judge by.
        whole: feeds are not cut.
    """
    if whole:
        size = max(samples_in(feeds[0]), 1)
        taken = min(-(-count // size), len(feeds) // 2)
        return (iter(feeds[taken:]), list(feeds[:taken])) if taken else (iter(feeds), list(feeds))
    count = min(count, sum(samples_in(feed) for feed in feeds) // 2)
    return (_after(feeds, count), list(_until(feeds, count))) if count else (iter(feeds), list(feeds))


def _until(feeds: Sequence[Feed], count: int) -> Iterator[Feed]:
    left = count
    for feed in feeds:
        if left <= 0:
            return
        yield _cut(feed, slice(None, left))
        left -= samples_in(feed)


def _after(feeds: Sequence[Feed], count: int) -> Iterator[Feed]:
    left = count
    for feed in feeds:
        size = samples_in(feed)
        if size > left:
            yield _cut(feed, slice(left, None))
        left = max(left - size, 0)


def _cut(feed: Feed, part: slice) -> Feed:
    return {name: np.asarray(value)[part] for name, value in feed.items()}
