"""Batches of one size, whatever batches the samples arrived in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

from onnxq.data.feed import Feed, samples_in
from onnxq.errors import CalibrationError


def rebatch(feeds: Iterable[Feed], batch: int) -> Iterator[Feed]:
    """The same samples in the same order, ``batch`` at a time.

    Only the last feed may be smaller, and one after which the shape of the samples changes (open
    axes): samples of different shapes cannot share an array. How the samples were grouped on
    arrival leaves no trace, so no result can depend on it.

    Args:
        feeds: one array per input, first axis samples, equally long for every input.
        batch: samples a feed, at least 1.

    Yields:
        Feeds of fresh arrays, which the receiver may keep or change. At most two batches are held
        beside the feed at hand.
    """
    held: list[Feed] = []
    room = batch
    for feed in feeds:
        length, start = samples_in(feed), 0
        if held and length and _sample_shapes(feed) != _sample_shapes(held[0]):
            yield _joined(held)
            held, room = [], batch
        while start < length:
            stop = min(length, start + room)
            # A copy, because a source may fill the same buffer again for its next batch.
            held.append({name: np.array(array[start:stop], order="C") for name, array in feed.items()})
            room -= stop - start
            start = stop
            if room == 0:
                yield _joined(held)
                held, room = [], batch
    if held:
        yield _joined(held)


def full_batches(feeds: Iterable[Feed], batch: int, origin: str) -> Iterator[Feed]:
    """The feeds that hold exactly ``batch`` samples, for a model that takes no other number.

    An incomplete last feed is dropped.

    Args:
        feeds: feeds of at most ``batch`` samples, from :func:`rebatch`.
        batch: the fixed first axis of the model's inputs.
        origin: the source, as the subject of the message.

    Raises:
        CalibrationError: the incomplete feed is the only one, or others follow it because the shape
            of the samples changes.
    """
    done, short = 0, 0
    for feed in feeds:
        if short:
            raise CalibrationError(
                f"{origin} changes the shape of its samples after {done + short}, in the middle of a batch, but the "
                f"model takes exactly {batch} at a time: put samples of one shape together in multiples of {batch}"
            )
        if samples_in(feed) < batch:
            short = samples_in(feed)
        else:
            done += batch
            yield feed
    if short and not done:
        raise CalibrationError(
            f"{origin} gives {short} samples, but the model takes exactly {batch} at a time: give at least {batch}"
        )


def _sample_shapes(feed: Feed) -> list[tuple[int, ...]]:
    return [array.shape[1:] for array in feed.values()]


def _joined(held: list[Feed]) -> Feed:
    if len(held) == 1:
        return held[0]
    return {name: np.concatenate([feed[name] for feed in held]) for name in held[0]}
