"""How much of something an allocation may spend."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from onnxq.errors import ConfigError

LOSS = "loss"
"""The quantity that an allocation loses instead of spending."""

QUANTITIES = {
    LOSS: "distance of the network's output from the float network's, in the units of the sensitivities",
    "size": "bytes of the file",
    "bops": "bit operations of a sample: multiplications × weight bits × activation bits",
    "energy": "picojoules of a sample, by a table",
    "latency": "milliseconds of a run",
}

_UNITS: dict[str, dict[str, float]] = {
    "size": {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "B": 1},
    "latency": {"ms": 1, "us": 1e-3, "s": 1e3},
    "energy": {"pJ": 1, "nJ": 1e3, "uJ": 1e6, "mJ": 1e9},
    "bops": {"G": 1e9, "M": 1e6, "ops": 1},
    LOSS: {},
}


@dataclass(frozen=True)
class Budget:
    """An upper limit of one quantity.

    Attributes:
        quantity: one of :data:`QUANTITIES`.
        amount: the limit, in the quantity's unit or as a fraction.
        relative: the amount is a fraction of what the float network spends.
    """

    quantity: str
    amount: float
    relative: bool = False

    def __str__(self) -> str:
        """The form that :func:`parse_budget` reads."""
        if self.relative:
            return f"{self.quantity}={100 * self.amount!r}%"
        unit = next((u for u, factor in _UNITS[self.quantity].items() if factor == 1), "")
        return f"{self.quantity}={self.amount!r}{unit}"

    def limit(self, spent_in_float: float) -> float:
        """The limit in the quantity's unit."""
        return self.amount * spent_in_float if self.relative else self.amount


def parse_budget(text: str) -> Budget:
    """A budget from ``size=0.13``, ``size=13%``, ``size=300KiB``, ``latency=2.5ms``, ``bops=1e9``, ``loss=0.02``.

    A bare number up to 1 is a fraction of what the float network spends, a larger one an amount in bytes,
    bit operations, picojoules or milliseconds; a loss is always an amount.

    Raises:
        ConfigError: the quantity is unknown or the number is none.
    """
    name, _, value = (part.strip() for part in text.partition("="))
    if name not in _UNITS:
        raise ConfigError(
            f"budget {text!r} names no known quantity; write one of {', '.join(QUANTITIES)}, = and a number."
        )
    factor, relative = 1.0, False
    if value.endswith("%") and name != LOSS:
        value, factor, relative = value[:-1], 0.01, True
    unit = next((u for u in _UNITS[name] if value.endswith(u) and not value.removesuffix(u).endswith("i")), None)
    if unit is not None and not relative:
        value, factor = value.removesuffix(unit), _UNITS[name][unit]
    try:
        amount = float(value) * factor
    except ValueError:
        amount = math.nan
    if not math.isfinite(amount) or amount < 0:
        units = f", with one of {', '.join(_UNITS[name])}, or a percentage" if _UNITS[name] else ""
        raise ConfigError(f"budget {text!r} has no amount; write a number that is not negative{units}.")
    bare = unit is None and not relative and name != LOSS
    return Budget(name, amount, relative or (bare and amount <= 1))


def parse_budgets(words: Iterable[str]) -> tuple[Budget, ...]:
    """Several budgets, each of another quantity; a word may hold several, parted by commas.

    Raises:
        ConfigError: one is not understood, or two limit the same quantity.
    """
    found = tuple(parse_budget(part) for word in words for part in word.split(",") if part.strip())
    names = [budget.quantity for budget in found]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"{twice[0]} has two budgets; give the lower one alone.")
    return found
