"""Random graphs quantized one after another: does every one load, and do all levels and the simulation agree?

    python benchmarks/fuzz.py [--graphs 2000] [--seed 0] [--first 0] [--out fuzz.jsonl]

Graphs are drawn by ``tests/helpers/random_graphs.py``; number N of a seed is always the same graph. Warnings count as
errors. What came of each is a line of OUT, flushed at once: graphs that have a line are not run again. A graph that
fails is written beside OUT as ``fuzz-SEED-N.onnx`` with its options in the line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import onnx

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "helpers"))

from fuzz_judgement import judge
from random_graphs import random_case


def attempt(seed: int, number: int, folder: Path) -> dict[str, Any]:
    """Draw, quantize and judge one graph; what came of it."""
    began = time.perf_counter()
    row: dict[str, Any] = {"seed": seed, "number": number}
    case = None
    try:
        case = random_case(Random(f"{seed} {number}"))
        row |= {"opset": case.model.opset_import[0].version, "nodes": len(case.model.graph.node)}
        row |= judge(case)
    except Exception as error:  # every kind is a finding
        what = str(error).strip().split("\n")[0]
        row |= {"outcome": "failed", "error": type(error).__name__, "reason": what[:500]}
        if case is not None:
            onnx.save(case.model, folder / f"fuzz-{seed}-{number}.onnx")
            row["case"] = repr(case)
    return row | {"seconds": round(time.perf_counter() - began, 2)}


def main() -> None:
    """Run the graphs that have not been run yet, and tell what came of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first graph [default: 0]")
    parser.add_argument("--out", type=Path, default=Path("fuzz.jsonl"))
    args = parser.parse_args()
    rows = [json.loads(line) for line in args.out.read_text().splitlines()] if args.out.exists() else []
    warnings.simplefilter("error")
    done = {(row["seed"], row["number"]) for row in rows}
    with args.out.open("a") as file:
        for number in range(args.first, args.first + args.graphs):
            if (args.seed, number) in done:
                continue
            rows.append(row := attempt(args.seed, number, args.out.parent))
            file.write(json.dumps(row) + "\n")
            file.flush()
            if row["outcome"] == "failed":
                print(f"{number}: {row['error']}: {row['reason']}", flush=True)
    outcomes = Counter(row["outcome"] for row in rows)
    told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items()))
    print(f"{len(rows)} graphs in {sum(row['seconds'] for row in rows):.0f} s: {told}")
    sys.exit(1 if outcomes["failed"] else 0)


if __name__ == "__main__":
    main()
