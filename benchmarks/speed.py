"""Speed of quantized networks against their float networks in onnxruntime, both timed in turns in one run.

    python benchmarks/speed.py [--networks resnet50,mobilenet_v2] [--bits w8a8] [--container int8]
           [--threads 1,2] [--batch 1] [--seconds 20] [--out speed]
    python benchmarks/speed.py --pair FLOAT.onnx QUANTISED.onnx --data SAMPLES.npz

Without --pair the networks of ``onnxq.models`` are built with random weights and quantized to nearest with a few
samples: speed depends on shapes, types and kernels, not on the values. Medians ignore the odd interruption; the spread
is that of the middle half of the runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnxruntime as ort
import record

from onnxq.api import quantize
from onnxq.config import make_config
from onnxq.models.catalogue import NETWORKS
from onnxq.models.random_weights import random_values
from onnxq.models.samples import samples
from onnxq.verify.kernel_census import INTEGER_KERNELS, take_census

CALIBRATION = 8
"""Samples: speed does not depend on them."""

WARM_UP, FEWEST = 3, 10
FLOAT_KERNELS = ("Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "Attention")
HEAD = (
    "network",
    "bits",
    "threads",
    "batch",
    "float, ms",
    "quantised, ms",
    "speed-up",
    "kernels: integer, float",
    "runs",
)


@dataclass(frozen=True)
class Timing:
    """Milliseconds a run: median and the quartiles around it."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """One pair of models at one number of threads.

    Attributes:
        network, bits, threads, batch: what was timed.
        fp32, quantised: milliseconds.
        speed_up: median of float over median of quantized.
        integer_kernels, float_kernels: layers of the quantized model by the kernels that onnxruntime runs them with.
        runs: of each.
    """

    network: str
    bits: str
    threads: int
    batch: int
    fp32: Timing
    quantised: Timing
    speed_up: float
    integer_kernels: int
    float_kernels: int
    runs: int


@dataclass(frozen=True)
class Pair:
    """A float model, its quantized one, and one batch for both."""

    name: str
    bits: str
    fp32: Path
    quantised: Path
    feed: dict[str, np.ndarray[Any, Any]]


def built_pairs(args: argparse.Namespace, folder: Path) -> Iterator[Pair]:
    """The reference networks, quantized as fast as can be."""
    for name in args.networks.split(","):
        network = NETWORKS[name]()
        fp32 = folder / f"{name}.onnx"
        fp32.write_bytes(network.model(random_values(network)).SerializeToString())
        feed = next(samples(network, args.batch, batch=args.batch, seed=2))
        for bits in args.bits.split(","):
            weights, activations = (int(b) for b in bits.removeprefix("w").split("a"))
            values = {"weights": weights, "activations": activations, "container": args.container}
            config = make_config({**values, "second_order": False, "equalise": False})
            quantised = folder / f"{name}.{bits}.onnx"
            quantize(fp32, samples(network, CALIBRATION, seed=1), config).save(quantised)
            yield Pair(name, bits, fp32, quantised, feed)


def given_pair(args: argparse.Namespace) -> Iterator[Pair]:
    """The two files that were named."""
    if not args.data:
        raise SystemExit("--pair needs --data: an .npz with the models' inputs")
    with np.load(args.data) as arrays:
        names = {i.name for i in ort.InferenceSession(args.pair[0], providers=["CPUExecutionProvider"]).get_inputs()}
        feed = {name: arrays[name][: args.batch] for name in arrays if name in names}
    fp32, quantised = args.pair
    yield Pair(quantised.stem, "", fp32, quantised, feed)


def session(model: Path, threads: int) -> Any:
    """A session at the default level; its threads sleep between runs, so that the other model has the processor."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def measure(pair: Pair, threads: int, seconds: float) -> Row:
    """Time both models in turns; which goes first alternates."""
    sessions = (session(pair.fp32, threads), session(pair.quantised, threads))
    for _ in range(WARM_UP):
        for one in sessions:
            one.run(None, pair.feed)
    times: tuple[list[float], list[float]] = ([], [])
    began = time.perf_counter()
    while len(times[0]) < FEWEST or time.perf_counter() - began < seconds:
        for which in (0, 1) if len(times[0]) % 2 else (1, 0):
            start = time.perf_counter()
            sessions[which].run(None, pair.feed)
            times[which].append(1000 * (time.perf_counter() - start))
    fp32, quantised = _timing(times[0]), _timing(times[1])
    counts = take_census(pair.quantised).counts
    return Row(
        network=pair.name,
        bits=pair.bits,
        threads=threads,
        batch=len(next(iter(pair.feed.values()))),
        fp32=fp32,
        quantised=quantised,
        speed_up=fp32.median / quantised.median,
        integer_kernels=sum(n for op, n in counts.items() if op in INTEGER_KERNELS),
        float_kernels=sum(n for op, n in counts.items() if op in FLOAT_KERNELS),
        runs=len(times[0]),
    )


def _timing(times: list[float]) -> Timing:
    low, median, high = statistics.quantiles(times, n=4)
    return Timing(median, low, high)


def markdown(rows: list[Row]) -> str:
    """The rows as a table for people."""
    cells = [
        [
            row.network,
            row.bits.upper(),
            str(row.threads),
            str(row.batch),
            *(f"{t.median:.2f} ({t.low:.2f} to {t.high:.2f})" for t in (row.fp32, row.quantised)),
            f"{row.speed_up:.2f}",
            f"{row.integer_kernels}, {row.float_kernels}",
            str(row.runs),
        ]
        for row in rows
    ]
    return record.markdown(HEAD, cells)


def main() -> None:
    """Time what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet50,mobilenet_v2")
    parser.add_argument("--pair", type=Path, nargs=2, metavar=("FLOAT", "QUANTISED"))
    parser.add_argument("--data", type=Path)
    parser.add_argument("--bits", default="w8a8")
    parser.add_argument("--container", default="int8", choices=("auto", "packed", "int4", "int8"))
    parser.add_argument("--threads", default="1,2")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=20.0, help="a pair and number of threads [default: 20]")
    parser.add_argument("--out", type=Path, default=Path("speed"))
    args = parser.parse_args()
    rows: list[Row] = []
    with TemporaryDirectory(prefix="onnxq-") as folder:
        for pair in given_pair(args) if args.pair else built_pairs(args, Path(folder)):
            for threads in (int(n) for n in args.threads.split(",")):
                rows.append(measure(pair, threads, args.seconds))
                print(markdown(rows[-1:]).splitlines()[-1], flush=True)
                record.write(args.out, [asdict(row) for row in rows], markdown(rows))


if __name__ == "__main__":
    main()
