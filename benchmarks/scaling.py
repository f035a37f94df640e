"""Time and peak memory of quantizing the reference networks, and how they grow with the number of samples.

    python benchmarks/scaling.py [--networks resnet18,...] [--bits w8a8,w4a8] [--presets light]
           [--samples 64,256,1024] [--timeout SECONDS] [--out scaling]

Networks have seeded random weights (see ``models/README.md``); images are 224 × 224, sequences have 128 tokens. Every
run is a process of its own. Seconds are wall clock without imports and without making the samples; memory is the
process's largest resident set. ``x64`` and the like are ratios to the run with the fewest samples.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import record
from process import run
from reference import built

SEQUENCE = 128
HEAD = ("network", "bits", "preset", "samples", "seconds", "processor seconds", "peak memory", "growth", "levels", "")


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        network, bits, preset, samples: what was run.
        seconds: wall clock of the quantization.
        stages: the same by stage.
        cpu_seconds: processor time of the whole process, samples included.
        peak: largest resident memory, bytes.
        loads: optimization levels of onnxruntime at which the result works, of four.
        reason: why there is no result.
    """

    network: str
    bits: str
    preset: str
    samples: int
    seconds: float | None = None
    stages: dict[str, float] | None = None
    cpu_seconds: float | None = None
    peak: int | None = None
    loads: int | None = None
    reason: str = ""


class Timed:
    """An iterator that knows how long its values took to make."""

    def __init__(self, values: Iterator[Any]) -> None:
        self._values = values
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Any]:
        """The values."""
        return self

    def __next__(self) -> Any:
        """The next one."""
        began = time.perf_counter()
        try:
            return next(self._values)
        finally:
            self.seconds += time.perf_counter() - began


def quantise_once(name: str, model: Path, bits: str, preset: str, count: int) -> None:
    """What the child process does: quantize, and print what the report says."""
    from onnxq.api import quantize
    from onnxq.config import make_config
    from onnxq.models.catalogue import NETWORKS
    from onnxq.models.samples import samples

    weights, activations = (int(b) for b in bits.removeprefix("w").split("a"))
    # Other samples than those that the statistics of the random weights were taken of.
    feeds = Timed(samples(NETWORKS[name](), count, sequence=SEQUENCE, seed=1))
    config = make_config({"weights": weights, "activations": activations, "preset": preset})
    began = time.perf_counter()
    report = quantize(model, feeds, config).report
    seconds = time.perf_counter() - began - feeds.seconds
    loads = sum(check.ok for check in report.loads)
    print(json.dumps({"seconds": seconds, "stages": report.seconds, "loads": loads}))


def measure(name: str, model: Path, bits: str, preset: str, count: int, timeout: float) -> Row:
    """One run in a process of its own; this one must stay small, for a child starts with its parent's peak."""
    inner = ["--inner", str(model), "--networks", name, "--bits", bits, "--presets", preset, "--samples", str(count)]
    done = run([sys.executable, __file__, *inner], timeout=timeout)
    row = Row(name, bits, preset, count, cpu_seconds=done.cpu_seconds, peak=done.peak)
    if done.status is None:
        return replace(row, reason=f"not finished after {timeout:.0f} s")
    if done.status != 0:
        return replace(row, reason=done.complaint[:200])
    return replace(row, **json.loads(done.output.splitlines()[-1]))


def markdown(rows: list[Row]) -> str:
    """The rows as a table for people."""
    cells = []
    for row in rows:
        alike = [r for r in rows if (r.network, r.bits, r.preset) == (row.network, row.bits, row.preset)]
        first = min(alike, key=lambda r: r.samples)
        growth = "–"
        if first is not row and first.seconds and row.seconds and first.peak and row.peak:
            ratio = row.samples / first.samples
            growth = f"×{ratio:.0f}: time ×{row.seconds / first.seconds:.2f}, memory ×{row.peak / first.peak:.2f}"
        cells.append(
            [
                row.network,
                row.bits.upper(),
                row.preset,
                str(row.samples),
                "–" if row.seconds is None else f"{row.seconds:.0f}",
                "–" if row.cpu_seconds is None else f"{row.cpu_seconds:.0f}",
                "–" if row.peak is None else f"{row.peak / 2**30:.2f} GiB",
                growth,
                "–" if row.loads is None else f"{row.loads} of 4",
                row.reason,
            ]
        )
    return record.markdown(HEAD, cells)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default="resnet18,resnet50,resnet101,mobilenet_v2,bert_base")
    parser.add_argument("--bits", default="w8a8")
    parser.add_argument("--presets", default="light")
    parser.add_argument("--samples", default="64,256,1024")
    parser.add_argument("--timeout", type=float, default=7200.0, help="seconds a run [default: 7200]")
    parser.add_argument("--out", type=Path, default=Path("scaling"))
    parser.add_argument("--inner", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inner:
        quantise_once(args.networks, args.inner, args.bits, args.presets, int(args.samples))
        return
    rows: list[Row] = []
    with TemporaryDirectory(prefix="onnxq-") as folder:
        for name in args.networks.split(","):
            model = built(name, Path(folder), timeout=args.timeout)
            counts = [int(n) for n in args.samples.split(",")]
            for bits, preset, count in product(args.bits.split(","), args.presets.split(","), counts):
                rows.append(measure(name, model, bits, preset, count, args.timeout))
                print(markdown(rows).splitlines()[-1], flush=True)
                record.write(args.out, [asdict(row) for row in rows], markdown(rows))


if __name__ == "__main__":
    main()
