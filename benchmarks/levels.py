"""Does onnxruntime's default level say what the unoptimized model says? One row a network and bit-width.

    python benchmarks/levels.py                                 the bundled network
    python benchmarks/levels.py --assets DIR [--cases a,b]      networks described by DIR/cases.py (see accuracy.py)
    ... --bits w4a4,w4a8,w2a8,w8a8,w8a16 --samples 64 --evaluation 500 --out levels

Every network is quantized with first and last layers at 8 bits. Its predictions, where its output is class scores,
are compared between the levels, and the difference of the outputs with the quantization error itself: a model that
has lost most of its accuracy answers many questions by a hair, and any last bit decides them. The share of an
operator is the difference that comes from its integer kernels alone (`operators.py`), over the error. Beside it stands
what the smallest change of the input, one step in one value, makes of the unoptimized model: two computations of a
network that differ in a last bit cannot be expected to be closer than that.

Results go to OUT.json and OUT.md with the machine, the versions and the commit; rows that are there are not made again.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx
import record
from accuracy import Network, chosen_networks, first_batches
from operators import by_operator, one_step

from onnxq.api import quantize
from onnxq.config import make_config
from onnxq.data import Feed
from onnxq.verify import LEVELS, check_levels
from onnxq.verify.fidelity import OutputMeter
from onnxq.verify.source import ModelSource

HEAD = (
    "network",
    "bits",
    "levels that load",
    "same prediction at both levels, %",
    "as float: unoptimised, default, %",
    "SQNR to float: unoptimised, default, dB",
    "levels apart / error",
    "of which by operator",
    "one input step / error",
    "seconds",
)

FEW = 64
"""Samples on which all four levels run and operators are taken one by one."""


@dataclass(frozen=True)
class Row:
    """One quantized network at several levels.

    Attributes:
        network: its name.
        bits: like ``w4a8``.
        loads: levels at which it loads and runs.
        agreement: predictions that the default level and the unoptimized model share, in percent.
        unoptimised_agreement: predictions that the unoptimized model shares with the float one, in percent.
        default_agreement: the same of the default level.
        unoptimised_db: SQNR of its outputs to the float network's.
        default_db: the same of the default level.
        apart_db: SQNR of the default level's outputs to the unoptimized ones.
        operators: root mean square of the difference that each operator's kernels alone make, relative to the
            outputs, on the first samples.
        evaluated: samples.
        seconds: to quantize.
        one_step: root mean square of what one step in one input value of each of those samples changes in the
            unoptimized model, relative to the outputs; None where no input is quantized where it stands.
    """

    network: str
    bits: str
    loads: tuple[str, ...]
    agreement: float | None
    unoptimised_agreement: float | None
    default_agreement: float | None
    unoptimised_db: float | None
    default_db: float | None
    apart_db: float | None
    operators: dict[str, float]
    evaluated: int
    seconds: float
    one_step: float | None = None


def measure(network: Network, bits: str, samples: int, evaluation: int, **options: Any) -> Row:
    """Quantize with these options and run one network at the levels; ``bits`` reads like ``w4a8``."""
    weights, activations = (int(b) for b in bits.removeprefix("w").split("a"))
    config = make_config({"weights": weights, "activations": activations, "samples": samples, **options})
    began = time.perf_counter()
    model = quantize(network.model, network.calibration(samples), config).model
    seconds = time.perf_counter() - began
    few = list(first_batches(network.evaluation(), min(evaluation, FEW)))
    loads = tuple(check.level for check in check_levels(model, few) if check.ok)
    unoptimised, default, apart = _meters(
        network.model, model, first_batches(network.evaluation(), evaluation), network.scores
    )
    return Row(
        network=network.name,
        bits=bits,
        loads=loads,
        agreement=apart.top1_agreement,
        unoptimised_agreement=unoptimised.top1_agreement,
        default_agreement=default.top1_agreement,
        unoptimised_db=unoptimised.sqnr_db,
        default_db=default.sqnr_db,
        apart_db=apart.sqnr_db,
        operators=by_operator(model, few),
        evaluated=evaluation,
        seconds=seconds,
        one_step=one_step(model, few),
    )


def _meters(fp32: Path, quantized: onnx.ModelProto, feeds: Iterable[Feed], scores: bool) -> list[Any]:
    """Fidelity of the first output: unoptimized to float, default level to float, default level to unoptimized."""
    sources = [ModelSource.open(fp32, "float"), ModelSource.open(quantized, "quantised")]
    sessions = [sources[0].start(), sources[1].start(LEVELS[0]), sources[1].start(LEVELS[-1])]
    name = sources[0].outputs[0]
    pairs = ((0, 1), (0, 2), (1, 2))
    meters = [OutputMeter(name, classification=scores) for _ in pairs]
    for feed in feeds:
        made = [session.run([name], sources[0].fit(feed))[0] for session in sessions]
        for meter, (exact, found) in zip(meters, pairs, strict=True):
            meter.add(made[exact], made[found])
    return [meter.result() for meter in meters]


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table for people."""
    return record.markdown(HEAD, [_cells(row) for row in rows])


def _cells(row: Row) -> list[str]:
    error = 10 ** (-row.unoptimised_db / 20) if row.unoptimised_db is not None else None
    share = 10 ** (-row.apart_db / 20) / error if error and row.apart_db is not None else None
    parts = {op: rms / error for op, rms in row.operators.items()} if error else {}
    return [
        row.network,
        row.bits.upper(),
        f"{len(row.loads)} of {len(LEVELS)}",
        _told(row.agreement),
        f"{_told(row.unoptimised_agreement)}, {_told(row.default_agreement)}",
        f"{_told(row.unoptimised_db)}, {_told(row.default_db)}",
        "–" if share is None else f"{share:.2f}",
        ", ".join(f"{op} {part:.2f}" for op, part in sorted(parts.items(), key=lambda p: -p[1]) if part >= 0.005),
        "–" if row.one_step is None or not error else f"{row.one_step / error:.2f}",
        f"{row.seconds:.0f}",
    ]


def _told(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def _known(out: Path, settings: dict[str, int]) -> list[Row]:
    """Rows of an earlier run with the same settings."""
    path = out.with_suffix(".json")
    if not path.exists():
        return []
    found = json.loads(path.read_text())
    if found["settings"] != settings:
        sys.exit(f"{path} holds rows of other settings ({found['settings']}); name another --out.")
    return [Row(**row | {"loads": tuple(row["loads"])}) for row in found["rows"]]


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path)
    parser.add_argument("--cases", default="")
    parser.add_argument("--bits", default="w4a4,w4a8,w2a8,w8a8,w8a16")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--evaluation", type=int, default=500)
    parser.add_argument("--out", type=Path, default=Path("levels"))
    args = parser.parse_args()
    settings = {"samples": args.samples, "evaluation": args.evaluation}
    rows = _known(args.out, settings)
    done = {(row.network, row.bits) for row in rows}
    for network in chosen_networks(args.assets, args.cases, pairs=True):
        for bits in args.bits.split(","):
            if (network.name, bits) in done:
                continue
            rows.append(measure(network, bits, args.samples, args.evaluation))
            print(markdown(rows[-1:]).splitlines()[-1], flush=True)
            record.write(args.out, [asdict(row) for row in rows], markdown(rows), settings=settings)


if __name__ == "__main__":
    main()
