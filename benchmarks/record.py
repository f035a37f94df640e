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
    out.with_suffix(".json").write_text(json.dumps({"machine": where, **facts, "rows": list(rows)}, indent=2) + "\n")
    out.with_suffix(".md").write_text(f"{table}\n{sentence(where)}\n")


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
