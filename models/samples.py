"""Structured random inputs for networks without data: images and sentences in their statistics, not in meaning."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.models import bert
from onnxq.models.network import Network

START, END, FIRST_WORD = 101, 102, 1000
"""The tokens [CLS] and [SEP] and the first whole word in the vocabulary of uncased BERT; 0 pads."""


def samples(
    network: Network, count: int, *, batch: int = 16, sequence: int = 128, seed: int = 0
) -> Iterator[dict[str, NDArray[Any]]]:
    """Batches of random inputs; sample i is the same whatever the batch.

    Args:
        network: an image classifier or a BERT.
        count: samples in all.
        batch: samples a batch at most.
        sequence: tokens a sample, padding included; not used for images.
        seed: of all samples.
    """
    image = len(network.inputs) == 1
    shape = tuple(a for a in network.inputs[0][2][1:] if isinstance(a, int))
    for first in range(0, count, batch):
        numbers = [np.random.default_rng([seed, i]) for i in range(first, min(first + batch, count))]
        if image:
            yield {network.inputs[0][0]: np.stack([natural_image(rng, shape) for rng in numbers])}
        else:
            rows = [sentence_pair(rng, sequence) for rng in numbers]
            yield {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def natural_image(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """A random image, (channels, height, width), of mean 0 and variance 1 whose amplitudes fall as 1 / frequency.

    Natural images have that spectrum, and channels that mostly agree (D. Field, *Relations between the statistics
    of natural images and the response properties of cortical cells*, JOSA A 4, 1987): neighbouring pixels are
    alike, and so are the activations a convolution makes of them.
    """
    channels, height, width = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None, :])
    frequency[0, 0] = np.inf
    noise = rng.standard_normal((channels + 1, height, width), np.float32)
    common = noise[:1] + 0.3 * noise[1:]
    image: NDArray[Any] = np.fft.irfft2(np.fft.rfft2(common) / frequency, s=(height, width))
    # Brightness and contrast of a whole image vary from one to the next.
    contrast, brightness = np.exp(0.2 * rng.standard_normal()), 0.2 * rng.standard_normal((channels, 1, 1))
    return np.asarray(image / image.std() * contrast + brightness, np.float32)


def sentence_pair(rng: np.random.Generator, sequence: int) -> dict[str, NDArray[np.int64]]:
    """Two random sentences and their marks, (sequence,) int64 each; words as Zipf's law says, then padding."""
    length = int(rng.integers(max(4, sequence // 2), sequence + 1))
    boundary = int(rng.integers(2, length - 1))
    rank = np.exp(rng.random(length) * np.log(bert.WORDS - FIRST_WORD)).astype(np.int64) - 1
    tokens = np.zeros(sequence, np.int64)
    tokens[:length] = FIRST_WORD + rank
    tokens[[0, boundary, length - 1]] = START, END, END
    position = np.arange(sequence)
    return {
        bert.TOKENS: tokens,
        bert.MASK: (position < length).astype(np.int64),
        bert.SEGMENTS: ((position > boundary) & (position < length)).astype(np.int64),
    }
