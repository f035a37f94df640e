"""A finished model held against its float model on samples that it was not made from."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from onnxq.data import Data, Feed, count_samples, labels_of, read_feeds
from onnxq.data.replay import batch_size
from onnxq.errors import ModelError
from onnxq.ir.load import OLDEST_OPSET, load
from onnxq.ir.save import to_proto
from onnxq.progress import Listener, Progress
from onnxq.runtime.memory import free_old_graphs
from onnxq.verify import VerificationReport, verify


def opened(
    model: str | Path | onnx.ModelProto, *data: Data | None, ignore: Collection[str] = ()
) -> tuple[Iterator[Feed] | None, ...]:
    """Samples of a model, the first of them read: what does not fit is told before anything long begins.

    Args:
        model: whose inputs they are for.
        data: sets of samples as for :func:`~onnxq.data.read_feeds`; None stays None.
        ignore: names that they may hold beside the inputs.

    Raises:
        InputError: the model or the samples cannot be used.
    """
    if all(samples is None for samples in data):
        return (None,) * len(data)
    inputs = load(model, minimum_opset=OLDEST_OPSET).inputs
    free_old_graphs()
    batch = batch_size(inputs)
    feeds = [None if samples is None else read_feeds(samples, inputs, batch=batch, ignore=ignore) for samples in data]
    return tuple(None if found is None else chain([next(found)], found) for found in feeds)


def labels_for(model: str | Path | onnx.ModelProto, data: Data, key: str) -> NDArray[Any]:
    """The class of each sample of a set, as it is used.

    Raises:
        InputError: the model cannot be read, or there are no such labels.
    """
    inputs = load(model, minimum_opset=OLDEST_OPSET).inputs
    free_old_graphs()
    return labels_of(data, key, inputs)


def judged(
    fp32: str | Path | onnx.ModelProto,
    quantized: onnx.ModelProto,
    feeds: Iterable[Feed],
    data: Data,
    progress: Listener,
    labels: NDArray[Any] | None = None,
) -> VerificationReport:
    """The verification of a quantized model on samples, the ranges that they leave included; nothing is timed.

    A float model that onnxruntime has no kernels for is judged by as it was read: with wider numbers, say.

    Args:
        fp32: the float model.
        quantized: made from it.
        feeds: the samples.
        data: that they come from, to tell how many there are.
        progress: told how far it is.
        labels: class of each sample; None where they are not known.

    Raises:
        VerificationError: the quantized model does not run on one of them.
    """
    total = count_samples(data)
    check = partial(
        verify,
        labels=labels,
        latency=False,
        ranges=True,
        progress=lambda done: progress(Progress("check", done, total)),
    )
    try:
        return check(fp32, quantized, feeds)
    except ModelError:  # before any sample was taken
        return check(to_proto(load(fp32, minimum_opset=OLDEST_OPSET)), quantized, feeds)
