"""The calibration samples on their way into the pipeline: batch size, progress, and reading them again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Any

from onnxq.config import UNITS, Config
from onnxq.data import Data, Feed, count_samples, samples_in
from onnxq.errors import ConfigError
from onnxq.ir.layer import find_layers
from onnxq.ir.model import Model
from onnxq.ir.tensor import TensorInfo, fixed_batches
from onnxq.progress import Listener, Progress
from onnxq.runtime.spool import Spool

BATCH_ELEMENTS = 2**20
"""Input elements in a batch at most, unless a single sample has more."""

LARGEST_BATCH = 64


COPIES = 24
"""Tensors of the largest size that are alive at a time, of two batches and of both networks."""


def batch_for(model: Model, config: Config) -> int:
    """Samples that are run together within the configuration's limit of memory.

    The default limit asks for nothing: a model that needs more takes more.

    Raises:
        ConfigError: another limit than the default is below what the model needs at least.
    """
    limit, least = config.memory_limit, least_memory(model)
    if limit != Config.memory_limit and limit < least:
        raise ConfigError(
            f"memory_limit is {limit} bytes, but this model needs {least} at least, for its float weights and for a "
            f"sample on its way through: give {math.ceil(least / UNITS['MiB'])}MiB or more."
        )
    return batch_within(model, limit)


def batch_within(model: Model, limit: int) -> int:
    """Samples that are run together within so many bytes: fewer than :func:`batch_size` where these are large."""
    usual = batch_size(model.inputs)
    if fixed_batches(model.inputs):
        return usual
    return max(1, min(usual, limit // (COPIES * max(model.largest_tensor, 1))))


def least_memory(model: Model) -> int:
    """Bytes below which no limit can be kept: the layers' float weights, or what one run holds if that is more."""
    weights = 4 * sum(layer.parameters for layer in find_layers(model)[0])
    return max(weights, COPIES * model.largest_tensor)


def batch_size(inputs: tuple[TensorInfo, ...]) -> int:
    """Samples that are run together: the model's own number where it is fixed, else what fits.

    It depends on the model alone, so that results do not depend on how the samples arrive.
    """
    if fixed := fixed_batches(inputs):
        return fixed[0]
    elements = sum(math.prod(d or 64 for d in (i.shape or (1, 64))[1:]) for i in inputs)
    return max(1, min(LARGEST_BATCH, BATCH_ELEMENTS // max(elements, 1)))


def counted(feeds: Iterator[Feed], data: Data, config: Config, progress: Listener) -> Iterator[Feed]:
    """The same feeds; progress hears of each."""
    known = count_samples(data)
    total = min((n for n in (known, config.samples) if n is not None), default=None)
    done = 0
    for feed in feeds:
        yield feed
        done += samples_in(feed)
        progress(Progress("read", done, total))


class Again(Sequence[Feed]):
    """Feeds that can be read again, on disk beyond a limit in bytes."""

    def __init__(self, limit: int) -> None:
        self._spool = Spool(limit)
        self._names: list[tuple[str, ...]] = []

    def append(self, feed: Feed) -> None:
        """Take in one more."""
        self._spool.put(len(self._names), feed)
        self._names.append(tuple(feed))

    def __enter__(self) -> Again:
        """The feeds themselves; what was written to disk goes when the block ends."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was written to disk."""
        self._spool.close()

    def __len__(self) -> int:
        """Feeds held."""
        return len(self._names)

    def __getitem__(self, index: Any) -> Any:
        """One feed, or a list of several."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self._spool.get(index, self._names[index])
