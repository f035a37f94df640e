"""Allocations carried out and judged, as rows that are written down as they come."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import record

from onnxq.allocation.bit_allocation import BitAllocation

HEAD = ("network", "chosen by", "budget", "spent", "file", "KL predicted", "KL", "top-1, float → quantised", "bits")

FRONT = "front"
"""How a row along the front is called."""


@dataclass(frozen=True)
class Row:
    """One allocation, carried out and judged.

    Attributes:
        network: its name.
        how: it was chosen.
        budget: asked for, as a share of the float network; None where there was none.
        spent: by the table, as such a share.
        file: its size, as such a share.
        predicted: loss, by the table.
        held: loss on calibration samples that the solvers did not fit.
        kl: on the evaluation set, as top-1 in percent.
        bits: how many layers have which.
        evaluated: samples of the evaluation set.
        seconds: to quantize.
        choice: bits of the layers in their order.
    """

    network: str
    how: str
    budget: float | None
    spent: float
    file: float
    predicted: float
    held: float
    kl: float
    top1_fp32: float
    top1: float
    bits: str
    evaluated: int
    seconds: float
    choice: str


class Record:
    """Rows and facts on disk, as far as they have come."""

    def __init__(self, out: Path, settings: dict[str, Any]) -> None:
        self._out, self._settings = out, settings
        path = out.with_suffix(".json")
        found = json.loads(path.read_text()) if path.exists() else {"settings": settings, "rows": [], "facts": {}}
        if found["settings"] != settings:
            sys.exit(f"{path} holds rows of other settings ({found['settings']}); name another --out.")
        self.rows = [Row(**row) for row in found["rows"]]
        self.facts: dict[str, str] = found["facts"]

    def has(self, network: str, how: str, budget: float | None) -> bool:
        """Whether a row is there."""
        return any((r.network, r.how, r.budget) == (network, how, budget) for r in self.rows)

    def twin(self, network: str, found: BitAllocation) -> Row | None:
        """A row of the same bits."""
        own = (network, choice_of(found))
        return next((r for r in self.rows if (r.network, r.choice) == own), None)

    def add(self, row: Row) -> None:
        """Take a row and write everything."""
        self.rows.append(row)
        print(markdown([row]).splitlines()[-1], flush=True)
        self.write()

    def write(self) -> None:
        """Write what there is."""
        told = "".join(f"\n{name}: {fact}\n" for name, fact in self.facts.items())
        table = markdown([r for r in self.rows if r.how != FRONT]) + told
        rows = [asdict(row) for row in self.rows]
        record.write(self._out, rows, table, settings=self._settings, facts=self.facts)


def choice_of(found: BitAllocation) -> str:
    """Bits of the layers in their order."""
    return " ".join(map(str, found.choice.values()))


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table for people."""
    cells = [
        [
            r.network,
            r.how,
            "" if r.budget is None else f"{100 * r.budget:.1f}%",
            f"{100 * r.spent:.2f}%",
            f"{100 * r.file:.2f}%",
            f"{r.predicted:.3g}",
            f"{r.kl:.3g}",
            f"{r.top1_fp32:.2f} → {r.top1:.2f}",
            r.bits,
        ]
        for r in rows
    ]
    return record.markdown(HEAD, cells)
