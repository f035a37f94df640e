"""A choice of bits for one layer: of its weights and of its input."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from onnxq.errors import ConfigError

WEIGHTS = (2, 3, 4, 5, 6, 7, 8, 16)
ACTIVATIONS = (2, 3, 4, 5, 6, 7, 8, 16, 32)
_FORM = re.compile(r"w(\d+)a(\d+)")


@dataclass(frozen=True, order=True)
class Candidate:
    """Bits that a layer may take.

    Attributes:
        weights: 2 to 8, 16, or 32 for a layer that is left in float altogether.
        activations: of the layer's input: 2 to 8, 16, or 32 for one that stays in float.
    """

    weights: int
    activations: int

    def __str__(self) -> str:
        """The form that :func:`parse_candidate` reads."""
        return "float" if self == FLOAT else f"w{self.weights}a{self.activations}"


FLOAT = Candidate(32, 32)
"""A layer that is not quantized."""


def parse_candidate(text: str) -> Candidate:
    """A candidate from ``w4a8``, ``w4a32`` (weights alone) or ``float``.

    Raises:
        ConfigError: it reads otherwise, or the bits are none of those that exist.

    Example:
        >>> parse_candidate("w4a8")
        Candidate(weights=4, activations=8)
    """
    plain = text.strip().lower()
    if plain == "float":
        return FLOAT
    match = _FORM.fullmatch(plain)
    found = Candidate(int(match[1]), int(match[2])) if match else None
    if found is None or found.weights not in WEIGHTS or found.activations not in ACTIVATIONS:
        raise ConfigError(
            f"candidate {text!r} is not understood; write weight and activation bits such as w4a8, w4a32 for an input "
            "in float, or float for the whole layer (weights 2 to 8 or 16, activations 2 to 8, 16 or 32)."
        )
    return found


def parse_candidates(words: str | Iterable[str]) -> tuple[Candidate, ...]:
    """Candidates from ``w4a8,w8a8`` or from several such words, each once, in their order.

    Raises:
        ConfigError: one is not understood, or there is none.
    """
    parts = words.split(",") if isinstance(words, str) else [p for word in words for p in word.split(",")]
    found = tuple(dict.fromkeys(parse_candidate(part) for part in parts if part.strip()))
    if not found:
        raise ConfigError("no candidate was given; name the bits to choose from, such as w4a8,w8a8.")
    return found
