"""What is learnt by gradient, and how: the options of refinement, reconstruction and tuning."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass

FEWEST_ROWS, ENOUGH_STEPS, FEWEST_STEPS = 8, 200, 50
"""Where a tuning's work would not do for enough steps, a step shows fewer samples, down to a floor; of fewer than the
fewest steps nothing is learnt."""
TELLING_ROWS = 32
"""Samples that enough steps must be able to show for a whole network to be tuned: with 15, MobileNet-V2 gained nothing
at 4 bits (KL 0.46, and 0.43 before it), where refining its layers one by one took KL from 0.506 to 0.449."""


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Refinement:
    """The gradient part of AdaQuant: what is learnt and how.

    Attributes:
        steps: steps of gradient descent, for each layer and each of the two phases (grids and bias; then weights too).
        rows: rows of a layer's input in each step at most; wide layers take fewer.
        weight_rate: learning rate of the weights, in steps of their grid.
        scale_rate: learning rate of the logarithms of weight and input scales.
        bias_rate: learning rate of the bias, in standard deviations of the output.
        learn_weights: learn the integers of the weights.
        learn_scales: learn the scales of the weights.
        learn_input: learn scale and zero point of the layer's input.
        mixing: share of input elements that are taken unquantized at random in each step (QDrop).
    """

    steps: Annotated[int, Field(ge=1, le=100_000)] = 240
    rows: Annotated[int, Field(ge=16, le=65_536)] = 1024
    weight_rate: Annotated[float, Field(gt=0, le=1)] = 0.005
    scale_rate: Annotated[float, Field(gt=0, le=1)] = 0.005
    bias_rate: Annotated[float, Field(gt=0, le=1)] = 0.01
    learn_weights: bool = True
    learn_scales: bool = True
    learn_input: bool = True
    mixing: Annotated[float, Field(ge=0, le=1)] = 0.0


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Tuning:
    """Biases, scales and integer weights of all layers tuned together through the whole network.

    Attributes:
        steps: steps of gradient descent.
        rows: samples in a step; fewer where the memory asks for it.
        rate: learning rate of the biases, in standard deviations of each channel's output; it decays to 0.
        weight_rate: learning rate of the logarithms of the weights' scales; 0 leaves them.
        input_rate: learning rate of the logarithms of the input grids' scales; 0 leaves them.
        integer_rate: learning rate of the integer weights below 8 bits, in steps of their grid; 0 leaves them.
        features: weight of the error in what every layer makes, beside that of the outputs. A few hundred samples
            say too little about millions of weights unless every layer is held to its float values.
        objective: ``mse`` compares the outputs' values; ``kl`` the softmax of outputs with two axes and
            several classes. A network is sure of the few samples at hand, often those it was trained on:
            there kl says little, and what it gains is lost on others.
        mixing: share of the elements of layers' inputs that are left unquantized at random in each step (QDrop).
        mixtures: share of the samples of a step that are mixed with others.
        mirrored: share of the pictures of a step that are mirrored left to right.
        shift: pictures are shifted by at most this share of their height and width.
        work: work that the tuning may take, in multiply-adds; each value of a tensor counts for 40. Where it is not
            enough, steps show fewer samples, then there are fewer steps. The default is some five minutes of two cores.
    """

    steps: Annotated[int, Field(ge=1, le=100_000)] = 600
    rows: Annotated[int, Field(ge=1, le=1024)] = 64
    rate: Annotated[float, Field(gt=0, le=1)] = 0.003
    weight_rate: Annotated[float, Field(ge=0, le=1)] = 0.002
    input_rate: Annotated[float, Field(ge=0, le=1)] = 0.002
    integer_rate: Annotated[float, Field(ge=0, le=1)] = 0.01
    features: Annotated[float, Field(ge=0, le=1000)] = 1.0
    objective: Literal["mse", "kl"] = "mse"
    mixing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mixtures: Annotated[float, Field(ge=0, le=1)] = 0.5
    mirrored: Annotated[float, Field(ge=0, le=1)] = 0.5
    shift: Annotated[float, Field(ge=0, lt=1)] = 0.1
    work: Annotated[float, Field(gt=0)] = 1e13

    @property
    def augments(self) -> bool:
        """Whether samples are changed before they are shown."""
        return bool(self.mixtures or self.mirrored or self.shift)

    def within_work(self, macs: float, values: float, rows: int) -> tuple[int, int]:
        """Samples in a step, and steps.

        Args:
            macs: multiply-adds of a sample's pass; a step takes four: float, quantized, and two for the gradient.
            values: that such a pass makes. On a CPU each takes as long as some 40 multiply-adds (measured on
                ResNet-20 and both MobileNets, whose steps differ twenty times in time for a sample).
            rows: that a step may show.
        """
        affordable = self.work / max(4 * (macs + 40 * values), 1)
        rows = max(min(FEWEST_ROWS, rows), min(rows, int(affordable // ENOUGH_STEPS)))
        return rows, int(min(self.steps, affordable // rows))

    def affords(self, macs: float, values: float) -> bool:
        """Whether the work does for enough steps with enough samples to learn something of a whole network."""
        rows, steps = self.within_work(macs, values, self.rows)
        return rows >= min(self.rows, TELLING_ROWS) and steps >= min(self.steps, FEWEST_STEPS)


RECONSTRUCTION = Tuning(
    steps=200, rows=32, integer_rate=0.0, features=0.0, mixing=0.5, mixtures=0.0, mirrored=0.0, shift=0.0
)
"""Of blocks. The integers stay: moved by gradient on a few hundred samples, they gain on these and lose on others."""
