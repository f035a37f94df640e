"""How far a long run is, told to whoever asked to hear it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """A moment of a run.

    Attributes:
        stage: what is being done, in a word or two; the same word for as long as it lasts.
        done: units of work finished in this stage.
        total: units of work in this stage; None where it is not known beforehand.
        detail: what is being worked on, such as a layer's name.
    """

    stage: str
    done: int
    total: int | None
    detail: str = ""


Listener = Callable[[Progress], None]


def silent(moment: Progress) -> None:
    """A listener that keeps quiet."""
