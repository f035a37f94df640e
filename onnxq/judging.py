"""A finished model held against its float model on samples that it was not made from."""

from __future__ import annotations

from pathlib import Path

import onnx

from onnxq.data import Data, count_samples, read_feeds
from onnxq.execute.memory import free_old_graphs
from onnxq.ir.load import OLDEST_OPSET, load
from onnxq.progress import Listener, Progress
from onnxq.stream import Stream, batch_size
from onnxq.verify import VerificationReport, verify


def opened(model: str | Path | onnx.ModelProto, data: Data) -> Stream:
    """Samples of a model, the first of them read: what does not fit is told before anything long begins.

    Args:
        model: whose inputs they are for.
        data: as for :func:`~onnxq.data.read_feeds`.

    Raises:
        InputError: the model or the samples cannot be used.
    """
    inputs = load(model, minimum_opset=OLDEST_OPSET).inputs
    free_old_graphs()
    stream = Stream(read_feeds(data, inputs, batch=batch_size(inputs)), None)
    stream.first(1)
    return stream


def judged(
    fp32: str | Path | onnx.ModelProto, quantised: onnx.ModelProto, feeds: Stream, data: Data, progress: Listener
) -> VerificationReport:
    """The verification of a quantised model on samples, the ranges that they leave included; nothing is timed.

    Args:
        fp32: the float model.
        quantised: made from it.
        feeds: the samples.
        data: that they come from, to tell how many there are.
        progress: told how far it is.

    Raises:
        VerificationError: the quantised model does not run on one of them.
    """
    total = count_samples(data)
    return verify(
        fp32,
        quantised,
        feeds,
        latency=False,
        ranges=True,
        progress=lambda done: progress(Progress("check", done, total)),
    )
