"""Weights of k bits in k bits: what is stored, and the operators that make int8 of it.

onnxruntime works out operators on constants once, when it starts, and before it looks for integer kernels. So what
stands behind the unpacking is an int8 weight to it. Every step leaves a tensor behind until all are done, so few and
small steps count: at start-up a model takes as much more memory as its steps have bytes.

==== =============================================================== ===== ==================== ======
bits stored                                                          nodes bytes made, a weight opset
==== =============================================================== ===== ==================== ======
2    INT2                                                            1     1                    25
3    2 low bits as UINT2, signs of two weights as one INT2           5     4                    25
4    INT4                                                            1     1                    21
5    4 low bits as UINT4, signs of two weights as one INT2           5     4                    25
6    4 low bits as UINT4, 2 high ones as INT2                        4     4                    25
7    seven weights in int8, an eighth in their lowest bits           6     4¾                   18
==== =============================================================== ===== ==================== ======

*Signs of two weights.* A signed 2-bit number has the bits … s s s r once it is an int8: its sign s everywhere but in
the lowest. The exclusive or with it makes a weight of two (or four) low bits a signed one of sign s; what the lowest
bits suffer is known, and undone where they are stored. Its remainder by −2 is 0 or −1, … r r r r: the other's sign.

*An eighth weight.* Twice a 7-bit weight leaves the lowest bit of a byte free. Seven of them, weighed 1, 2, 4 … 64 by a
QLinearMatMul, are an eighth weight.

Weights may lie anywhere on the 8-bit grid: a channel whose 2^k integers do not start at −2^(k−1) has an offset, added
at the end (one more node, one more byte made a weight).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

RESULT: Final = "quantized"
"""Name of the int8 weights among the steps."""


@dataclass(frozen=True)
class Step:
    """An operator on constants.

    Attributes:
        op: of the standard domain.
        inputs: names of constants or of what other steps make.
        output: name.
        attributes: of the node; the element type that a Cast makes is int8.
    """

    op: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Packing:
    """A weight as it is stored, and how it is unpacked.

    Attributes:
        parts: stored tensors of this weight by name, in types of 2, 4 or 8 bits.
        helpers: small constants by name, which weights may share where they have the same value.
        steps: from the parts to :data:`RESULT`, int8, in the weight's shape.
        size: number of weights.
    """

    parts: Mapping[str, NDArray[Any]]
    helpers: Mapping[str, NDArray[Any]]
    steps: tuple[Step, ...]
    size: int


def pack(integers: NDArray[np.integer[Any]], bits: int, axis: int = 0) -> Packing:
    """Store integers of the 8-bit grid of which every channel spans less than 2^bits.

    Args:
        integers: any shape of at least one axis, within −128 to 127.
        bits: 2 to 7.
        axis: of the channels, each of which may have an offset of its own.

    Raises:
        ValueError: a channel needs more bits.
    """
    codes, offsets = _on_one_grid(integers.astype(np.int16), bits, axis)
    packing = _FORMS[bits](codes.astype(np.int8), bits)
    if offsets is None:
        return packing
    *before, last = packing.steps
    steps = (
        *before,
        Step(last.op, last.inputs, "codes", last.attributes),
        Step("Add", ("codes", "offsets"), RESULT),
    )
    return Packing({**packing.parts, "offsets": offsets}, packing.helpers, steps, codes.size)


def _on_one_grid(
    integers: NDArray[np.int16], bits: int, axis: int
) -> tuple[NDArray[np.int16], NDArray[np.int8] | None]:
    """Integers from −2^(bits−1) to 2^(bits−1) − 1, and what each channel adds to them; None where none adds any."""
    half = 1 << (bits - 1)
    others = tuple(i for i in range(integers.ndim) if i != axis)
    low = integers.min(axis=others, keepdims=True, initial=0)
    high = integers.max(axis=others, keepdims=True, initial=0)
    if low.min(initial=0) >= -half and high.max(initial=0) < half:
        return integers, None
    low, high = (f(integers, axis=others, keepdims=True) for f in (np.min, np.max))
    if (high - low).max() >= 2 * half:
        raise ValueError(f"a channel spans {int((high - low).max()) + 1} integers, which {bits} bits do not hold")
    if low.min() < -128 or high.max() > 127:
        raise ValueError(f"integers from {int(low.min())} to {int(high.max())} do not fit a byte")
    offsets = np.clip(0, high - half + 1, low + half)  # the nearest to none
    return integers - offsets, offsets.astype(np.int8)


def _whole(codes: NDArray[np.int8], bits: int) -> Packing:
    kind = ml_dtypes.int2 if bits == 2 else ml_dtypes.int4
    return Packing({"packed": codes.astype(kind)}, {}, (_cast("packed", RESULT),), codes.size)


def _with_signs(codes: NDArray[np.int8], bits: int) -> Packing:
    axis = _even_axis(codes.shape)
    half = -(-codes.shape[axis] // 2)
    first, second = np.split(codes < 0, [half], axis=axis)
    paired = np.zeros(first.shape, np.int8)
    paired[_upto(axis, second.shape[axis])] = second
    paired -= 2 * first.astype(np.int8)
    rest = paired[_upto(axis, second.shape[axis])]
    signs = np.concatenate([paired, np.mod(rest, np.int8(-2))], axis=axis)
    low = (codes ^ signs) & np.int8((1 << (bits - 1)) - 1)
    parts = {
        "packed": low.astype(ml_dtypes.uint2 if bits == 3 else ml_dtypes.uint4),
        "signs": paired.astype(ml_dtypes.int2),
    }
    helpers: dict[str, NDArray[Any]] = {"minus two": np.array(-2, np.int8)}
    steps = [_cast("packed", "low"), _cast("signs", "first")]
    ahead = "first"
    if codes.shape[axis] % 2:
        helpers |= {"from": np.zeros(1, np.int64), "to": np.array([-1]), "along": np.array([axis])}
        ahead = "paired"
        steps.append(Step("Slice", ("first", "from", "to", "along"), ahead))
    steps += [
        Step("Mod", (ahead, "minus two"), "second"),
        Step("Concat", ("first", "second"), "bent", {"axis": axis}),
        Step("BitwiseXor", ("low", "bent"), RESULT),
    ]
    return Packing(parts, helpers, tuple(steps), codes.size)


def _with_high_bits(codes: NDArray[np.int8], _: int) -> Packing:
    parts = {"packed": (codes & 15).astype(ml_dtypes.uint4), "top": (codes >> 4).astype(ml_dtypes.int2)}
    steps = (
        _cast("packed", "low"),
        _cast("top", "high"),
        Step("Mul", ("high", "sixteen"), "raised"),
        Step("Add", ("low", "raised"), RESULT),
    )
    return Packing(parts, {"sixteen": np.array(16, np.int8)}, steps, codes.size)


def _in_lowest_bits(codes: NDArray[np.int8], _: int) -> Packing:
    rows = -(-codes.size // 8)
    flat = np.zeros(8 * rows, np.int8)
    flat[: codes.size] = codes.reshape(-1)
    whole, spread = flat[: 7 * rows].reshape(7, rows), flat[7 * rows :].astype(np.int16) + 64
    bits = (spread[None] >> np.arange(7, dtype=np.int16)[:, None]) & 1
    helpers: dict[str, NDArray[Any]] = {
        "two": np.array(2, np.int8),
        "minus two": np.array(-2, np.int8),
        "weighing": (1 << np.arange(7)).astype(np.int8).reshape(1, 7),
        "one": np.array(1, np.float32),
        "nothing": np.array(0, np.int8),
        "minus 64": np.array(-64, np.int8),
        "shape": np.array(codes.shape, np.int64),
    }
    steps = [
        Step("Mod", ("packed", "two"), "lowest"),
        Step(
            "QLinearMatMul",
            ("weighing", "one", "nothing", "lowest", "one", "nothing", "one", "minus 64"),
            "eighth",
        ),
        Step("BitwiseAnd", ("packed", "minus two"), "doubled"),
        Step("Div", ("doubled", "two"), "seven"),
        Step("Concat", ("seven", "eighth"), "all", {"axis": 0}),
    ]
    rows_of = "all"
    if codes.size % 8:
        rows_of = "cut"
        helpers |= {"flat": np.array([-1]), "from": np.zeros(1, np.int64), "to": np.array([codes.size])}
        steps += [Step("Reshape", ("all", "flat"), "line"), Step("Slice", ("line", "from", "to"), rows_of)]
    steps.append(Step("Reshape", (rows_of, "shape"), RESULT))
    return Packing({"packed": (2 * whole + bits).astype(np.int8)}, helpers, tuple(steps), codes.size)


_FORMS: Final = {
    2: _whole,
    3: _with_signs,
    4: _whole,
    5: _with_signs,
    6: _with_high_bits,
    7: _in_lowest_bits,
}


def _cast(source: str, made: str) -> Step:
    return Step("Cast", (source,), made)


def _even_axis(shape: Sequence[int]) -> int:
    """The first axis of even length; the longest where there is none."""
    return next((i for i, n in enumerate(shape) if n % 2 == 0), max(range(len(shape)), key=lambda i: shape[i]))


def _upto(axis: int, end: int) -> tuple[slice, ...]:
    return (*(slice(None),) * axis, slice(end))
