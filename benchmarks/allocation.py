"""Bits chosen by the integer programme against uniform and greedy ones, and predicted against measured loss.

    python benchmarks/allocation.py                               the bundled network
    python benchmarks/allocation.py --assets DIR --cases a        networks described by DIR/cases.py (see accuracy.py)
    ... --candidates w2a8,w4a8,w8a8 --over size --budgets 0.13,0.2 --front 20 --scaled --out results

First and last layers are free like the others, but at 8 bits in uniform allocations. `size` counts the bytes of the
file. For each budget: the widest uniform allocation within it, greedy (layers lowered in the order of the
sensitivities, the least first), and the programme's; for those of `--equal` also the programme's at what greedy spends.
`--front N` adds N allocations along the front and holds the KL of all of the programme's against the predicted one;
`--scaled` compares the cheap sensitivities with the full ones. Tables are kept beside the results, and finished rows
are not made again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from accuracy import Network, chosen_networks, first_batches
from agreement import likeness, prediction
from allocation_rows import FRONT, Record, Row, choice_of
from choosers import greedy, programme, uniform, uniformly

from onnxq.allocation.bit_allocation import BitAllocation
from onnxq.allocation.measure import Measuring
from onnxq.allocation.pareto import pareto_front
from onnxq.allocation.problem import AllocationProblem, problem_from_json
from onnxq.api import quantize, sensitivity
from onnxq.config import make_config
from onnxq.config.bit_widths import Candidate
from onnxq.data import samples_in
from onnxq.verify import verify

CHOOSERS = {"uniform": uniform, "greedy": greedy, "programme": programme}


def judge(network: Network, how: str, budget: float | None, found: BitAllocation, whole: float, args: Any) -> Row:
    """Quantize with an allocation and judge what comes of it."""
    began = time.perf_counter()
    config = make_config({"samples": args.samples, "table_samples": args.table_samples})
    result = quantize(network.model, network.calibration(args.samples), config, allocation=found)
    seconds = time.perf_counter() - began
    feeds, labels = limited(network, args.evaluation)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantised.onnx"
        result.save(path)
        report = verify(network.model, path, feeds, labels=labels, classification=True, latency=False).to_dict()
    (output,) = report["outputs"].values()
    counts = Counter(map(str, sorted(found.choice.values())))
    return Row(
        network=network.name,
        how=how,
        budget=budget,
        spent=found.costs[args.over] / whole,
        file=report["quantized"] / report["fp32"],
        predicted=found.loss,
        held=(result.report.allocation or {})["measured_loss"],
        kl=output["kl"],
        top1_fp32=output["top1_fp32"],
        top1=output["top1_quantized"],
        bits=", ".join(f"{n}×{word}" for word, n in counts.items()),
        evaluated=len(labels),
        seconds=seconds,
        choice=choice_of(found),
    )


def limited(network: Network, most: int) -> tuple[Iterator[Any], np.ndarray]:
    """The first samples of the evaluation set, whole batches, with their labels."""
    feeds = list(first_batches(network.evaluation(), most))
    return iter(feeds), network.labels()[: sum(map(samples_in, feeds))]


def tables(network: Network, method: str, args: Any) -> tuple[AllocationProblem, float]:
    """The tables of a network and the processor time that they took; from disk where they are there."""
    place = args.out.with_name(f"{args.out.stem}_{network.name}_{method}.json")
    if not place.exists():
        values = {"candidates": args.candidates, "edge_bits": "same", "table_samples": args.table_samples}
        began = time.process_time()
        found = sensitivity(
            network.model, network.calibration(args.samples), make_config(values), Measuring(method=method)
        )
        kept = {"cpu_seconds": time.process_time() - began, "problem": json.loads(found.to_json())}
        place.write_text(json.dumps(kept))
    kept = json.loads(place.read_text())
    return problem_from_json(json.dumps(kept["problem"]), str(place)), kept["cpu_seconds"]


def run(network: Network, args: Any, kept: Record) -> None:
    """All rows of a network, written down as they come."""
    problem, seconds = tables(network, args.method, args)
    whole = problem.costs.whole[args.over]

    def add(how: str, budget: float | None, found: BitAllocation | None) -> None:
        if found is None or kept.has(network.name, how, budget):
            return
        twin = kept.twin(network.name, found)
        row = replace(twin, how=how, budget=budget) if twin else judge(network, how, budget, found, whole, args)
        kept.add(row)

    four = uniformly(problem, Candidate(4, 8))
    add("uniform W4A8", None, four)
    add("programme at its cost", None, programme(problem, args.over, four.costs[args.over]))
    for share in args.equal:
        rival = greedy(problem, args.over, share * whole)
        add("programme at greedy's cost", share, rival and programme(problem, args.over, rival.costs[args.over]))
    for share in args.budgets:
        for how, choose in CHOOSERS.items():
            add(how, share, choose(problem, args.over, share * whole))
    if args.scaled and args.method == "full":
        cheap, cheap_seconds = tables(network, "scaled", args)
        kept.facts[f"{network.name}, scaled sensitivities"] = likeness(problem, cheap, (seconds, cheap_seconds))
        kept.write()
    for point in pareto_front(problem, args.over, points=args.front) if args.front else ():
        add(FRONT, point.costs[args.over] / whole, point)
    own = {r.choice: r for r in kept.rows if r.network == network.name and (r.how == FRONT or "programme" in r.how)}
    if len(own) > 2:
        predicted, measured = [r.predicted for r in own.values()], [r.kl for r in own.values()]
        evaluated = next(iter(own.values())).evaluated
        kept.facts[f"{network.name}, prediction"] = prediction(predicted, measured, evaluated)
        kept.write()


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
    parser.add_argument("--candidates", default="w2a8,w3a8,w4a8,w5a8,w6a8,w7a8,w8a8")
    parser.add_argument("--over", default="size")
    parser.add_argument("--budgets", type=_shares, default=_shares("0.11,0.125,0.13,0.15,0.18,0.2,0.25"))
    parser.add_argument("--equal", type=_shares, default=_shares("0.13"))
    parser.add_argument("--method", choices=["full", "scaled"], default="full")
    parser.add_argument("--front", type=int, default=0)
    parser.add_argument("--scaled", action="store_true")
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--table-samples", type=int, default=64)
    parser.add_argument("--evaluation", type=int, default=10**9)
    parser.add_argument("--out", type=Path, default=Path("allocation"))
    args = parser.parse_args()
    names = ("candidates", "over", "method", "samples", "table_samples", "evaluation")
    kept = Record(args.out, {name: getattr(args, name) for name in names})
    for network in chosen_networks(args.assets, args.cases):
        run(network, args, kept)


if __name__ == "__main__":
    main()
