"""Pictures of what other commands here measured: accuracy against size, and time against samples.

    python benchmarks/plots.py [--allocation allocation.json] [--scaling scaling.json] [--out plots]

Needs matplotlib (``pip install "onnxq[plot]"``). Writes OUT_size.svg and OUT_time.svg, for the files that are given.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

LOOK = {"svg.hashsalt": "onnxq", "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
Line = list[tuple[float, float]]
STYLES = {"programme": "o-", "greedy": "s--", "uniform": "x"}


def lines_of_allocation(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Line]]:
    """Divergence against size, by network and by what chose the bits."""
    found: dict[str, dict[str, Line]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        how = next((name for name in STYLES if row["how"].startswith(name)), None)
        if how is not None:
            found[row["network"]][how].append((100 * row["spent"], row["kl"]))
    return {network: {how: sorted(set(line)) for how, line in of.items()} for network, of in found.items()}


def lines_of_scaling(rows: Sequence[Mapping[str, Any]]) -> dict[str, Line]:
    """Seconds against samples, by network, bits and preset; runs that did not finish are left out."""
    found: dict[str, Line] = defaultdict(list)
    for row in rows:
        if row["seconds"] is not None:
            found[f"{row['network']}, {row['bits'].upper()}, {row['preset']}"].append((row["samples"], row["seconds"]))
    return {name: sorted(line) for name, line in found.items()}


def draw_sizes(axes: Axes, network: str, lines: Mapping[str, Line]) -> None:
    """One network's panel."""
    for how, line in lines.items():
        axes.plot(*zip(*line, strict=True), STYLES[how], label=how, markersize=4)
    axes.set(title=network, xlabel="weights, % of the float size", ylabel="KL to float, nats", yscale="log")
    axes.legend(frameon=False)


def draw_times(axes: Axes, lines: Mapping[str, Line]) -> None:
    """All runs in one panel."""
    for name, line in lines.items():
        axes.plot(*zip(*line, strict=True), "o-", label=name, markersize=4)
    axes.set(xlabel="calibration samples", ylabel="seconds", xscale="log", yscale="log")
    axes.legend(frameon=False)


def save(figure: Figure, path: Path) -> None:
    """Write a figure whose bytes depend on what it shows alone."""
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    print(path)


def main() -> None:
    """Draw what the command line gives."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--allocation", type=Path)
    parser.add_argument("--scaling", type=Path)
    parser.add_argument("--out", type=Path, default=Path("plots"))
    args = parser.parse_args()
    matplotlib.rcParams.update(LOOK)
    if args.allocation:
        networks = lines_of_allocation(json.loads(args.allocation.read_text())["rows"])
        figure = Figure(figsize=(4 * len(networks), 3), layout="constrained")
        for at, (network, lines) in enumerate(networks.items()):
            draw_sizes(figure.add_subplot(1, len(networks), at + 1), network, lines)
        save(figure, args.out.with_name(f"{args.out.name}_size.svg"))
    if args.scaling:
        figure = Figure(figsize=(5, 3), layout="constrained")
        draw_times(figure.add_subplot(), lines_of_scaling(json.loads(args.scaling.read_text())["rows"]))
        save(figure, args.out.with_name(f"{args.out.name}_time.svg"))


if __name__ == "__main__":
    main()
