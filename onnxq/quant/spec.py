"""How a tensor is quantized: the grid (spec) and its placement on the real line (parameters)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Granularity(Enum):
    """How many scales a tensor has."""

    PER_TENSOR = "one scale for the whole tensor"
    PER_CHANNEL = "one scale for each output channel"
    PER_BLOCK = "one scale for so many inputs of each output channel"


@dataclass(frozen=True)
class QuantSpec:
    """An integer grid.

    Attributes:
        bits: 2 to 8, or 16.
        signed: integers from −2^(bits−1); otherwise from 0.
        granularity: how many scales.
        narrow: leave the lowest integer of a signed grid unused, so that the grid is symmetric.
        symmetric: the zero point stays 0.
    """

    bits: int
    signed: bool
    granularity: Granularity = Granularity.PER_TENSOR
    narrow: bool = False
    symmetric: bool = False

    @property
    def qmin(self) -> int:
        """Lowest integer of the grid."""
        return int(self.narrow) - (1 << (self.bits - 1)) if self.signed else 0

    @property
    def qmax(self) -> int:
        """Highest integer of the grid."""
        return (1 << (self.bits - 1 if self.signed else self.bits)) - 1

    @property
    def container(self) -> np.dtype[Any]:
        """The integer type of 8 or 16 bits that holds the grid."""
        return np.dtype(f"{'int' if self.signed else 'uint'}{16 if self.bits > 8 else 8}")


def weight_spec(bits: int, granularity: Granularity = Granularity.PER_CHANNEL) -> QuantSpec:
    """The grid of weights: signed, zero point 0, one scale an output channel unless told otherwise.

    From 5 bits on the lowest integer stays unused: it costs nothing there, and integer kernels that
    negate or add pairs of products need the room. Below, it is a sixteenth of the grid or more.
    """
    return QuantSpec(bits=bits, signed=True, granularity=granularity, narrow=bits > 4)


def activation_spec(bits: int, *, symmetric: bool = False) -> QuantSpec:
    """The grid of activations, one scale: unsigned with a zero point, or signed around 0."""
    return QuantSpec(bits=bits, signed=symmetric, symmetric=symmetric)


@dataclass(frozen=True)
class QuantParams:
    """A grid on the real line: real = (integer − zero_point) · scale.

    Attributes:
        spec: the grid.
        scale: positive, float32; () or, for weights, (1,) per tensor, (channels,) per channel; per block a
            matrix in the layout of the stored weight, with one entry where that has a block of inputs.
        zero_point: the integer that stands for 0.
    """

    spec: QuantSpec
    scale: NDArray[np.float32]
    zero_point: int = 0

    @property
    def lowest(self) -> NDArray[np.float32]:
        """The real number that qmin stands for."""
        return np.asarray((self.spec.qmin - self.zero_point) * self.scale, np.float32)

    @property
    def highest(self) -> NDArray[np.float32]:
        """The real number that qmax stands for."""
        return np.asarray((self.spec.qmax - self.zero_point) * self.scale, np.float32)
