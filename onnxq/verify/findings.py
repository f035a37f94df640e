"""What a verification found of single layers and tensors, and the JSON that programs are promised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any


def number(value: float | None) -> float | None:
    """The value where JSON can hold it, otherwise None."""
    return float(value) if value is not None and math.isfinite(value) else None


@dataclass(frozen=True)
class LayerBits:
    """The bits that one layer really has, read from the file and not from what was asked for.

    Attributes:
        name: of the node; its first output where the node has no name. Unique in a model.
        op: ``Conv``, ``ConvTranspose``, ``Gemm`` or ``MatMul``.
        weight_bits: bits that the stored integers need, at most their container's width; None where
            both operands are activations.
        activation_bits: bits of the quantized input (the larger of two); None where it is float.
        weight_levels_used: number of distinct integers stored; None as for ``weight_bits``.
        fused: kernel on integers that onnxruntime runs the layer as at its default level, such as
            ``QLinearConv``; None where it runs in float or that is not known.
    """

    name: str
    op: str
    weight_bits: int | None
    activation_bits: int | None
    weight_levels_used: int | None
    fused: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "op": self.op,
            "weight_bits": self.weight_bits,
            "activation_bits": self.activation_bits,
            "weight_levels_used": self.weight_levels_used,
            "fused": self.fused,
        }


@dataclass(frozen=True)
class TensorRange:
    """How much of the samples leaves the range of one quantized tensor.

    Attributes:
        tensor: name of the quantized tensor, before a Clip that keeps it on a grid of few bits.
        layers: names of the layers that read it; of other nodes that do where no layer does.
        bits: bits of its grid.
        low: the number that the grid's lowest code stands for; of a grid a channel the least of them.
        high: the number that the highest code stands for; the largest.
        share_below: share of the values that lie below the range, 0 to 1.
        share_above: share of the values that lie above it.
        excess: how far the furthest value lies beyond its end of the range, in widths of the range.
        lost: power of what is cut off at both ends, relative to the power of the tensor: Σ (x − clip(x))² / Σ x².
    """

    tensor: str
    layers: tuple[str, ...]
    bits: int
    low: float
    high: float
    share_below: float
    share_above: float
    excess: float
    lost: float

    @property
    def share_outside(self) -> float:
        """Share of the values on either side of the range."""
        return self.share_below + self.share_above

    def to_dict(self) -> dict[str, Any]:
        """JSON form, finite numbers or null."""
        return {
            "tensor": self.tensor,
            "layers": list(self.layers),
            "bits": self.bits,
            "low": number(self.low),
            "high": number(self.high),
            "share_below": self.share_below,
            "share_above": self.share_above,
            "share_outside": self.share_outside,
            "excess": number(self.excess),
            "lost": number(self.lost),
        }


@dataclass(frozen=True)
class FirstDifference:
    """Where an optimization level first goes another way than the unoptimized graph.

    Attributes:
        level: optimization level of onnxruntime.
        tensor: the first tensor that differs or cannot be computed; all that it is made of is right.
        node: name of the node that makes it.
        op: that node's operator.
        computed_by: name of the last node before it that is no QuantizeLinear or DequantizeLinear.
        computed_by_op: that node's operator.
        relative_rms: root mean square of the difference relative to that of the tensor; None where it
            cannot be computed.
        error: why it cannot be computed; None where it differs.
    """

    level: str
    tensor: str
    node: str
    op: str
    computed_by: str
    computed_by_op: str
    relative_rms: float | None = None
    error: str | None = None

    def __str__(self) -> str:
        """The place and the extent in words, without a full stop."""
        place = f"tensor {self.tensor!r} (node {self.computed_by!r}, {self.computed_by_op})"
        if self.error is not None:
            return f"{place} cannot be computed at level {self.level}"
        share = "beyond measure" if not math.isfinite(self.relative_rms or 0) else f"by {self.relative_rms or 0:.1%}"
        return f"{place} differs {share} at level {self.level}"

    def to_dict(self) -> dict[str, Any]:
        """JSON form, finite numbers or null."""
        return {**vars(self), "relative_rms": number(self.relative_rms)}
