"""Bits chosen by the integer programme against greedy and uniform ones, and predicted against measured loss.

    python benchmarks/allocation.py                               the bundled network
    python benchmarks/allocation.py --assets DIR --cases a        networks described by DIR/cases.py (see accuracy.py)
    ... --candidates w2a8,w3a8,w4a8,w5a8,w6a8,w8a8 --over packed --budgets 0.11:0.25:20 --greedy 0.11,0.13 --out results

First and last layers are free like the others. `packed` counts k bits for a k-bit weight, as storage for runtimes
without containers; `size` counts the bytes of the file, where 2 and 3 bits take 4 and 5 to 7 take 8. Losses are
predicted and measured on the table's calibration samples; KL and top-1 are of the evaluation set. Greedy lowers layers
in the order of the sensitivities, the least first, until the budget is met, from the most accurate candidate on.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import Network, chosen_networks
from environment import machine
from scipy.stats import spearmanr

from onnxq.allocation.allocate import allocate
from onnxq.allocation.bit_allocation import BitAllocation
from onnxq.allocation.problem import AllocationProblem, read_problem
from onnxq.allocation.tabulate import Measuring
from onnxq.allocation.terms import InfeasibleError
from onnxq.budget import Budget
from onnxq.candidate import Candidate
from onnxq.config import Config, make_config
from onnxq.ir.load import load
from onnxq.passes.prepare import prepare
from onnxq.pipeline import quantize, sensitivity
from onnxq.plan import make_plan
from onnxq.verify import verify


@dataclass(frozen=True)
class Row:
    """One allocation, carried out and judged."""

    network: str
    how: str
    budget: float | None
    spent: float
    file: float
    predicted: float
    measured: float
    kl: float
    top1_fp32: float
    top1: float
    bits: str
    seconds: float


def greedy(problem: AllocationProblem, quantity: str, limit: float) -> dict[str, Candidate] | None:
    """Lower one layer after another, in the order of what each lowering alone loses, until the limit is met."""
    loss, cost = problem.matrix("loss"), problem.matrix(quantity)
    rows = range(len(problem.layers))
    at = {i: int(np.nanargmin(loss[i])) for i in rows}
    steps = sorted((loss[i, j], cost[i, j], i, j) for i in rows for j in np.flatnonzero(np.isfinite(loss[i])))
    rest = problem.costs.rest[quantity]
    for _, _, i, j in steps:
        if rest + sum(cost[k, at[k]] for k in rows) <= limit:
            break
        if cost[i, j] < cost[i, at[i]]:
            at[i] = int(j)
    if rest + sum(cost[k, at[k]] for k in rows) > limit:
        return None
    return {problem.layers[i]: problem.candidates[at[i]] for i in rows}


def chosen(problem: AllocationProblem, choice: Mapping[str, Candidate], like: BitAllocation) -> BitAllocation:
    """A choice as an allocation with its prediction."""
    loss, error = problem.sensitivity.predicted(choice)
    costs = {q: problem.costs.total(q, choice) for q in problem.costs.values}
    values: dict[str, Any] = {**like.__dict__, "choice": choice, "loss": loss, "loss_error": error, "costs": costs}
    return BitAllocation(**values)


def judge(
    network: Network, how: str, budget: float | None, allocation: BitAllocation, over: str, whole: float, args: Any
) -> Row:
    """Quantise with an allocation and judge what comes of it."""
    began = time.perf_counter()
    config = make_config({"samples": args.samples, "table_samples": args.table_samples})
    result = quantize(network.model, network.calibration(args.samples), config, allocation=allocation)
    seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantised.onnx"
        result.save(path)
        feeds, labels = limited(network, args.evaluation)
        report = verify(network.model, path, feeds, labels=labels, classification=True, latency=False).to_dict()
    (output,) = report["outputs"].values()
    account = result.report.allocation or {}
    counts: dict[str, int] = {}
    for candidate in sorted(allocation.choice.values()):
        counts[str(candidate)] = counts.get(str(candidate), 0) + 1
    return Row(
        network=network.name,
        how=how,
        budget=budget,
        spent=allocation.costs[over] / whole,
        file=report["quantized"] / report["fp32"],
        predicted=allocation.loss,
        measured=account["measured_loss"],
        kl=output["kl"],
        top1_fp32=output["top1_fp32"],
        top1=output["top1_quantized"],
        bits=", ".join(f"{n}×{word}" for word, n in counts.items()),
        seconds=seconds,
    )


def limited(network: Network, most: int) -> tuple[Iterator[Any], np.ndarray]:
    """The first samples of the evaluation set, whole batches, with their labels."""
    feeds, count = [], 0
    for feed in network.evaluation():
        feeds.append(feed)
        count += len(next(iter(feed.values())))
        if count >= most:
            break
    return iter(feeds), network.labels()[:count]


def markdown(rows: list[Row]) -> str:
    """The rows as a table for people."""
    lines = [
        "| network | chosen by | budget | spent | file | predicted | measured | KL | top-1, float → quantised | bits |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for r in rows:
        budget = "" if r.budget is None else f"{r.budget:.4f}"
        lines.append(
            f"| {r.network} | {r.how} | {budget} | {r.spent:.4f} | {r.file:.4f} | {r.predicted:.4f} | {r.measured:.4f} "
            f"| {r.kl:.4f} | {r.top1_fp32:.2f} → {r.top1:.2f} | {r.bits} |"
        )
    return "\n".join(lines) + "\n"


def correlation(rows: list[Row]) -> str:
    """How well predictions order and match what was measured, over the programme's own rows."""
    own = [r for r in rows if r.how == "programme"]
    if len(own) < 3:
        return ""
    ratio = np.array([r.measured / r.predicted for r in own])
    rank = spearmanr([r.predicted for r in own], [r.measured for r in own]).statistic
    return (
        f"\n{len(own)} allocations: rank correlation of predicted and measured loss {rank:.3f}; measured / predicted "
        f"{ratio.min():.2f} to {ratio.max():.2f}, median {np.median(ratio):.2f}\n"
    )


def run(network: Network, args: Any, done: list[Row]) -> None:
    """All rows of a network, written down as they come."""
    values = {"candidates": args.candidates, "edge_bits": "same", "table_samples": args.table_samples}
    table = args.out.with_name(f"{args.out.stem}_{network.name}_table.json")
    if not table.exists():
        found = sensitivity(
            network.model, network.calibration(args.table_samples), make_config(values), Measuring(method=args.method)
        )
        table.write_text(found.to_json())
    problem = read_problem(table)
    whole = problem.costs.whole[args.over]
    loosest = allocate(problem, [])

    def add(how: str, budget: float | None, allocation: BitAllocation) -> None:
        done.append(judge(network, how, budget, allocation, args.over, whole, args))
        print(markdown(done[-1:]).splitlines()[-1], flush=True)
        record = {"machine": machine(), "rows": [asdict(row) for row in done]}
        args.out.with_suffix(".json").write_text(json.dumps(record, indent=2))
        args.out.with_suffix(".md").write_text(markdown(done) + correlation(done))

    model = prepare(load(network.model, minimum_opset=21))
    uniform = {
        p.layer.name: Candidate(p.weights, p.activations)
        for p in make_plan(model, Config(weights=4, activations=8)).layers
    }
    same = chosen(problem, uniform, loosest)
    add("uniform W4A8, edges 8", None, same)
    add("programme at its cost", None, allocate(problem, [Budget(args.over, same.costs[args.over])]))
    for share in args.greedy:
        limit = share * whole
        choice = greedy(problem, args.over, limit)
        if choice is not None:
            add("greedy", share, chosen(problem, choice, loosest))
    for share in args.budgets:
        try:
            found = allocate(problem, [Budget(args.over, share * whole)])
        except InfeasibleError as error:
            print(error, file=sys.stderr)
            continue
        add("programme", share, found)
    print(correlation(done))


def _shares(text: str) -> list[float]:
    """``0.1,0.2`` or ``first:last:count``."""
    if ":" in text:
        first, last, count = text.split(":")
        return [float(v) for v in np.linspace(float(first), float(last), int(count))]
    return [float(v) for v in text.split(",") if v]


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path)
    parser.add_argument("--cases", default="")
    parser.add_argument("--candidates", default="w2a8,w3a8,w4a8,w5a8,w6a8,w8a8")
    parser.add_argument("--over", default="packed")
    parser.add_argument("--method", default="full")
    parser.add_argument("--budgets", type=_shares, default=_shares("0.11:0.25:20"))
    parser.add_argument("--greedy", type=_shares, default=_shares("0.11,0.13,0.15,0.18,0.21,0.25"))
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--table-samples", type=int, default=64)
    parser.add_argument("--evaluation", type=int, default=10**9)
    parser.add_argument("--out", type=Path, default=Path("allocation"))
    args = parser.parse_args()
    rows: list[Row] = []
    for network in chosen_networks(args.assets, args.cases):
        run(network, args, rows)


if __name__ == "__main__":
    main()
