"""How much of a stream of samples leaves the ranges that a quantized model was calibrated for.

A tensor is looked at where the quantized model itself quantizes it, in the graph as it is written: what earlier
ranges have cut off already does not reach it, for that is what is lost in the model that people run. Both ends of a
range count alike. A range of least error cuts off a few values of its own calibration set on purpose, so the share of
values outside tells little by itself: tensors are put in the order of what they lose, the power of what is cut off
beside the power of the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper
from onnx.inliner import inline_local_functions

from onnxq.errors import VerificationError
from onnxq.verify.cut import Cutter
from onnxq.verify.findings import TensorRange
from onnxq.verify.places import Place, find_places
from onnxq.verify.session import LEVELS, reason, start_session
from onnxq.verify.source import Feed, ModelLike, ModelSource, describe, read_model, serialized
from onnxq.verify.value_origin import Scope

AT_ONCE: Final = 2**28
"""Bytes of inner tensors that are read out at once, at most, unless a single one has more."""


def measure_ranges(quantized: ModelLike, feeds: Iterable[Feed]) -> tuple[TensorRange, ...]:
    """What samples make of the range of each quantized tensor, those that lose most first.

    Args:
        quantized: path or proto of a model that runs unoptimized.
        feeds: batches, ``{input: array}``.

    Raises:
        ModelError: the model cannot be read.
        CalibrationError: a feed does not hold the model's inputs.
        VerificationError: it does not run with its inner tensors read out.
    """
    source, meter = ModelSource.open(quantized, "quantised"), RangeMeter(quantized, LEVELS[0])
    for feed in feeds:
        meter.add(source.fit(feed), source.batch_size(feed))
    return meter.result()


class RangeMeter:
    """Runs a quantized model for the tensors that it quantizes, and measures what their grids cut off.

    Args:
        model: path or proto.
        level: of onnxruntime, the lowest that works.

    Raises:
        ModelError: the model cannot be read.
    """

    def __init__(self, model: ModelLike, level: str) -> None:
        proto, self._folder = read_model(model, "quantised")
        proto = inline_local_functions(proto) if proto.functions else proto
        self._label, self._level = describe(model, "quantised"), level
        self._cutter = Cutter(proto)
        self._meters = [_Meter(place) for place in find_places(proto, Scope(proto.graph, self._folder), self._cutter)]
        self._tensors = list(
            dict.fromkeys(m.place.tensor for m in self._meters if m.place.tensor in self._cutter.maker)
        )
        self._groups: list[tuple[tuple[str, ...], Any]] = []
        self._step: int | None = None

    def add(self, feed: Feed, samples: int) -> None:
        """Take in a batch.

        Args:
            feed: fitted to the model's inputs.
            samples: in it.

        Raises:
            VerificationError: the model does not run with its inner tensors read out.
        """
        try:
            if self._tensors and not self._groups:
                self._divide(feed, samples)
            for part in _parts(feed, samples, self._step):
                self._take(part)
                for tensors, session in self._groups:
                    self._take(dict(zip(tensors, session.run(list(tensors), dict(part)), strict=True)))
        except Exception as error:  # onnxruntime has many
            raise VerificationError(
                f"the tensors that {self._label} quantises cannot be read out ({reason(error)}); verify it without "
                "their ranges"
            ) from error

    def result(self) -> tuple[TensorRange, ...]:
        """All ranges, those that lose most first."""
        return tuple(sorted((meter.result() for meter in self._meters), key=_lost, reverse=True))

    def _take(self, values: Mapping[str, NDArray[Any]]) -> None:
        for meter in self._meters:
            if meter.place.tensor in values:
                meter.add(np.asarray(values[meter.place.tensor]))

    def _divide(self, feed: Feed, samples: int) -> None:
        """Decide how many samples to run, and how many tensors to read out, at a time."""
        sizes = self._sizes(feed)
        if sum(sizes) > AT_ONCE and samples > 1:
            first = next(iter(_parts(feed, samples, 1)))
            try:
                sizes = self._sizes(first)
            except Exception:  # the batch size is built into the model
                pass
            else:
                self._step = max(1, AT_ONCE // max(sum(sizes), 1))
                sizes = [size * self._step for size in sizes]
        for group in _grouped(self._tensors, sizes):
            self._groups.append((group, self._session(self._cutter.cut(*group))))

    def _sizes(self, feed: Feed) -> list[int]:
        """Bytes of each tensor on a batch, counted in the graph, so that none of them is read out."""
        counting = self._cutter.cut(*self._tensors)
        del counting.graph.output[:]
        for index, tensor in enumerate(self._tensors):
            name = f"onnxq/values/{index}"
            counting.graph.node.append(helper.make_node("Size", [tensor], [name]))
            counting.graph.output.append(helper.make_tensor_value_info(name, onnx.TensorProto.INT64, []))
        return [4 * int(count) for count in self._session(counting).run(None, dict(feed))]

    def _session(self, proto: onnx.ModelProto) -> Any:
        return start_session(serialized(proto, self._label), self._level, weights_folder=self._folder)


class _Meter:
    """What one tensor's grid cuts off, in sums over its values.

    Args:
        place: the tensor and its grid.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self._values = 0
        self._outside = [0, 0]
        self._signal = self._lost = self._excess = 0.0

    def add(self, values: NDArray[Any]) -> None:
        """Take in the tensor's values on a batch; what is not a number lies on neither side."""
        values = values if values.dtype == np.float64 else values.astype(np.float32, copy=False)
        if values.size == 0:
            return
        self._values += values.size
        self._signal += _power(values)
        low, high = (self._beside(end, values) for end in (self.place.low, self.place.high))
        if not (low.max() <= values.min()):  # of a tensor with NaN neither holds
            self._cut_off(0, values, values < low, low, high)
        if not (values.max() <= high.min()):
            self._cut_off(1, values, values > high, high, low)

    def result(self) -> TensorRange:
        """What was found."""
        count = max(self._values, 1)
        return TensorRange(
            tensor=self.place.tensor,
            layers=self.place.layers,
            bits=self.place.bits,
            low=float(self.place.low.min()),
            high=float(self.place.high.max()),
            share_below=self._outside[0] / count,
            share_above=self._outside[1] / count,
            excess=self._excess,
            lost=self._lost / self._signal if self._signal else 0.0,
        )

    def _beside(self, end: NDArray[np.float64], values: NDArray[Any]) -> NDArray[Any]:
        """One end of the range in the tensor's type, beside its channels."""
        if end.ndim:
            end = end.reshape([-1 if axis == self.place.axis % values.ndim else 1 for axis in range(values.ndim)])
        return end.astype(values.dtype)

    def _cut_off(
        self, side: int, values: NDArray[Any], outside: NDArray[np.bool_], end: NDArray[Any], other: NDArray[Any]
    ) -> None:
        """Take in the values beyond one end."""
        index = np.flatnonzero(outside)
        if not index.size:
            return
        self._outside[side] += index.size
        near, far = (e if e.ndim == 0 else np.broadcast_to(e, values.shape).reshape(-1)[index] for e in (end, other))
        width = np.abs(far.astype(np.float64) - near)
        gap = np.abs(values.reshape(-1)[index].astype(np.float64) - near)
        self._lost += _power(gap)
        self._excess = max(self._excess, float((gap / width).max()))


def _power(values: NDArray[Any]) -> float:
    """Sum of the squares of the finite values."""
    flat = values.reshape(-1)
    with np.errstate(over="ignore", invalid="ignore"):
        total = float(np.dot(flat, flat))
    if math.isfinite(total):
        return total
    exact = flat[np.isfinite(flat)].astype(np.float64)
    return float(exact @ exact)


def _parts(feed: Feed, samples: int, step: int | None) -> Iterator[Feed]:
    """A batch, cut into so many samples each."""
    if step is None or step >= samples:
        yield feed
        return
    for first in range(0, samples, step):
        yield {
            name: array[first : first + step] if array.ndim and len(array) == samples else array
            for name, array in feed.items()
        }


def _grouped(tensors: Sequence[str], sizes: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """Neighbours that take no more than the limit together."""
    group: list[str] = []
    taken = 0
    for tensor, size in zip(tensors, sizes, strict=True):
        if group and taken + size > AT_ONCE:
            yield tuple(group)
            group, taken = [], 0
        group.append(tensor)
        taken += size
    yield tuple(group)


def _lost(found: TensorRange) -> tuple[float, float]:
    return found.lost, found.share_outside
