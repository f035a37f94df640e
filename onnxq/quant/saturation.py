"""Weights that integer kernels of x86 CPUs without VNNI compute exactly.

Their instruction (vpmaddubsw) multiplies unsigned 8-bit activations by signed 8-bit weights and adds pairs of
products in 16 bits, where they saturate: 255·(w₁ + w₂) must stay within ±32767, hence |w₁ + w₂| ≤ 128 where
both weights have one sign. Grids of 7 bits and less always do. At 8 bits a channel whose large weights
come in pairs takes a wider step, and what rounding still lifts over the line is put back on it. Unsigned
weights would be exact without this care, at half the speed.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

PAIR_ROOM = 128
"""Largest sum of two weights of one sign: ⌊32767 / 255⌋."""

Pairs = NDArray[np.intp]
"""Which inputs are multiplied in pairs, (P, 2), indices along K."""


def exact_scale(weight: NDArray[np.floating], pairs: Pairs) -> NDArray[np.float32]:
    """Least scale at which no pair of a matrix (G, K, N) saturates, but for rounding; (G, N)."""
    first, second = weight[:, pairs[:, 0]], weight[:, pairs[:, 1]]
    sums = np.where(np.sign(first) == np.sign(second), np.abs(first + second), 0)
    scale: NDArray[np.float32] = (sums.max(axis=1, initial=0) / PAIR_ROOM).astype(np.float32)
    return scale


def without_saturation(integers: NDArray[np.float32], pairs: Pairs) -> NDArray[np.float32]:
    """The integers (G, K, N) with the larger weight of each pair that would saturate brought nearer to zero."""
    exact = integers.copy()
    first, second = integers[:, pairs[:, 0]], integers[:, pairs[:, 1]]
    excess = np.where(np.sign(first) == np.sign(second), np.abs(first + second) - PAIR_ROOM, 0).clip(min=0)
    larger = np.abs(first) >= np.abs(second)
    exact[:, pairs[:, 0]] -= np.where(larger, np.sign(first) * excess, 0)
    exact[:, pairs[:, 1]] -= np.where(larger, 0, np.sign(second) * excess)
    return exact
