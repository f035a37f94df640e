"""The gate of a quantization: the emitted model must load, and mean what was solved, at every level.

Kernels on integers and kernels on floats round the last bit differently, and a deep network carries such a
difference on, up to the size of the quantization error itself. What goes beyond that is a fault: a kernel
that saturates, a fusion that changes the meaning, a graph that is not what the solver simulated.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import onnx
from numpy.typing import NDArray

from onnxq.data import Feed
from onnxq.errors import NotFiniteError, VerificationError
from onnxq.verify import (
    FirstDifference,
    LevelCheck,
    check_levels,
    deviation,
    deviation_from,
    finiteness,
    first_difference,
    is_numeric,
)

Outputs = Mapping[str, NDArray[Any]]

ROOM = 2.0
"""Deviation allowed, as a multiple of the quantization error."""

LEAST_ROOM = 0.05
"""Deviation that is always allowed, relative to the output."""


class FaultError(VerificationError):
    """A level that fails or means something else, with the place where it starts.

    Args:
        sentence: what is wrong, without a full stop.
        difference: the first tensor that differs between levels; None where none does when it is computed alone.
        room: relative deviation that was allowed, where it was the simulation that the model is not.
        place: where it starts, in words; the difference when None.
    """

    def __init__(
        self,
        sentence: str,
        difference: FirstDifference | None = None,
        *,
        room: float | None = None,
        place: str | None = None,
    ) -> None:
        self.sentence, self.difference, self.room = sentence, difference, room
        place = place or (str(difference) if difference else None)
        super().__init__(
            f"{sentence}{f', first where {place}' if place else ''}; nothing was written: try other bits or "
            "another container, and report the model."
        )


def pass_gate(
    model: onnx.ModelProto,
    feeds: Sequence[Feed],
    simulated: Sequence[Outputs],
    sqnr_db: Mapping[str, float | None],
    exact: Sequence[Outputs] = (),
) -> tuple[LevelCheck, ...]:
    """Run the emitted model at every level, and compare the levels with each other and with the simulation.

    Args:
        model: as emitted.
        feeds: a few batches.
        simulated: outputs of the solver's simulation for the first of these batches, where there are any.
        sqnr_db: of the simulation against the float network, by output; tells how large the error is.
        exact: the float model's outputs for the batches simulated, which tell it where no figure does.

    Raises:
        FaultError: a level does not load or run, or its answers are not those of the others or those simulated.
    """
    checks = check_levels(model, feeds)
    failed = [f"{check.level} ({check.error})" for check in checks if not check.ok]
    if failed:
        lowest = next(check.level for check in checks if not check.ok)
        raise FaultError(
            f"the quantised model does not run in onnxruntime at level {', '.join(failed)}",
            first_difference(model, feeds, lowest),
        )
    known = [db for db in sqnr_db.values() if db is not None]
    room = max(LEAST_ROOM, ROOM * (10 ** (-min(known) / 20) if known else _error(exact, simulated)))
    for check in checks:
        if (check.relative_rms or 0.0) > room:
            place = first_difference(model, feeds, check.level, tolerance=room)
            raise FaultError(_sentence(f"at level {check.level}", "unoptimised", check.relative_rms, room), place)
    apart = deviation_from(model, feeds[: len(simulated)], simulated)
    if apart > room:
        raise FaultError(_sentence("as emitted", "as simulated", apart, room), room=room)
    return checks


def _error(exact: Sequence[Outputs], simulated: Sequence[Outputs]) -> float:
    """Deviation of the worst simulated output from the float model's; half, which is a lot, where that is not known."""
    names = [name for name in (exact[0] if exact and simulated else ()) if name in simulated[0]]
    pairs = ([[batch[name] for batch in batches] for batches in (exact, simulated)] for name in names)
    found = [deviation(*pair) for pair in pairs if all(is_numeric(a) for batches in pair for a in batches)]
    return max(found, default=0.5)


def require_finite(model: onnx.ModelProto, batches: Iterable[tuple[Feed, Outputs]]) -> None:
    """Refuse an emitted model that answers NaN or infinity where the float model answers numbers.

    Args:
        model: as emitted.
        batches: feeds, and the float model's outputs for each.

    Raises:
        NotFiniteError: names the output.
    """
    found = finiteness(model, batches)
    name = next((name for name, judged in found.items() if judged.fault), None)
    if name is not None:
        raise NotFiniteError(f"output {name!r}")


def _sentence(one: str, other: str, found: float | None, room: float) -> str:
    return (
        f"the quantised model's outputs {one} differ from those {other} by {100 * (found or 0.0):.1f}% of their size, "
        f"more than the {100 * room:.1f}% that rounding explains"
    )
