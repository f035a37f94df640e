"""The networks that are judged on unseen data: made up, the bundled one, and those that a folder describes.

Each gives, for a draw, a float model on disk, calibration samples and new ones. A family gives another network with
each draw; the others are one network whose calibration samples are drawn at random from the first ones of their pool.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import onnx
from accuracy import Network, bundled_network, described_networks, first_batches
from unseen_families import FAMILIES, build
from unseen_judgement import Array

from onnxq.data import Feed, read_feeds
from onnxq.data.replay import batch_size
from onnxq.ir.load import load

BUNDLED = "digits"
DESCRIBED = ("resnet20", "kws", "mobilenet_v1", "mobilenet_v2", "efficientnet_lite0", "minilm")


@dataclass(frozen=True)
class Case:
    """A network with one draw of samples.

    Attributes:
        model: float, on disk.
        calibration: so many samples, a feed each; fewer where there are no more.
        fresh: new samples, in batches.
        labels: of those; None where they are unknown.
        scores: whether the answers are scores along the last axis.
    """

    model: Path
    calibration: Callable[[int], list[Feed]]
    fresh: list[Feed]
    labels: Array | None
    scores: bool


class Source:
    """Networks by name.

    Args:
        folder: for the made-up models.
        assets: a folder with a ``cases.py`` (see accuracy.py); None without one.
        fresh: new samples to judge on.
        pool: the first calibration samples of a network with data, from which draws are taken.
    """

    def __init__(self, folder: Path, assets: Path | None, fresh: int, pool: int) -> None:
        self._folder, self._assets, self._fresh, self._pool = folder, assets, fresh, pool
        self._given = cache(self._read)

    def missing(self, name: str) -> str:
        """Why a network cannot be had; empty if it can."""
        if name in FAMILIES or name == BUNDLED:
            return ""
        if self._assets is None or not (self._assets / "cases.py").exists():
            return f"{name} is skipped: it lies in a folder with a cases.py, which --assets names"
        found = described_networks(self._assets, [name], pairs=True)
        return "" if found and found[0].model.exists() else f"{name} is skipped: {self._assets} does not hold it"

    def case(self, name: str, draw: int) -> Case:
        """A network with one draw of samples."""
        return self._made_up(name, draw) if name in FAMILIES else self._drawn(name, draw)

    def _made_up(self, family: str, draw: int) -> Case:
        model, law = build(family, draw)
        path = self._folder / f"{family}-{draw}.onnx"
        onnx.save(model, path)
        batch = batch_size(load(path).inputs)

        def calibration(samples: int) -> list[Feed]:
            return list(batches(law(np.random.default_rng([draw, samples]), samples), 1))

        # Draws of calibration samples are numbered by how many they are, so that nought is another one.
        fresh = law(np.random.default_rng([draw, 0]), self._fresh)
        return Case(path, calibration, list(batches(fresh, batch)), None, scores=True)

    def _drawn(self, name: str, draw: int) -> Case:
        network, pool, fresh, labels = self._given(name)

        def calibration(samples: int) -> list[Feed]:
            if samples > len(pool):
                return pool
            chosen = np.random.default_rng([draw, samples]).choice(len(pool), samples, replace=False)
            return [pool[i] for i in sorted(chosen)]

        return Case(network.model, calibration, fresh, labels, network.scores)

    def _read(self, name: str) -> tuple[Network, list[Feed], list[Feed], Array | None]:
        """A network with its pool, its new samples and their labels."""
        network = self._network(name)
        inputs = load(network.model).inputs
        pool = list(read_feeds(network.calibration(self._pool), inputs, samples=self._pool, batch=1))
        new = first_batches(network.evaluation(), self._fresh)
        fresh = list(read_feeds(new, inputs, samples=self._fresh, batch=batch_size(inputs)))
        return network, pool, fresh, network.labels()[: self._fresh] if network.scores else None

    def _network(self, name: str) -> Network:
        if name == BUNDLED:
            return bundled_network()
        assert self._assets is not None
        (network,) = described_networks(self._assets, [name], pairs=True)
        return network


def batches(arrays: dict[str, Array], size: int) -> Iterator[Feed]:
    """Samples in batches."""
    count = len(next(iter(arrays.values())))
    for first in range(0, count, size):
        yield {name: array[first : first + size] for name, array in arrays.items()}


def joined(feeds: Sequence[Feed]) -> dict[str, Array]:
    """Batches as one array an input."""
    return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
