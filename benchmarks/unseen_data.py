"""Made-up data in the statistics of real ones: features that go together, pictures, sounds, words and bytes.

A law is drawn once for a network; it then gives as many samples as are wanted, each time others. Samples differ as
wholes: by loudness or contrast, by topic, by kind. How much they do is the law's own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Law = Callable[[np.random.Generator, int], Array]
"""Random numbers and a number of samples to an array, first axis samples."""

PADDING = 256
"""Stands behind the end of a short file, beside the 256 bytes."""


def features(rng: np.random.Generator, width: int) -> Law:
    """Rows of a table, (samples, width) float32: a few groups, columns that go together, each in a unit of its own."""
    spectrum = np.arange(1, width + 1) ** -rng.uniform(0.5, 1.2)
    mixing = np.linalg.qr(rng.standard_normal((width, width)))[0] * spectrum
    mixing *= np.sqrt(width / np.square(spectrum).sum())
    groups = mixing @ rng.standard_normal((width, 6))
    tail = rng.choice((0.0, 0.15, 0.3))
    unit, offset = np.exp(0.5 * rng.standard_normal(width)), 0.5 * rng.standard_normal(width)

    def law(numbers: np.random.Generator, samples: int) -> Array:
        own = numbers.standard_normal((samples, width)) @ mixing.T
        own *= np.exp(tail * numbers.standard_normal((samples, 1)))
        group = groups.T[numbers.integers(0, groups.shape[1], samples)]
        return np.asarray(unit * (0.8 * own + 0.6 * group + offset), np.float32)

    return law


def pictures(rng: np.random.Generator, channels: int, side: int) -> Law:
    """Pictures, (samples, channels, side, side) float32: smoothed noise of their own sharpness, contrast and light.

    Pixels end at black and at white, as those of photographs do, before they are brought to mean 0 and deviation 1.
    """
    frequency = np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :])
    frequency[0, 0] = np.inf
    spread = rng.uniform(0.2, 0.5)

    def law(numbers: np.random.Generator, samples: int) -> Array:
        noise = numbers.standard_normal((samples, channels + 1, side, side))
        common = noise[:, :1] + 0.4 * noise[:, 1:]
        falling = frequency ** numbers.uniform(0.7, 1.5, (samples, 1, 1, 1))
        image = np.fft.irfft2(np.fft.rfft2(common) / falling, s=(side, side))
        image /= image.std((1, 2, 3), keepdims=True)
        contrast = 0.2 * np.exp(spread * numbers.standard_normal((samples, 1, 1, 1)))
        light = 0.45 + 0.12 * numbers.standard_normal((samples, channels, 1, 1))
        return np.asarray((np.clip(contrast * image + light, 0, 1) - 0.45) / 0.25, np.float32)

    return law


def sounds(rng: np.random.Generator, steps: int, width: int) -> Law:
    """Bands over time, (samples, steps, width) float32: slow sources, of a loudness of their own, and sudden ones."""
    sources = min(width, 8)
    mixing = rng.standard_normal((sources, width)) * (np.arange(1, sources + 1) ** -0.8)[:, None]
    floor, spread = 0.3 * rng.standard_normal(width), rng.uniform(0.2, 0.5)

    def law(numbers: np.random.Generator, samples: int) -> Array:
        slow = numbers.standard_normal((samples, steps, sources))
        for t in range(1, steps):
            slow[:, t] = 0.9 * slow[:, t - 1] + np.sqrt(1 - 0.9**2) * slow[:, t]
        sudden = (numbers.random((samples, steps, 1)) < 0.03) * numbers.standard_normal((samples, steps, sources))
        loud = np.exp(spread * numbers.standard_normal((samples, 1, 1)))
        return np.asarray(loud * ((slow + 3 * sudden) @ mixing) + floor, np.float32)

    return law


def words(rng: np.random.Generator, length: int, known: int) -> Law:
    """Texts, (samples, length) int64 below ``known``: words as Zipf's law says, half of them of the text's topic."""
    often = 1.0 / np.arange(1, known + 1)
    often /= often.sum()
    topics = [rng.permutation(known) for _ in range(12)]

    def law(numbers: np.random.Generator, samples: int) -> Array:
        ranks = numbers.choice(known, (samples, length), p=often)
        topic = numbers.integers(0, len(topics), samples)
        special = numbers.random((samples, length)) < 0.5
        return np.where(special, np.stack([topics[t] for t in topic])[np.arange(samples)[:, None], ranks], ranks)

    return law


def files(rng: np.random.Generator, length: int) -> Law:
    """First bytes of files, (samples, length) int32: texts, tables of numbers, machine code, noise, some of them short.

    Behind the end stands :data:`PADDING`.
    """
    letters = 1.0 / np.arange(1, 257)
    letters /= letters.sum()
    kinds = [rng.permutation(256) for _ in range(6)]
    heads = rng.integers(0, 256, (len(kinds), 4))

    def one(numbers: np.random.Generator) -> Array:
        kind = int(numbers.integers(0, len(kinds) + 1))
        if kind == len(kinds):
            found = numbers.integers(0, 256, length)
        else:
            found = kinds[kind][numbers.choice(256, length, p=letters)]
            found[: heads.shape[1]] = heads[kind]
            if kind % 2:
                found[4::4] = 0  # numbers of four bytes whose highest is nought
        if numbers.random() < 0.3:
            found[numbers.integers(8, length) :] = PADDING
        return found

    def law(numbers: np.random.Generator, samples: int) -> Array:
        return np.stack([one(numbers) for _ in range(samples)]).astype(np.int32)

    return law
