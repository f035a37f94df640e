"""Time of the integer programme on tables drawn at random: one budget, two at once, and a whole front.

    python benchmarks/programme.py [--layers 200] [--seeds 3] [--out programme]

16 candidates a layer (weights at 2 to 8 and 16 bits, activations at 4 and 8). `like networks`: losses fall by four for
each bit, sizes and bit operations follow the bits; `containers`: sizes as onnxruntime stores them; `unrelated`: every
number by itself. Results go to OUT.json and OUT.md with the machine, the versions and the commit.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import record

from onnxq.allocation.allocate import allocate
from onnxq.allocation.pareto import pareto_front
from onnxq.allocation.problem import AllocationProblem
from onnxq.allocation.sensitivity_table import CostTable, SensitivityTable, as_matrix
from onnxq.config.bit_widths import Candidate
from onnxq.config.budget import Budget

CANDIDATES = tuple(Candidate(w, a) for w in (2, 3, 4, 5, 6, 7, 8, 16) for a in (4, 8))
KINDS = ("like networks", "containers", "unrelated")
HEAD = ("tables", "what", "seconds", "processor seconds", "largest gap")


def drawn(kind: str, layers: int, seed: int) -> AllocationProblem:
    """Tables of so many layers."""
    rng = np.random.default_rng(seed)
    weights, activations = (
        np.array(bits, float) for bits in np.array([[c.weights, c.activations] for c in CANDIDATES]).T
    )
    shape = (layers, len(CANDIDATES))
    parameters, work = np.exp(rng.normal(9, 1.5, (layers, 1))), np.exp(rng.normal(13, 1, (layers, 1)))
    loss = 4.0**-weights * rng.uniform(0.5, 2, (layers, 1)) + 0.3 * 4.0**-activations
    loss = np.exp(rng.normal(-3, 1.5, (layers, 1))) * loss * np.exp(rng.normal(0, 0.15, shape))
    stored = np.where(weights <= 4, 4, np.where(weights <= 8, 8, 16)) if kind == "containers" else weights
    costs = {"size": np.rint(parameters * stored / 8 + 200), "bops": work * weights * activations}
    if kind == "unrelated":
        loss, costs = rng.uniform(0, 1, shape), {q: rng.uniform(1, 100, shape) for q in costs}
    names, whole = (
        tuple(f"layer{i}" for i in range(layers)),
        {q: 2 * float(v.max(axis=1).sum()) for q, v in costs.items()},
    )
    return AllocationProblem(
        SensitivityTable(names, CANDIDATES, as_matrix(loss), as_matrix(loss / 10), "kl", "full", samples=64),
        CostTable(names, CANDIDATES, {q: as_matrix(v) for q, v in costs.items()}, whole, dict.fromkeys(costs, 0.0)),
    )


def within(problem: AllocationProblem, quantity: str, share: float) -> Budget:
    """A budget so far between the least and the most that can be spent."""
    values = problem.matrix(quantity)
    least, most = values.min(axis=1).sum(), values.max(axis=1).sum()
    return Budget(quantity, float(least + share * (most - least)))


def measure(kind: str, what: str, problem: AllocationProblem) -> dict[str, Any]:
    """One row."""
    budgets = [within(problem, "size", 0.3), within(problem, "bops", 0.25)]
    began, worked = time.perf_counter(), time.process_time()
    if what == "front of 20":
        found = pareto_front(problem, "size", points=20)
    else:
        found = (allocate(problem, budgets if what == "two budgets" else budgets[:1]),)
    return {
        "tables": kind,
        "what": what,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - worked,
        "gap": max(a.gap for a in found),
        "status": sorted({a.status.name for a in found}),
    }


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("programme"))
    args = parser.parse_args()
    allocate(drawn("unrelated", 2, 0), [])  # what is loaded once is not counted
    rows: list[dict[str, Any]] = []
    for kind in KINDS:
        for what in ("one budget", "two budgets", "front of 20"):
            tried = [measure(kind, what, drawn(kind, args.layers, seed)) for seed in range(args.seeds)]
            rows.append(max(tried, key=lambda r: r["cpu_seconds"]))  # the slowest
    cells = [
        [r["tables"], r["what"], f"{r['seconds']:.2f}", f"{r['cpu_seconds']:.2f}", f"{r['gap']:.2g}"] for r in rows
    ]
    table = record.markdown(HEAD, cells)
    print(table)
    record.write(args.out, rows, table, layers=args.layers, candidates=len(CANDIDATES), seeds=args.seeds)


if __name__ == "__main__":
    main()
