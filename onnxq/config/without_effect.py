"""Options that others leave without effect: they are refused, never ignored."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import TYPE_CHECKING

from onnxq.errors import ConfigError

if TYPE_CHECKING:
    from onnxq.config.bit_widths import Candidate
    from onnxq.config.options import Config


def require_effect(given: Collection[str]) -> None:
    """Refuse options that others make idle.

    Args:
        given: names of the options that were set: by a flag, a key of a file, or to another value than the default.

    Raises:
        ConfigError: bits of all layers stand beside candidates, or a budget without any.
    """
    idle = [name for name in ("weights", "activations") if name in given]
    if "candidates" in given and idle:
        raise ConfigError(
            f"candidates hold the bits of weights and activations, such as w4a8: leave out {' and '.join(idle)}, or "
            "leave out the candidates for the same bits in all layers."
        )
    if "budget" in given and "candidates" not in given:
        raise ConfigError(
            "a budget limits the choice among candidates, and there are none: add candidates, such as "
            "w4a8,w8a8,float, or leave out the budget."
        )


def require_choice(config: Config, *, allocated: bool) -> None:
    """Refuse candidates that nothing decides among, and a second choice beside one that is made.

    Args:
        config: candidates and budget.
        allocated: the bits of every layer are given by an allocation.

    Raises:
        ConfigError: there are candidates without a budget, or beside an allocation.
    """
    if config.candidates and allocated:
        raise ConfigError(
            "an allocation gives the bits of every layer: leave out candidates and budget, or leave out the allocation "
            "to have the bits chosen."
        )
    if config.candidates and not config.budget:
        raise ConfigError(
            "candidates need a budget to be chosen within: add one, such as size=20%, or give weights and activations "
            "for the same bits in all layers."
        )


def require_block_bits(config: Config, candidates: Iterable[Candidate]) -> None:
    """Refuse a size of blocks where no layer can have any.

    Args:
        config: the size of blocks that was asked for.
        candidates: bits that layers may take.

    Raises:
        ConfigError: none of them has blocks.
    """
    if not any(config.blocked(bits.weights, bits.activations) for bits in candidates):
        raise idle_block(config)


def idle_block(config: Config) -> ConfigError:
    """Why a size of blocks has no effect, and what to change."""
    return ConfigError(
        f"block={config.block} has no effect: only matrices whose weights have 4 bits or less and whose activations "
        "stay in float have a scale for each block, and there are none; leave it out, or ask for such bits (weights "
        "of 4 and activations of 32, or the candidate w4a32)."
    )
