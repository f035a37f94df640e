"""Latencies that were measured elsewhere, from a CSV file."""

from __future__ import annotations

import csv
import math
from collections.abc import Collection, Sequence
from pathlib import Path

from onnxq.allocation.json_file import read_text
from onnxq.allocation.sensitivity_table import CostTable
from onnxq.config.bit_widths import FLOAT, Candidate, parse_candidate
from onnxq.errors import ConfigError

REST = "rest"


def read_latency(
    path: Path, layers: Sequence[str], candidates: Sequence[Candidate], needed: Collection[str] | None = None
) -> CostTable:
    """Latencies from a CSV with the columns layer, candidate and milliseconds.

    A line for each layer and each candidate that the hardware can run; one with the layer ``rest`` (its
    candidate is ignored) holds what the network spends besides its layers. Each layer's ``float`` line tells what
    the float network spends, against which fractions are taken. Candidates without a line cannot be chosen.

    Args:
        path: the file.
        layers: names that lines may have.
        candidates: the columns of the table.
        needed: those of them that must have lines, all when None; others without one take no time of their own.

    Raises:
        ConfigError: the file cannot be read, a line is malformed or names an unknown layer, or a layer lacks all.
    """
    index = {name: i for i, name in enumerate(layers)}
    values = [[math.nan] * len(candidates) for _ in layers]
    in_float, rest = math.nan if not layers else 0.0, 0.0
    needed = set(layers if needed is None else needed)
    missing = set(needed)
    reader = csv.DictReader(read_text(path, "latency table").splitlines())
    if not {"layer", "candidate", "milliseconds"} <= set(reader.fieldnames or ()):
        raise ConfigError(f"latency table {path} lacks a heading; its first line must be layer,candidate,milliseconds.")
    for number, line in enumerate(reader, start=2):
        spent = _milliseconds(line["milliseconds"])
        if spent is None:
            raise ConfigError(
                f"latency table {path}, line {number}: {line['milliseconds']!r} is no number of milliseconds; "
                "write one that is not negative, or leave the line out where the candidate cannot run."
            )
        if line["layer"] == REST:
            rest += spent
            continue
        if line["layer"] not in index:
            raise ConfigError(
                f"latency table {path}, line {number}: the model has no layer {line['layer']!r}; "
                "write names as onnxq inspect lists them, or rest."
            )
        candidate = parse_candidate(line["candidate"])
        if candidate == FLOAT:
            in_float += spent
            missing.discard(line["layer"])
        if candidate in candidates:
            values[index[line["layer"]]][list(candidates).index(candidate)] = spent
    for name, row in zip(layers, values, strict=True):
        if name not in needed and all(map(math.isnan, row)):
            row[:] = [0.0] * len(row)
    empty = [name for name, row in zip(layers, values, strict=True) if all(map(math.isnan, row))]
    if empty:
        raise ConfigError(
            f"latency table {path} has no line for layer {empty[0]!r} at any of {', '.join(map(str, candidates))}; "
            "measure one of them."
        )
    return CostTable(
        tuple(layers),
        tuple(candidates),
        {"latency": tuple(tuple(row) for row in values)},
        {"latency": math.nan if missing else in_float + rest},
        {"latency": rest},
        {"latency": f"{path.name}"},
    )


def _milliseconds(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and value >= 0 else None
