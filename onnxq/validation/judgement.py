"""A quantised network held against the float one on samples, each by itself."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxq.data import Feed, samples_in
from onnxq.execute.chain import Chain, Quantised
from onnxq.execute.ort import Session
from onnxq.execute.spool import Arrays
from onnxq.ir.model import Model
from onnxq.ir.save import to_outline
from onnxq.ir.stage import split_stages
from onnxq.network import NetworkSolution, by_constant
from onnxq.plan import Plan

Double = NDArray[np.float64]

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

    def first(self, count: int) -> Judgement:
        """That of the first samples."""
        return Judgement(
            {name: v[:count] for name, v in self.signal.items()},
            {name: v[:count] for name, v in self.noise.items()},
            self.samples[:count],
        )

    def without(self, samples: Collection[int]) -> Judgement:
        """That of all other samples."""
        kept = ~np.isin(self.samples, list(samples))
        return Judgement(
            {name: v[kept] for name, v in self.signal.items()},
            {name: v[kept] for name, v in self.noise.items()},
            self.samples[kept],
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
    """What the float network makes of feeds: its floating-point outputs, by name."""
    names = [t.name for t in model.outputs]
    session = Session(to_outline(model), "the float network")
    return [
        {name: value for name, value in session.run(feed, names).items() if np.issubdtype(value.dtype, np.floating)}
        for feed in feeds
    ]


def judge(
    model: Model,
    plan: Plan,
    network: NetworkSolution,
    feeds: Sequence[Feed],
    exact: Sequence[Arrays],
    samples: NDArray[np.int64] | None = None,
) -> Judgement:
    """What the quantisation of a network costs on samples.

    Args:
        model: as it was quantised.
        plan: of its layers.
        network: their solutions.
        feeds: batches of samples.
        exact: what the float network makes of each.
        samples: their indices; counted from 0 when None.
    """
    tables = by_constant((p.table for p in plan.tables), network.tables)
    quantised = Quantised(network.layers, network.outputs, tables)
    chain = Chain(model, split_stages(model, [p.layer for p in plan.layers]), quantised)
    signal: dict[str, list[Double]] = {}
    noise: dict[str, list[Double]] = {}
    for feed, wanted in zip(feeds, exact, strict=True):
        made = chain.run({name: np.asarray(value) for name, value in feed.items()}, 0)
        count = samples_in(feed)
        for name, values in wanted.items():
            power, error = _by_sample(values, made[name], count)
            signal.setdefault(name, []).append(power)
            noise.setdefault(name, []).append(error)
    total = sum(samples_in(feed) for feed in feeds)
    return Judgement(
        {name: np.concatenate(parts) for name, parts in signal.items()},
        {name: np.concatenate(parts) for name, parts in noise.items()},
        np.arange(total) if samples is None else samples,
    )


def _by_sample(exact: NDArray[np.generic], made: NDArray[np.generic], samples: int) -> tuple[Double, Double]:
    """Power of an output and of its error, (samples,); that of the batch spread evenly where it is not cut."""
    y, found = exact.astype(np.float64), made.astype(np.float64)
    if y.shape != found.shape:
        return np.zeros(samples), np.zeros(samples)  # lengths that depend on values are not compared
    known = np.isfinite(y)
    square = np.where(known, y * y, 0.0)
    gap = np.where(known, np.where(np.isfinite(found), found - y, math.inf), 0.0)
    error = gap * gap
    if not y.ndim or not samples or len(y) % samples:
        share = max(samples, 1)
        return np.full(share, square.sum() / share), np.full(share, error.sum() / share)
    return square.reshape(samples, -1).sum(axis=1), error.reshape(samples, -1).sum(axis=1)
