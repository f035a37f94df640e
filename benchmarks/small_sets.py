"""How few samples are enough, and how much hangs on which: several draws of each size, beside nearest rounding.

    python benchmarks/small_sets.py                               the bundled network
    python benchmarks/small_sets.py --assets DIR [--cases a,b]    networks described by DIR/cases.py (see accuracy.py)
    ... --bits w4a8 --sizes 1,4,10,16 --draws 5 --of 512 --methods light,advanced --out small_sets

Every draw takes its samples at random from the first ones (``--of``); all methods get the same. ``nearest`` rounds to
nearest at scales of least squared error.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import record
from accuracy import Network, Row, chosen_networks, measure

from onnxq.data import Feed, read_feeds
from onnxq.ir.load import load

NEAREST = "nearest"
METHODS: dict[str, dict[str, Any]] = {
    NEAREST: {"second_order": False, "equalise": False},
    "light": {},
    "advanced": {"preset": "advanced"},
}
"""Options of each method, beside the bits."""

HEAD = (
    "network",
    "bits",
    "samples",
    "method",
    "drop of top-1, draw by draw",
    "its deviation",
    "KL, nats, draw by draw",
    "draws no worse than nearest in KL",
)


def drawn(network: Network, size: int, seed: int, of: int) -> list[Feed]:
    """So many calibration samples of a network, chosen at random from the first ones."""
    feeds = list(read_feeds(network.calibration(of), load(network.model).inputs, samples=of, batch=1))
    chosen = np.random.default_rng([seed, size]).choice(len(feeds), size, replace=False)
    return [feeds[i] for i in sorted(chosen)]


def compared(
    network: Network, bits: str, size: int, draws: int, of: int, methods: Sequence[str]
) -> Iterator[list[Row]]:
    """The rows of each draw, one a method."""
    for seed in range(draws):
        feeds = drawn(network, size, seed, of)
        same = replace(network, calibration=lambda _, feeds=feeds: feeds)
        yield [measure(same, bits, size, **METHODS[method]) for method in methods]


def markdown(found: Sequence[tuple[int, Sequence[str], Sequence[Sequence[Row]]]]) -> str:
    """The draws as a table for people, one row a number of samples and method."""
    cells = []
    for size, methods, draws in found:
        for at, method in enumerate(methods):
            rows = [draw[at] for draw in draws]
            drops = [(r.top1_fp32 or 0.0) - (r.top1 or 0.0) for r in rows]
            plain = [draw[methods.index(NEAREST)] for draw in draws] if NEAREST in methods else rows
            kept = sum((r.kl or 0.0) <= (p.kl or 0.0) for r, p in zip(rows, plain, strict=True))
            cells.append(
                [
                    rows[0].network,
                    rows[0].bits.upper(),
                    str(size),
                    method,
                    ", ".join(f"{drop:.2f}" for drop in drops),
                    f"{np.std(drops, ddof=1) if len(drops) > 1 else 0.0:.2f}",
                    ", ".join(f"{r.kl:.4f}" for r in rows),
                    f"{kept} of {len(rows)}",
                ]
            )
    return record.markdown(HEAD, cells)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path)
    parser.add_argument("--cases", default="")
    parser.add_argument("--bits", default="w4a8")
    parser.add_argument("--sizes", default="1,4,16")
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--of", type=int, default=512)
    parser.add_argument("--methods", default="nearest,light")
    parser.add_argument("--out", type=Path, default=Path("small_sets"))
    args = parser.parse_args()
    found: list[tuple[int, Sequence[str], Sequence[Sequence[Row]]]] = []
    methods = args.methods.split(",")
    for network in chosen_networks(args.assets, args.cases):
        for bits in args.bits.split(","):
            for size in map(int, args.sizes.split(",")):
                draws = list(compared(network, bits, size, args.draws, args.of, methods))
                found.append((size, methods, draws))
                print("\n".join(markdown(found[-1:]).splitlines()[2:]), flush=True)
                rows = [
                    {"samples": n, "draw": i, "method": m, **asdict(row)}
                    for n, names, of_draws in found
                    for i, of_draw in enumerate(of_draws)
                    for m, row in zip(names, of_draw, strict=True)
                ]
                record.write(args.out, rows, markdown(found), of=args.of)


if __name__ == "__main__":
    main()
