"""Scales of least mean squared error, searched instead of taken from the extremes.

A grid that reaches to the largest value spends its steps on a few outliers; shrinking it trades
clipping for resolution. The error of a candidate is evaluated, not modelled.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.quant.affine import dequantize, quantize
from onnxq.quant.histogram import Histogram
from onnxq.quant.spec import QuantParams, QuantSpec

SMALLEST_SCALE = np.float32(2.0**-100)
"""Floor of a scale: its product with another scale stays a normal float32."""

COARSE, SMOOTH = 4, 1024
"""Every which candidate a first search of weight scales tries, for channels of so many weights: the error of fewer is
too uneven a function of the scale for that."""

AT_ONCE = 2**17
"""Weights searched in one go: their temporaries stay in the cache."""

CLIP_RATIOS = np.concatenate([np.geomspace(0.02, 0.3, 14), np.linspace(0.32, 1.0, 69)])
"""Candidate ranges as fractions of the largest magnitude."""


HEAD_ROOM = np.geomspace(1.0, 8.0, 43)[1:]
"""Widths tried beyond the range of least error on the values seen, as its multiples: 16-bit grids can afford them."""


POINTS_PER_STEP = 16
"""Points of a histogram that stand for the values of one step of a grid."""


def weight_scale(
    weight: NDArray[np.float32],
    spec: QuantSpec,
    importance: NDArray[np.float32] | None = None,
    floor: NDArray[np.float32] | None = None,
) -> NDArray[np.float32]:
    """Per-channel scale of least (weighted) squared error for symmetric weights.

    minimize over s:  Σ_k h_k (w_k − s·clip(round(w_k/s)))²   for each channel.

    Args:
        weight: (channels, K), float32.
        spec: the grid, zero point 0.
        importance: h, (channels, K) or (1, K), non-negative; 1 everywhere when None.
        floor: scales to stay above, (channels,); none when None.

    Returns:
        Scales, (channels,), float32. A channel of zeros gets the smallest scale.
    """
    h = np.ones((1, 1), np.float32) if importance is None else importance
    least = np.broadcast_to(SMALLEST_SCALE if floor is None else np.maximum(floor, SMALLEST_SCALE), len(weight))
    unit = _unit(weight)
    weight, least = weight / unit[:, None], np.asarray(least / unit, np.float32)
    together = max(1, AT_ONCE // max(weight.shape[1], 1))
    found = [
        _channel_scale(weight[rows], spec, h if len(h) == 1 else h[rows], least[rows])
        for rows in (slice(first, first + together) for first in range(0, len(weight), together))
    ]
    return np.concatenate([np.zeros(0, np.float32), *found]) * unit


def _unit(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """The power of two next above each channel's largest magnitude, at most the largest that there is, (channels,).

    In this unit the squares of a channel neither overflow nor vanish, and the scale found is bit for bit the same.
    """
    _, exponent = np.frexp(np.abs(weight).max(axis=1, initial=0))
    return np.asarray(np.ldexp(np.float32(1), np.clip(exponent, -126, 127)), np.float32)


def _channel_scale(
    weight: NDArray[np.float32], spec: QuantSpec, h: NDArray[np.float32], least: NDArray[np.float32]
) -> NDArray[np.float32]:
    """All candidates, or some first and then the neighbours of each channel's best.

    Candidates are tried from the widest range down. Once clipping a channel's extremes costs more by itself than its
    best candidate does altogether, narrower ones can only be worse: they are left out.
    """
    step = COARSE if weight.shape[1] >= SMOOTH else 1
    reach = np.maximum(weight.max(axis=1) / spec.qmax, weight.min(axis=1) / spec.qmin)
    last = len(CLIP_RATIOS) - 1
    best, error = np.full(len(weight), last), np.full(len(weight), np.inf)

    def scale_of(index: NDArray[np.intp]) -> NDArray[np.float32]:
        return np.asarray(np.maximum((reach * CLIP_RATIOS[index]).astype(np.float32), least), np.float32)

    def attempt(rows: NDArray[np.intp], index: NDArray[np.intp]) -> None:
        w = weight if len(rows) == len(weight) else weight[rows]
        importance = h if len(h) == 1 or len(rows) == len(weight) else h[rows]
        scale = scale_of(index)[rows, None]
        gap = dequantize(quantize(w, scale, 0, spec.qmin, spec.qmax), scale, 0) - w
        trial = (importance * gap * gap).sum(axis=1, dtype=np.float64)
        better = trial < error[rows]
        best[rows[better]], error[rows[better]] = index[rows[better]], trial[better]

    everyone = np.arange(len(weight))
    extremes = _Extremes.of(weight, h)
    for coarse in range(last, -1, -step):
        index = np.full(len(weight), coarse)
        open_ones = np.flatnonzero(extremes.clipped(scale_of(index), spec) <= error)
        if not len(open_ones):
            break
        attempt(open_ones, index)
    centre = best.copy()
    for offset in (o for o in range(1 - step, step) if o):
        attempt(everyone, (centre + offset).clip(0, last))
    return scale_of(best)


@dataclass(frozen=True)
class _Extremes:
    """The largest and the smallest weight of each channel with their importance, (channels,) each."""

    largest: NDArray[np.float32]
    smallest: NDArray[np.float32]
    of_largest: NDArray[np.float32]
    of_smallest: NDArray[np.float32]

    @staticmethod
    def of(weight: NDArray[np.float32], h: NDArray[np.float32]) -> _Extremes:
        rows, importance = np.arange(len(weight)), np.broadcast_to(h, weight.shape)
        top, bottom = weight.argmax(axis=1), weight.argmin(axis=1)
        return _Extremes(weight[rows, top], weight[rows, bottom], importance[rows, top], importance[rows, bottom])

    def clipped(self, scale: NDArray[np.float32], spec: QuantSpec) -> NDArray[np.float64]:
        """What clipping one of them costs at least, (channels,)."""
        above = np.maximum(self.largest - scale.astype(np.float64) * spec.qmax, 0)
        below = np.maximum(scale.astype(np.float64) * spec.qmin - self.smallest, 0)
        # A hair less, for the trial itself is of float32 numbers.
        cost: NDArray[np.float64] = np.maximum(self.of_largest * above**2, self.of_smallest * below**2)
        return cost * (1 - 1e-5)


def activation_params(
    histogram: Histogram, spec: QuantSpec, response: NDArray[np.float64] | None = None
) -> QuantParams:
    """Range of least squared error for a tensor, on the values seen and on those that new samples will bring.

    A tensor without negative values (behind a ReLU) gets zero point = qmin, the only form that
    onnxruntime may merge with the ReLU. Otherwise both ends of the range are searched; those of a symmetric
    grid are moved together. Of ranges that are equally good the widest is taken. Then each end is moved outwards as
    far as the values expected beyond those seen (:mod:`onnxq.quant.tail`) are worth it.

    Args:
        histogram: of the values.
        spec: the grid.
        response: what is made of the values by all who read them, at the histogram's points: the error of this
            function is sought instead. A HardSwish needs nothing of what lies below -3.
    """
    values, counts = histogram.points(points_for(spec))
    total, tails = float(counts.sum()), histogram.tails
    low_end, high_end = histogram.regular
    wanted = values if response is None else response
    passed = _passed(values, wanted)

    def error(params: QuantParams) -> float:
        rounded = _rounded(values, params)
        gap = (rounded if response is None else np.interp(rounded, values, response)) - wanted
        return float(counts @ (gap * gap)) + total * tails.lost(params, passed)

    one_end = histogram.low >= 0 or spec.symmetric
    if one_end:
        candidates = [(low_end * r, high_end * r) for r in CLIP_RATIOS[::-1]]
    else:
        coarse = CLIP_RATIOS[::-4]  # the whole range among them: 16-bit grids have no use for clipping
        candidates = [(low_end * r, high_end * t) for r in coarse for t in coarse]
    params = min((range_params(low, high, spec) for low, high in candidates), key=error)
    if not one_end:
        low, high = float(params.lowest), float(params.highest)
        near = np.linspace(0.88, 1.12, 13)
        refined = [range_params(low * r, high * t, spec) for r in near for t in near]
        params = min([params, *refined], key=error)
    outlying = (low_end, high_end) != (histogram.low, histogram.high)
    for low, high in ((1, 0), (0, 1)) if tails.known or outlying else ():
        wider = [stretched(params, r**low, r**high) for r in HEAD_ROOM]
        params = min([params, *wider], key=error)
    return params


def _passed(values: NDArray[np.float64], wanted: NDArray[np.float64]) -> tuple[float, float]:
    """How much of a squared error at either end of the values is left in what is made of them."""
    if len(values) < 2:
        return 1.0, 1.0
    low, high = (float((wanted[i + 1] - wanted[i]) / (values[i + 1] - values[i])) for i in (0, len(values) - 2))
    return low * low, high * high


def points_for(spec: QuantSpec) -> int:
    """Points of a histogram that tell ranges of a grid apart: some for each of its steps."""
    return POINTS_PER_STEP << spec.bits


def extreme_params(histogram: Histogram, spec: QuantSpec) -> QuantParams:
    """The range from the smallest to the largest value seen."""
    return range_params(histogram.low, histogram.high, spec)


def stretched(params: QuantParams, low: float, high: float) -> QuantParams:
    """The grid with its lower and upper end moved by factors; one that starts at zero or is symmetric stays so."""
    spec = params.spec
    if params.zero_point == spec.qmin or spec.symmetric:
        factor = high * low if spec.symmetric else high
        scale = np.maximum(params.scale * np.float32(factor), SMALLEST_SCALE)
        return QuantParams(spec=spec, scale=np.asarray(scale, np.float32), zero_point=params.zero_point)
    return range_params(float(params.lowest) * low, float(params.highest) * high, spec)


def range_params(low: float, high: float, spec: QuantSpec) -> QuantParams:
    """The grid from one real number to another, 0 on one of its steps.

    Args:
        low: at most 0.
        high: at least 0.
        spec: the grid.
    """
    if spec.symmetric:
        reach = np.float32(max(high / spec.qmax, low / spec.qmin))
        return QuantParams(spec=spec, scale=np.asarray(np.maximum(reach, SMALLEST_SCALE), np.float32))
    steps = spec.qmax - spec.qmin
    scale = np.maximum(np.float32((high - low) / steps), SMALLEST_SCALE)
    zero_point = int(np.clip(spec.qmin + np.rint(-low / scale), spec.qmin, spec.qmax))
    return QuantParams(spec=spec, scale=np.asarray(scale, np.float32), zero_point=zero_point)


def _rounded(values: NDArray[np.float64], params: QuantParams) -> NDArray[np.float64]:
    integers = quantize(values, float(params.scale), params.zero_point, params.spec.qmin, params.spec.qmax)
    return dequantize(integers, float(params.scale), params.zero_point)
