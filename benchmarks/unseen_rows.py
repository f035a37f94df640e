"""Rows of the benchmark on unseen data, on disk as they come and gone on with in the next run."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import record
from environment import machine
from unseen_judgement import Judged

OURS = "onnxq"
PEERS = ("minmax", "percentile")
"""Ways of onnxruntime's quantizer to set ranges."""

Key = tuple[str, str, int, int]
"""Network, bits, samples and draw."""

HEAD = (
    "network",
    "bits",
    "samples",
    "draw",
    "told, dB",
    "onnxq: all, median, worst sample, dB",
    "onnxruntime's MinMax",
    "its Percentile",
    "decisions kept, %",
    "right, %, float → onnxq",
)


@dataclass(frozen=True)
class Row:
    """One network, at some bits, from one draw of samples.

    Attributes:
        network, bits, samples, draw: what was quantized, how, from what.
        told_db: signal to noise that onnxq's report tells of the output; None where it tells none.
        accuracy_fp32: percent of the float model's decisions that are right; None without labels.
        judged: the quantized models by who made them.
        commit: of onnxq.
    """

    network: str
    bits: str
    samples: int
    draw: int
    told_db: float | None
    accuracy_fp32: float | None
    judged: dict[str, Judged]
    commit: str

    @property
    def key(self) -> Key:
        """What tells it from other rows."""
        return self.network, self.bits, self.samples, self.draw

    @property
    def ours(self) -> float | None:
        """Our signal to noise, decibels."""
        return self.judged[OURS].sqnr_db if OURS in self.judged else None

    @property
    def peer(self) -> float | None:
        """The better peer's."""
        found = [j.sqnr_db for who, j in self.judged.items() if who != OURS and j.sqnr_db is not None]
        return max(found, default=None)


def read(path: Path) -> dict[str, Any]:
    """What a file of results holds, its rows as such."""
    found = json.loads(path.read_text())
    rows = []
    for row in found["rows"]:
        rows.append(Row(**{**row, "judged": {who: Judged(**figures) for who, figures in row["judged"].items()}}))
    return {**found, "rows": rows}


class Record:
    """The rows so far, and the file that holds them.

    Args:
        out: path of the results; its ending does not matter.
        settings: what must be the same in every row of a file.
        command: what was asked for.
    """

    def __init__(self, out: Path, settings: dict[str, Any], command: str) -> None:
        self._out, self._settings, self._command = out.with_suffix(".json"), settings, command
        self._commit = machine()["commit"]
        self._peers: dict[Key, dict[str, Judged]] = {}
        found = read(self._out) if self._out.exists() else {"settings": settings, "rows": []}
        if found["settings"] != settings:
            sys.exit(f"{self._out} holds rows of other settings ({found['settings']}); name another -o.")
        self._rows: dict[Key, Row] = {row.key: row for row in found["rows"]}

    @property
    def rows(self) -> list[Row]:
        """All rows, in the order they came in."""
        return list(self._rows.values())

    def get(self, key: Key) -> Row:
        """The row as far as it is known; nobody's figures where nothing is."""
        theirs = self._peers.get(key, {})
        row = self._rows.get(key) or Row(*key, told_db=None, accuracy_fp32=None, judged={}, commit=self._commit)
        return replace(row, judged={**theirs, **row.judged})

    def had(self, key: Key) -> set[str]:
        """Whose figures are there; what failed is tried again."""
        return {who for who, figures in self.get(key).judged.items() if not figures.reason}

    def lacks(self, key: Key) -> bool:
        """Whether the file has no such row."""
        return key not in self._rows

    def put(self, row: Row) -> None:
        """Take a row, in place of the one of the same key, and write everything."""
        self._rows[row.key] = row
        print(markdown([row]).splitlines()[-1], flush=True)
        rows = [asdict(r) for r in self.rows]
        record.write(self._out, rows, markdown(self.rows), settings=self._settings, command=self._command)

    def take_peers(self, path: Path) -> None:
        """Take the peers' figures from another file of the same samples; they do not depend on onnxq."""
        found = read(path)
        for setting in ("fresh", "pool"):
            if found["settings"][setting] != self._settings[setting]:
                sys.exit(
                    f"{path} was made with {setting} of {found['settings'][setting]}: its peers saw other samples."
                )
        for row in found["rows"]:
            self._peers[row.key] = {who: figures for who, figures in row.judged.items() if who != OURS}


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table for people."""

    def number(value: float | None, form: str = ".1f") -> str:
        return "–" if value is None else format(value, form)

    def decibels(judged: Judged | None) -> str:
        if judged is None:
            return ""
        return judged.reason or ", ".join(map(number, (judged.sqnr_db, judged.median_db, judged.worst_db)))

    cells = []
    for r in rows:
        ours = r.judged.get(OURS, Judged())
        kept = [number(r.judged[who].agreement) for who in (OURS, *PEERS) if who in r.judged]
        cells.append(
            [
                r.network,
                r.bits.upper(),
                str(r.samples),
                str(r.draw),
                number(r.told_db),
                *(decibels(r.judged.get(who)) for who in (OURS, *PEERS)),
                ", ".join(kept),
                f"{number(r.accuracy_fp32)} → {number(ours.accuracy)}",
            ]
        )
    return record.markdown(HEAD, cells)
