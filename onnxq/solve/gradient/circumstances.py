"""What a descent through a network has to do with: sizes, seed and who is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Circumstances:
    """What a tuning has to do with.

    Attributes:
        fixed: the network takes batches of one size only.
        memory_limit: bytes that a step may take, roughly.
        seed: of the samples drawn.
        tick: called with the number of steps made since the last call.
    """

    fixed: bool = False
    memory_limit: int = 2**30
    seed: int = 0
    tick: Callable[[int], None] = lambda steps: None
