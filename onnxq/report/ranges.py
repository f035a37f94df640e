"""Ranges that samples leave, as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from onnxq.report.wording import NONE, beyond, printable, small_share
from onnxq.verify import TensorRange

WORST_RANGES = 6


def show_ranges(console: Console, ranges: Sequence[TensorRange]) -> None:
    """The tensors that lose most by what their ranges cut off.

    Args:
        console: where to print.
        ranges: those that lose most first.
    """
    left = [found for found in ranges if found.share_outside > 0]
    if not left:
        console.print(f"No value leaves the range of any of {len(ranges)} quantised tensors")
        return
    title = f"Ranges that the samples leave: {len(left)} of {len(ranges)} tensors, those that lose most first"
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in ("tensor", "read by"):
        table.add_column(heading, overflow="fold")
    for heading in ("range", "below", "above", "furthest", "lost"):
        table.add_column(heading, justify="right")
    for found in left[:WORST_RANGES]:
        table.add_row(
            printable(found.tensor),
            printable(", ".join(found.layers)) or NONE,
            f"{found.low:.3g} to {found.high:.3g}",
            small_share(found.share_below),
            small_share(found.share_above),
            beyond(found.excess),
            small_share(found.lost),
        )
    console.print(table)
    console.print("furthest: beyond the range, in its widths; lost: power of what is cut off beside the tensor's own")
