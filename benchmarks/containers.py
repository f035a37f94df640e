"""What storing weights in their bits costs and saves: file, nodes, session start, memory at start, time of a run.

    python benchmarks/containers.py [--networks resnet50] [--matrix 4096x16384] [--bits 2,3,4,5,6,7]
           [--assets DIR --cases resnet20,kws] [--containers packed,int4] [--starts 5] [--seconds 20] [--out containers]

Weights are rounded to nearest and activations get one range, for speed and size depend on neither; first and last
layers keep 8 bits. A session starts in a process of its own, the shortest of a few is told, and its peak of resident
memory, the interpreter and onnxruntime included. Runs are timed in turns in one process, on one thread. `equal`: the
outputs are those of the int8 container to the last bit at all four optimization levels.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import record
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxq.allocation.cost.dummy_model import placeholder_model
from onnxq.config import Config, make_config
from onnxq.config.bit_widths import Candidate
from onnxq.ir.model import Model
from onnxq.ir.reachability import edge_layers
from onnxq.ir.save import save
from onnxq.models.catalogue import NETWORKS
from onnxq.models.random_weights import random_values
from onnxq.models.samples import samples
from onnxq.pipeline import opset_of, prepared_model
from onnxq.plan.make_plan import require_layers
from onnxq.verify.kernel_census import INTEGER_KERNELS, take_census
from onnxq.verify.session import LEVELS, start_session

Feed = Mapping[str, NDArray[Any]]

WHOLE = "int8"
START = """
import json, sys, time
import onnxruntime as ort
options = ort.SessionOptions()
options.intra_op_num_threads = 1
options.log_severity_level = 3
began = time.perf_counter()
session = ort.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
seconds = time.perf_counter() - began
peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM"))
print(json.dumps([seconds, int(peak) / 1024]))
"""
WARM_UP, FEWEST = 3, 10
HEAD = (
    "network",
    "bits",
    "container",
    "file, MB",
    "nodes",
    "start, s",
    "peak, MiB",
    "ms",
    "speed, float = 1",
    "speed, W8A8 = 1",
    "integer kernels",
    "equal",
)


@dataclass(frozen=True)
class Row:
    """One model; see the head of the table for the units."""

    network: str
    bits: str
    container: str
    megabytes: float
    nodes: int
    start: float
    peak: float
    milliseconds: float
    beside_float: float
    beside_w8a8: float
    integer_kernels: int
    equal: bool | None


@dataclass(frozen=True)
class Case:
    """A float network and one sample for it."""

    name: str
    model: onnx.ModelProto | Path
    feed: Feed


def cases(args: argparse.Namespace) -> Iterator[Case]:
    """What the command line names."""
    for name in filter(None, args.networks.split(",")):
        network = NETWORKS[name]()
        yield Case(name, network.model(random_values(network)), next(samples(network, 1, batch=1, seed=2)))
    if args.matrix:
        rows, columns = map(int, args.matrix.split("x"))
        yield Case(f"matrix {args.matrix}", matrix(rows, columns), {"x": np.ones((1, rows), np.float32)})
    if args.assets:
        sys.path.insert(0, str(args.assets))
        from cases import CASES  # type: ignore[import-not-found]

        for name in args.cases.split(","):
            batch = next(iter(CASES[name].calibration(1)))
            yield Case(name, Path(CASES[name].model), {k: v[:1] for k, v in batch.items()})


def matrix(rows: int, columns: int) -> onnx.ModelProto:
    """Three products of matrices, so that the middle one is no edge."""
    rng = np.random.default_rng(0)
    shapes = {"a": (rows, rows // 64), "b": (rows // 64, rows), "w": (rows, columns), "c": (columns, 8)}
    weights = [numpy_helper.from_array(rng.normal(0, 0.02, s).astype(np.float32), n) for n, s in shapes.items()]
    chain = [helper.make_node("MatMul", [i, w], [o], o) for i, w, o in ("xap", "pbq", "qwr", "rcy")]
    ends = [helper.make_tensor_value_info(n, 1, ["N", size]) for n, size in (("x", rows), ("y", 8))]
    graph = helper.make_graph(chain, "matrix", ends[:1], ends[1:], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def quantised(case: Case, weights: int, container: str) -> onnx.ModelProto:
    """A model whose numbers mean nothing, with edges of 8 bits."""
    config = make_config({"weights": weights, "container": container, "edge_bits": 8})
    inner = Candidate(weights, 8)
    model = prepared_model(case.model, config, opset_of(config, {0: inner}))
    return placeholder_model(model, config, _choice(model, config, inner))[0]


def _choice(model: Model, config: Config, inner: Candidate) -> dict[str, Candidate]:
    layers, _ = require_layers(model)
    edges = set().union(*edge_layers(model, layers))
    return {la.name: Candidate(8, 8) if la.name in edges else inner for la in layers}


def starting(path: Path, times: int) -> tuple[float, float]:
    """Seconds of the fastest start of some, and the least peak of memory, MiB."""
    command = [sys.executable, "-c", START, str(path)]
    found = [
        json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout) for _ in range(times)
    ]
    return min(seconds for seconds, _ in found), min(peak for _, peak in found)


def running(paths: Mapping[str, Path], feed: Feed, seconds: float) -> dict[str, float]:
    """Median milliseconds of a run of each, timed in turns on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    sessions = {n: ort.InferenceSession(p, options, providers=["CPUExecutionProvider"]) for n, p in paths.items()}
    spent: dict[str, list[float]] = {name: [] for name in paths}
    began, turn = time.perf_counter(), 0
    while turn < WARM_UP + FEWEST or time.perf_counter() - began < seconds * len(paths):
        for name in list(paths)[:: 1 if turn % 2 else -1]:
            start = time.perf_counter()
            sessions[name].run(None, feed)
            if turn >= WARM_UP:
                spent[name].append(1000 * (time.perf_counter() - start))
        turn += 1
    return {name: statistics.median(times) for name, times in spent.items()}


def same(one: Path, other: Path, feed: Feed) -> bool:
    """Whether two models answer alike to the last bit at every level."""
    answers = [[start_session(str(p), level).run(None, feed) for level in LEVELS] for p in (one, other)]
    return all(np.array_equal(a, b) for x, y in zip(*answers, strict=True) for a, b in zip(x, y, strict=True))


def measure(case: Case, args: argparse.Namespace, folder: Path) -> Iterator[Row]:
    """The float network, W8A8, and every container at every number of bits."""
    paths = {("float", ""): folder / "float.onnx", ("W8A8", WHOLE): folder / "w8.onnx"}
    save(case.model if isinstance(case.model, onnx.ModelProto) else onnx.load(case.model), paths["float", ""])
    save(quantised(case, 8, WHOLE), paths["W8A8", WHOLE])
    wholes: dict[tuple[str, str], Path] = {}
    for bits in map(int, args.bits.split(",")):
        whole = folder / f"w{bits}.whole.onnx"
        save(quantised(case, bits, WHOLE), whole)
        for container in args.containers.split(","):
            key = (f"W{bits}A8", container)
            paths[key], wholes[key] = folder / f"w{bits}.{container}.onnx", whole
            save(quantised(case, bits, container), paths[key])
    times = running({"/".join(key): path for key, path in paths.items()}, case.feed, args.seconds)
    for key, path in paths.items():
        start, peak = starting(path, args.starts)
        spent = times["/".join(key)]
        model = onnx.load(path, load_external_data=False)
        data = Path(f"{path}.data")
        counts = take_census(path).counts
        yield Row(
            case.name,
            *key,
            (path.stat().st_size + (data.stat().st_size if data.exists() else 0)) / 1e6,
            len(model.graph.node),
            start,
            peak,
            spent,
            times["float/"] / spent,
            times[f"W8A8/{WHOLE}"] / spent,
            sum(n for op, n in counts.items() if op in INTEGER_KERNELS),
            same(path, wholes[key], case.feed) if key in wholes else None,
        )


def markdown(rows: list[Row]) -> str:
    """The rows as a table for people."""
    cells = [
        [
            row.network,
            row.bits,
            row.container,
            f"{row.megabytes:.3f}",
            str(row.nodes),
            f"{row.start:.3f}",
            f"{row.peak:.0f}",
            f"{row.milliseconds:.2f}",
            f"{row.beside_float:.2f}",
            f"{row.beside_w8a8:.2f}",
            str(row.integer_kernels),
            {None: "", True: "yes", False: "NO"}[row.equal],
        ]
        for row in rows
    ]
    return record.markdown(HEAD, cells)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet50")
    parser.add_argument("--matrix", metavar="ROWSxCOLUMNS")
    parser.add_argument("--assets", type=Path)
    parser.add_argument("--cases", default="resnet20")
    parser.add_argument("--bits", default="2,3,4,5,6,7")
    parser.add_argument("--containers", default="packed")
    parser.add_argument("--starts", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5.0, help="of runs, for each model [default: 5]")
    parser.add_argument("--out", type=Path, default=Path("containers"))
    args = parser.parse_args()
    rows: list[Row] = []
    for case in cases(args):
        with TemporaryDirectory(prefix="onnxq-") as folder:
            for row in measure(case, args, Path(folder)):
                rows.append(row)
                print(markdown(rows[-1:]).splitlines()[-1], flush=True)
                record.write(args.out, [asdict(row) for row in rows], markdown(rows))


if __name__ == "__main__":
    main()
