"""How far a network's outputs are from the float network's, sample by sample."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import ModelError
from onnxq.verify import is_numeric
from onnxq.verify.fidelity import class_scores, softmax_divergence

Array = NDArray[np.float64]
Outputs = Mapping[str, Any]

SUM_OF_SHARES = 1e-3
"""How far a row may sum from 1 and still count as probabilities."""

UNLIKE = 100.0
"""Ratio of the variances of an output's channels from which on each counts relative to its own."""

LEAST_SHARE = 1e-4
"""Variance of a channel relative to its power, below which it is taken to be constant."""

QUANTILES = np.linspace(0, 1, 257)


class OutputLoss:
    """The distance from a float network's outputs: KL of class scores where all outputs are such, else MSE.

    Class scores have two axes (behind trailing axes of size 1) and several classes; they are taken through a
    softmax unless they are probabilities already. MSE is relative to each output's variance, so that
    outputs of different sizes count alike, and to each channel's where these are of different sizes: boxes in pixels
    and scores below 1 may stand in one tensor. Losses of several outputs are added.

    Integers count, where nothing else is put out, by the share that differs. An output whose rows depend on values is
    compared as a distribution: by the quantiles of its values, and by how many there are. Text is left out, and so are
    entries that are finite in neither network; those that are finite in one alone count as wrong by the output's
    deviation. Of an output that has no axis of samples the loss of a batch is that of each of its samples.

    Args:
        exact: the float network's outputs, batch by batch.
        metric: ``kl`` or ``mse``; None to choose by the outputs.
        chosen: outputs whose length or choice of rows depends on values.
        samples: in each batch; the first axis of the first output counts them when None.

    Raises:
        ModelError: no output holds numbers.
    """

    def __init__(
        self,
        exact: Sequence[Outputs],
        metric: str | None = None,
        *,
        chosen: Collection[str] = (),
        samples: Sequence[int] | None = None,
    ) -> None:
        held = {n: [_numbers(outputs[n]) for outputs in exact] for n in exact[0]}
        known = {n: [v for v in values if v is not None] for n, values in held.items()}
        kinds = {n: values[0].dtype.kind for n, values in known.items() if len(values) == len(exact)}
        self._names = [n for n, kind in kinds.items() if kind == "f"] or list(kinds)
        if not self._names:
            raise ModelError("no output of the model holds numbers, so no loss can be measured to choose bits by.")
        self._chosen = set(chosen)
        self._exact = [self._of_interest(outputs) for outputs in exact]
        self._samples = samples or [len(o[self._names[0]]) if o[self._names[0]].ndim else 1 for o in self._exact]
        self._whole = {n for n in self._names if kinds[n] != "f"}
        if metric is None:
            plain = [n for n in self._names if n not in self._chosen | self._whole]
            scores = plain and all(_scores(self._exact[0][n]) is not None for n in plain)
            metric = "kl" if scores else "mse"
        self.metric = metric
        self._shares = {n for n in self._names if all(_are_shares(outputs[n]) for outputs in self._exact)}
        self._scales = {n: _scale([outputs[n] for outputs in self._exact], n in self._chosen) for n in self._names}

    def of(self, batch: int, outputs: Outputs) -> Array:
        """Loss of each sample of a batch, (samples,)."""
        found, count = self._of_interest(outputs), self._samples[batch]
        total = np.zeros(count)
        for name, exact in self._exact[batch].items():
            total += self._one(name, exact, found[name], count)
        return total

    def _of_interest(self, outputs: Outputs) -> dict[str, Array]:
        return {n: np.asarray(_numbers(outputs[n]), np.float64) for n in self._names}

    def _one(self, name: str, exact: Array, found: Array, samples: int) -> Array:
        scale = self._scales[name]
        if name in self._chosen or exact.shape != found.shape:
            return np.full(samples, _distance(exact, found, scale.whole))
        if name in self._whole:
            return _each(np.asarray(exact != found, np.float64), samples)
        if self.metric == "kl":
            p, q = _scores(exact), _scores(found)
            if p is not None and q is not None:
                if name in self._shares:
                    p, q = np.log(np.maximum(p, 1e-30)), np.log(np.maximum(q, 1e-30))
                return _each(_divergence(p, q), samples)
        both = np.isfinite(exact) & np.isfinite(found)
        one = np.isfinite(exact) != np.isfinite(found)
        error = np.subtract(found, exact, out=np.zeros_like(exact), where=both)
        return _each(np.square(error) / scale.beside(exact.ndim) + one, samples)


@dataclass(frozen=True)
class _Scale:
    """What squared errors of an output are relative to.

    Attributes:
        whole: the output's variance; its power where it is next to constant, 1 where it is 0.
        channels: that of each channel, (channels,); None where they are alike.
        axis: which counts the channels.
    """

    whole: float
    channels: Array | None = None
    axis: int = 0

    def beside(self, rank: int) -> Array:
        """To divide a tensor of so many axes by."""
        if self.channels is None:
            return np.asarray(self.whole)
        return self.channels.reshape([-1 if axis == self.axis else 1 for axis in range(rank)])


def _scale(parts: Sequence[Array], chosen: bool) -> _Scale:
    """The scale of an output, from all of its batches."""
    rank, (around, about_zero) = parts[0].ndim, _variance(parts, None)
    share = LEAST_SHARE if any(p.size > 1 for p in parts) else 1.0  # a single number has no variance
    whole = _Scale(max(float(around[0]), share * float(about_zero[0])) or 1.0)
    if chosen or rank < 2 or not about_zero[0]:
        return whole
    best = whole
    spread = UNLIKE
    for axis in dict.fromkeys((1, rank - 1)):
        if len({p.shape[axis] for p in parts}) > 1:
            continue
        variance, power = _variance(parts, axis)
        floored = np.maximum(np.maximum(variance, LEAST_SHARE * power), 1e-10 * whole.whole)
        ratio = float(floored.max() / floored.min()) if floored.size else 0.0
        if ratio > spread:
            spread, best = ratio, _Scale(whole.whole, floored, axis)
    return best


def _variance(parts: Sequence[Array], axis: int | None) -> tuple[Array, Array]:
    """Variance and power of all finite values, or of each channel's along an axis."""
    channels = 1 if axis is None else parts[0].shape[axis]
    columns = [p.reshape(1, -1) if axis is None else np.moveaxis(p, axis, 0).reshape(channels, -1) for p in parts]
    known = [np.isfinite(c) for c in columns]
    zeroed = [np.where(k, c, 0.0) for k, c in zip(known, columns, strict=True)]
    count = np.maximum(sum((k.sum(axis=1) for k in known), np.zeros(channels)), 1)
    mean = sum((z.sum(axis=1) for z in zeroed), np.zeros(channels)) / count
    power = sum((np.square(z).sum(axis=1) for z in zeroed), np.zeros(channels)) / count
    gaps = (np.where(k, z - mean[:, None], 0.0) for k, z in zip(known, zeroed, strict=True))
    return sum((np.square(g).sum(axis=1) for g in gaps), np.zeros(channels)) / count, power


def _each(values: Array, samples: int) -> Array:
    """Means of samples, (samples,): along the first axis, else along another of that length, else one mean of all."""
    if values.size == 0:
        return np.zeros(samples)
    if values.ndim and len(values) % samples == 0:
        return np.asarray(values.reshape(samples, -1).mean(axis=1))
    axis = next((i for i, size in enumerate(values.shape) if size == samples), None)
    if axis is None:
        return np.full(samples, values.mean())
    return np.asarray(np.moveaxis(values, axis, 0).reshape(samples, -1).mean(axis=1))


def _divergence(p: Array, q: Array) -> Array:
    """KL of rows of scores, (rows,), over the entries that are finite in both."""
    both = np.isfinite(p) & np.isfinite(q)
    both |= ~both.any(axis=1, keepdims=True)  # rows of which nothing is left count as alike
    p, q = (np.where(np.isfinite(s) | ~both, s, 0.0) for s in (p, q))
    return softmax_divergence(np.where(both, p, -np.inf), np.where(both, q, -np.inf))


def _distance(exact: Array, found: Array, variance: float) -> float:
    """How far two collections of numbers are from each other, relative to the variance of the one."""
    a, b = exact[np.isfinite(exact)], found[np.isfinite(found)]
    if a.size == 0 or b.size == 0:
        return float(a.size != b.size)
    gap = np.square(np.quantile(a, QUANTILES) - np.quantile(b, QUANTILES)).mean() / variance
    return float(gap + ((a.size - b.size) / max(a.size, b.size)) ** 2)


def _numbers(value: Any) -> NDArray[Any] | None:
    """The numbers of an output: of a sequence those of its parts side by side, of a map its values; None of text."""
    if isinstance(value, list) and value:
        parts = [np.asarray(list(p.values())) if isinstance(p, dict) else p for p in value]
        if not all(is_numeric(p) for p in parts):
            return None
        alike = len({p.shape[:1] for p in parts}) == 1 and parts[0].ndim > 0
        if isinstance(value[0], dict):  # one a sample
            return np.stack(parts) if alike else np.concatenate(parts)
        return np.concatenate(
            [p.reshape(len(p), -1) if alike else p.reshape(-1) for p in parts], axis=1 if alike else 0
        )
    return value if is_numeric(value) else None


def _scores(values: Array) -> Array | None:
    scores = class_scores(values)
    return scores if scores is not None and scores.ndim == 2 else None


def _are_shares(values: Array) -> bool:
    scores = _scores(values)
    return scores is not None and bool(scores.min() >= 0 and np.abs(scores.sum(axis=1) - 1).max() < SUM_OF_SHARES)
