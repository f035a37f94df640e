"""A quantized network held against the float one on samples, each by itself."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.data import Feed, samples_in
from onnxq.ir.model import Model
from onnxq.ir.save import to_outline
from onnxq.ir.stage import split_stages
from onnxq.plan.values import Plan
from onnxq.runtime.activation_cache import passed
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.runtime.session import Session
from onnxq.runtime.spool import Arrays
from onnxq.runtime.staged_network import make_step
from onnxq.verify import is_numeric

Double = NDArray[np.float64]

TOGETHER = 32
"""Samples whose tensors between two stages are held together."""

LARGEST_ERROR = 100.0
"""Error of a sample, relative to its signal, beyond which it makes no difference any more."""


@dataclass(frozen=True)
class Judgement:
    """Power of the float outputs and of the errors, sample by sample.

    Attributes:
        signal: Σ y², by output, (samples,).
        noise: Σ (y − ŷ)², by output, (samples,); infinite where only ŷ is not finite.
        samples: index of each in the calibration set, (samples,).
    """

    signal: Mapping[str, Double]
    noise: Mapping[str, Double]
    samples: NDArray[np.int64]

    def of(self, samples: NDArray[np.int64]) -> Judgement:
        """That of some of the samples, in their order."""
        place = {int(sample): i for i, sample in enumerate(self.samples)}
        places = np.array([place[int(sample)] for sample in samples], np.intp)
        return Judgement(
            {name: v[places] for name, v in self.signal.items()},
            {name: v[places] for name, v in self.noise.items()},
            self.samples[places],
        )

    @property
    def errors(self) -> Double:
        """Error of each sample relative to its signal, the mean over the outputs, (samples,)."""
        found = [np.zeros(len(self.samples))]
        for name, signal in self.signal.items():
            least = np.median(signal[signal > 0]) / 1000 if (signal > 0).any() else 1.0
            found.append(np.minimum(self.noise[name] / np.maximum(signal, least), LARGEST_ERROR))
        return np.asarray(np.sum(found, axis=0) / max(len(found) - 1, 1))

    @property
    def error(self) -> float:
        """Mean error of a sample relative to its signal; 0 where there is none to judge."""
        each = self.errors
        return float(each.mean()) if len(each) else 0.0


def together(parts: Sequence[Judgement]) -> Judgement:
    """Several judgements as one."""
    names = parts[0].signal if parts else {}
    return Judgement(
        {name: np.concatenate([p.signal[name] for p in parts]) for name in names},
        {name: np.concatenate([p.noise[name] for p in parts]) for name in names},
        np.concatenate([np.zeros(0, np.int64), *(p.samples for p in parts)]),
    )


def exact_outputs(model: Model, feeds: Sequence[Feed]) -> list[Arrays]:
    """What the float network makes of feeds: floating-point outputs that can be compared, by name."""
    names = [t.name for t in model.outputs if t.name not in model.not_comparable]
    session = Session(to_outline(model), "the float network")
    made = [session.run(feed, names) for feed in feeds] if names else [{} for _ in feeds]
    floats = [
        name for name in names if all(is_numeric(m[name]) and np.issubdtype(m[name].dtype, np.floating) for m in made)
    ]
    return [{name: m[name] for name in floats} for m in made]


def judge(
    model: Model,
    plan: Plan,
    network: QuantizedNetwork,
    feeds: Sequence[Feed],
    exact: Sequence[Arrays],
    samples: NDArray[np.int64] | None = None,
) -> Judgement:
    """What the quantization of a network costs on samples.

    Args:
        model: as it was quantized.
        plan: of its layers.
        network: their solutions.
        feeds: batches of samples.
        exact: what the float network makes of each.
        samples: their indices; counted from 0 when None.
    """
    signal: dict[str, list[Double]] = {}
    noise: dict[str, list[Double]] = {}
    for feed, wanted, made in zip(feeds, exact, simulated_outputs(model, plan, network, feeds), strict=True):
        for name, values in wanted.items():
            power, error = _by_sample(values, made[name], samples_in(feed))
            signal.setdefault(name, []).append(power)
            noise.setdefault(name, []).append(error)
    total = sum(samples_in(feed) for feed in feeds)
    return Judgement(
        {name: np.concatenate(parts) for name, parts in signal.items()},
        {name: np.concatenate(parts) for name, parts in noise.items()},
        np.arange(total) if samples is None else samples,
    )


def simulated_outputs(model: Model, plan: Plan, network: QuantizedNetwork, feeds: Sequence[Feed]) -> Iterator[Arrays]:
    """The quantized network's outputs for each feed; one stage is ready to run at a time, for a few feeds together."""
    stages = split_stages(model, [p.layer for p in plan.layers])
    first = 0
    while first < len(feeds):
        ahead: list[Arrays] = []
        while first < len(feeds) and (not ahead or sum(map(samples_in, ahead)) < TOGETHER):
            ahead.append({name: np.asarray(value) for name, value in feeds[first].items()})
            first += 1
        for stage in stages:
            step = make_step(model, stage, ahead[0], network) if stage.makes else None
            ahead = [passed(stage, arrays, step.run(arrays) if step else {}) for arrays in ahead]
        yield from ahead


def _by_sample(exact: NDArray[np.generic], made: NDArray[np.generic], samples: int) -> tuple[Double, Double]:
    """Power of an output and of its error, (samples,); that of the batch spread evenly where it is not cut."""
    y, found = exact.astype(np.float64), made.astype(np.float64)
    if y.shape != found.shape:
        return np.zeros(samples), np.zeros(samples)  # lengths that depend on values are not compared
    known, told = np.isfinite(y), np.isfinite(found)
    square = np.square(np.where(known, y, 0.0))
    error = np.square(np.subtract(found, y, out=np.zeros_like(y), where=known & told))
    if known.all():  # an output that is not finite in float either is compared where it is finite in both
        error = np.where(told, error, math.inf)
    if not y.ndim or not samples or len(y) % samples:
        share = max(samples, 1)
        return np.full(share, square.sum() / share), np.full(share, error.sum() / share)
    return square.reshape(samples, -1).sum(axis=1), error.reshape(samples, -1).sum(axis=1)
