"""Numbers and names in the form that people read."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from onnxq.config import FLOAT_BITS

if TYPE_CHECKING:
    from onnxq.verify import Latency, LevelCheck

NONE = "–"


def in_bytes(size: int) -> str:
    """A file size.

    Example:
        >>> in_bytes(188_859)
        '184.4 KiB'
    """
    if size < 1024:
        return f"{size} bytes"
    exponent = min(int(math.log2(size)) // 10, 3)
    return f"{size / 1024**exponent:.1f} {('KiB', 'MiB', 'GiB')[exponent - 1]}"


def bits(weights: int | None, activations: int | None) -> str:
    """Bits of weights and activations, such as ``4/8``; ``4/float`` for an input that is not quantized.

    Args:
        weights: None for a product of two activations.
        activations: None or 32 where they are float.
    """
    made = "float" if activations is None or activations >= FLOAT_BITS else str(activations)
    return f"{NONE if weights is None else weights}/{made}"


def loss(value: float) -> str:
    """A relative squared error."""
    return NONE if not math.isfinite(value) else f"{value:.2e}"


def number(value: float | None) -> str:
    """Three digits."""
    return NONE if value is None else f"{value:.3g}"


def percent(value: float | None) -> str:
    """A percentage given as 0 to 100."""
    return NONE if value is None else f"{value:.2f} %"


def decibels(value: float | None) -> str:
    """A signal to noise ratio; ``exact`` where it is infinite."""
    if value is None:
        return NONE
    return "exact" if value == math.inf else f"{value:.1f} dB"


def small_share(value: float) -> str:
    """A share given as 0 to 1, two digits of a percentage however small."""
    return NONE if value == 0 else f"{100 * value:.2g} %"


def beyond(widths: float) -> str:
    """A distance in widths of a range."""
    return f"{widths:.2g}" if math.isfinite(widths) else "infinite"


def shape(dims: Sequence[int | None] | None) -> str:
    """A shape, such as ``1x3x32x32``; a question mark where it is open."""
    return "?" if dims is None else "x".join("?" if d is None else str(d) for d in dims)


def sizes(before: int, after: int) -> str:
    """Two file sizes and their ratio."""
    ratio, change = (before / after, "smaller") if after <= before else (after / before, "larger")
    return f"{in_bytes(before)} before, {in_bytes(after)} after: {ratio:.1f} times {change}"


def speed(found: Latency) -> str:
    """Time of a run of both models, and the ratio."""
    threads = {0: "", 1: ", one thread"}.get(found.threads, f", {found.threads} threads")
    return (
        f"{number(found.fp32)} ms before, {number(found.quantized)} ms after: {found.speedup:.2f} times as fast "
        f"(batch of {found.batch}{threads}, {found.runs} run{'s'[: found.runs != 1]} each)"
    )


def missing_speed(found: float | None, required: float) -> str:
    """That a speed-up is below what was asked for."""
    told = "not known" if found is None else f"{found:.2f} times the float model's"
    return f"Its speed is {told}, and {required:g} times was asked for"


def levels(checks: Iterable[LevelCheck]) -> str:
    """Whether a model works at the optimization levels, and how far its answers move between them."""
    checks = tuple(checks)
    failed = [f"{check.level} ({printable(check.error or '')})" for check in checks if not check.ok]
    if failed:
        return f"not at level {', '.join(failed)}"
    moved = max((check.relative_diff or 0.0 for check in checks), default=0.0)
    return f"at every optimisation level; answers differ by {100 * moved:.2g} % at most"


def printable(text: str) -> str:
    """Text without the control characters that a name in a model may hold and a terminal would obey."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
