"""Results on disk: JSON for programs, Markdown for people, both written anew after every row."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from environment import machine, sentence


def write(out: Path, rows: Sequence[dict[str, Any]], table: str, **facts: Any) -> None:
    """Write OUT.json and OUT.md.

    Args:
        out: path without an ending.
        rows: as plain values.
        table: the rows in Markdown.
        facts: what else was asked for, such as the number of samples.
    """
    where = machine()
    _replace(out.with_suffix(".json"), json.dumps({"machine": where, **facts, "rows": list(rows)}, indent=2) + "\n")
    _replace(out.with_suffix(".md"), f"{table}\n{sentence(where)}\n")


def _replace(path: Path, text: str) -> None:
    """Write a file whole or not at all: a run that is stopped leaves what was there."""
    beside = path.with_name(f"{path.name}.part")
    beside.write_text(text)
    beside.replace(path)


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table.

    Example:
        >>> print(markdown(["a", "b"], [["1", "2"]]), end="")
        | a | b |
        |---|---|
        | 1 | 2 |
    """
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)]) + "\n"
