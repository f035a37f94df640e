"""What the rows on unseen data say together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

import record
from unseen_rows import OURS, Row

ROOM_DB = 0.5
"""Decibels below the better peer that are no shortcoming."""

TOLD_DB = 2.0
"""Decibels that what is told may be off."""


def summary(rows: Sequence[Row]) -> str:
    """Where onnxq is behind, by how much it is ahead, and how true what it tells is."""
    return "\n".join([_behind(rows), _advantages(rows), _told(rows), _without(rows)])


def _behind(rows: Sequence[Row]) -> str:
    """Rows in which a peer is clearly better, the worst first."""
    pairs = [(ours - peer, row) for row, ours, peer in _compared(rows)]
    found = sorted((pair for pair in pairs if pair[0] < -ROOM_DB), key=lambda pair: pair[0])
    cells = [
        [
            f"{lead:+.1f}",
            row.network,
            row.bits.upper(),
            str(row.samples),
            str(row.draw),
            *(_number(v) for v in (row.ours, row.peer, row.told_db, row.judged[OURS].worst_db)),
        ]
        for lead, row in found
    ]
    head = ("lead, dB", "network", "bits", "samples", "draw", "onnxq", "better peer", "told", "worst sample")
    line = f"Behind the better of onnxruntime's by more than {ROOM_DB} dB: {len(found)} of {len(pairs)} rows.\n"
    return line + ("\n" + record.markdown(head, cells) if cells else "")


def _advantages(rows: Sequence[Row]) -> str:
    """By network and number of samples: the median lead, and what is reached."""
    leads: dict[tuple[str, str, int], list[tuple[float, float]]] = {}
    for row, ours, peer in _compared(rows):
        leads.setdefault((row.network, row.bits, row.samples), []).append((ours - peer, ours))
    head = ("network", "bits", "samples", "draws", "median lead, dB", "least lead, dB", "median onnxq, dB")
    cells = []
    for (network, bits, samples), found in leads.items():
        lead, ours = zip(*found, strict=True)
        figures = (f"{median(lead):+.1f}", f"{min(lead):+.1f}", f"{median(ours):.1f}")
        cells.append([network, bits.upper(), str(samples), str(len(found)), *figures])
    return "Lead over the better of onnxruntime's, on new data.\n\n" + record.markdown(head, cells)


def _told(rows: Sequence[Row]) -> str:
    """How far what the report tells is from what new data give, by number of samples and over all."""
    known = [row for row in rows if row.ours is not None]
    head = ("samples", "rows", "not told", f"within {TOLD_DB:g} dB", "told − fresh: most", "median", "least")
    groups = [(str(n), [r for r in known if r.samples == n]) for n in sorted({r.samples for r in known})]
    cells = []
    for name, of in [*groups, ("all", known)]:
        off = [row.told_db - row.ours for row in of if row.told_db is not None and row.ours is not None]
        silent = f"{len(of) - len(off)} of {len(of)}"
        if not off:
            cells.append([name, str(len(of)), silent, "–", "–", "–", "–"])
            continue
        within = f"{100 * sum(abs(d) <= TOLD_DB for d in off) / len(off):.0f}%"
        cells.append([name, str(len(of)), silent, within, *(f"{v:+.1f}" for v in (max(off), median(off), min(off)))])
    return "What the report tells, beside what new data give, dB.\n\n" + record.markdown(head, cells)


def _without(rows: Sequence[Row]) -> str:
    """Models that there are no figures of."""
    lines = [
        f"{row.network} {row.bits.upper()}, {row.samples} samples, draw {row.draw}, {who}: {judged.reason}\n"
        for row in rows
        for who, judged in row.judged.items()
        if judged.reason
    ]
    return f"Without figures: {len(lines)}.\n" + "".join(lines)


def _compared(rows: Iterable[Row]) -> list[tuple[Row, float, float]]:
    """Rows with figures of both sides, and these."""
    return [(row, row.ours, row.peer) for row in rows if row.ours is not None and row.peer is not None]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"
