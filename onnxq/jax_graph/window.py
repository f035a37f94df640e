"""Where a sliding window stands: padding in the forms that ONNX states it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Placement:
    """A window over spatial axes; one entry an axis.

    Attributes:
        kernel, strides, dilations: sizes in elements.
        padding: rows added before and behind; negative ones are cut off.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]

    @property
    def extent(self) -> tuple[int, ...]:
        """Elements that the dilated window spans."""
        return tuple(d * (k - 1) + 1 for k, d in zip(self.kernel, self.dilations, strict=True))

    def output_size(self, size: Sequence[int]) -> tuple[int, ...]:
        """Windows that fit along each axis of an input of this size."""
        return tuple(
            (n + sum(p) - e) // s + 1 for n, p, e, s in zip(size, self.padding, self.extent, self.strides, strict=True)
        )


def place(
    size: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int] | None,
    dilations: Sequence[int] | None,
    pads: Sequence[int] | None,
    auto_pad: str,
) -> Placement:
    """Resolve what a convolution's or a pooling's attributes leave open.

    Args:
        size: of the input's spatial axes.
        kernel: of the window.
        strides: 1 each when None.
        dilations: 1 each when None.
        pads: all begins, then all ends; none when None.
        auto_pad: NOTSET, VALID, SAME_UPPER or SAME_LOWER.
    """
    rank = len(kernel)
    strides, dilations = tuple(strides or (1,) * rank), tuple(dilations or (1,) * rank)
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        padding = []
        for n, k, s, d in zip(size, kernel, strides, dilations, strict=True):
            total = max((-(-n // s) - 1) * s + d * (k - 1) + 1 - n, 0)
            begin = total // 2 if auto_pad == "SAME_UPPER" else -(-total // 2)
            padding.append((begin, total - begin))
    else:
        pads = (0,) * (2 * rank) if auto_pad == "VALID" or pads is None else pads
        padding = list(zip(pads[:rank], pads[rank:], strict=True))
    return Placement(tuple(kernel), strides, dilations, tuple(padding))
