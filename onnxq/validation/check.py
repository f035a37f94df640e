"""A finished model held against its float model on samples that it was not made from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import onnx

from onnxq.data import Data, Feed, count_samples, read_feeds
from onnxq.data.replay import batch_size
from onnxq.errors import ModelError
from onnxq.ir.load import OLDEST_OPSET, load
from onnxq.ir.save import to_proto
from onnxq.progress import Listener, Progress
from onnxq.runtime.memory import free_old_graphs
from onnxq.verify import VerificationReport, verify


def opened(model: str | Path | onnx.ModelProto, *data: Data | None) -> tuple[Iterator[Feed] | None, ...]:
    """Samples of a model, the first of them read: what does not fit is told before anything long begins.

    Args:
        model: whose inputs they are for.
        data: sets of samples as for :func:`~onnxq.data.read_feeds`; None stays None.

    Raises:
        InputError: the model or the samples cannot be used.
    """
    if all(samples is None for samples in data):
        return (None,) * len(data)
    inputs = load(model, minimum_opset=OLDEST_OPSET).inputs
    free_old_graphs()
    batch = batch_size(inputs)
    feeds = [None if samples is None else read_feeds(samples, inputs, batch=batch) for samples in data]
    return tuple(None if found is None else chain([next(found)], found) for found in feeds)


def judged(
    fp32: str | Path | onnx.ModelProto,
    quantized: onnx.ModelProto,
    feeds: Iterable[Feed],
    data: Data,
    progress: Listener,
) -> VerificationReport:
    """The verification of a quantized model on samples, the ranges that they leave included; nothing is timed.

    A float model that onnxruntime has no kernels for is judged by as it was read: with wider numbers, say.

    Args:
        fp32: the float model.
        quantized: made from it.
        feeds: the samples.
        data: that they come from, to tell how many there are.
        progress: told how far it is.

    Raises:
        VerificationError: the quantized model does not run on one of them.
    """
    total = count_samples(data)
    check = partial(
        verify,
        latency=False,
        ranges=True,
        progress=lambda done: progress(Progress("check", done, total)),
    )
    try:
        return check(fp32, quantized, feeds)
    except ModelError:  # before any sample was taken
        return check(to_proto(load(fp32, minimum_opset=OLDEST_OPSET)), quantized, feeds)
