"""Where the time of a quantization goes, and how fast its matrix products are beside the machine's.

    python benchmarks/hot_spots.py [--network resnet50] [--bits w4a8] [--samples 64] [--preset light] [--out hot_spots]

Needs py-spy (``pip install py-spy``), which stops the process fifty times a second to look at it, native frames
included: times are longer than without. The network has seeded random weights (see ``models/README.md``).

Rates are multiply-adds a second: of the network's runs by onnxruntime (the float and the quantized one, over all
samples), of the solver's moments (the Gram matrices of layers' inputs), and of a large product of square matrices in
the same process, just before.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import record
from process import run
from reference import built

KINDS = (
    ("matrix products of the solver", ("openblas", "mkl_", "libblis")),
    ("runs of the network", ("onnxruntime_pybind",)),
    ("gradient descent", ("jaxlib", "xla_")),
)
REST = "rounding, sorting, gathering rows, Python"
SQUARE, REPEATS = 2048, 5


def kind_of(stack: str) -> str:
    """What a stack of frames is about; the innermost library decides."""
    for frame in reversed(stack.split(";")):
        for kind, marks in KINDS:
            if any(mark in frame for mark in marks):
                return kind
    return REST


def shares(stacks: Iterable[str]) -> dict[str, float]:
    """Share of each kind in stacks of ``frame;frame count``."""
    counts: Counter[str] = Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        counts[kind_of(stack)] += int(count)
    total = max(sum(counts.values()), 1)
    return {kind: counts[kind] / total for kind in (*(k for k, _ in KINDS), REST)}


def product_rate() -> float:
    """Multiply-adds a second of a large float32 product."""
    a = np.random.default_rng(0).standard_normal((SQUARE, SQUARE), dtype=np.float32)
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        np.matmul(a, a)
        times.append(time.perf_counter() - began)
    return SQUARE**3 / min(times)


class Watched:
    """A function that gathers moments, its work and its time."""

    def __init__(self, function: Any) -> None:
        self._function = function
        self.macs, self.seconds = 0, 0.0

    def __call__(self, x: np.ndarray, y: np.ndarray, *args: Any, **options: Any) -> Any:
        """The same; the Gram matrix counts half, it is symmetric."""
        groups, rows, inputs = x.shape
        self.macs += groups * rows * inputs * (inputs // 2 + y.shape[2])
        began = time.perf_counter()
        try:
            return self._function(x, y, *args, **options)
        finally:
            self.seconds += time.perf_counter() - began


def quantise_once(name: str, model: Path, bits: str, preset: str, count: int) -> None:
    """What the watched process does: quantize, and print rates and times."""
    import onnxq.solve.closed_form.normal_equations as solver
    from onnxq.api import inspect, quantize
    from onnxq.config import make_config
    from onnxq.models.catalogue import NETWORKS
    from onnxq.models.samples import samples
    from onnxq.plan.inspection import pass_work
    from onnxq.runtime.session import Session

    rate = product_rate()
    watched = Watched(solver.moments)
    solver.moments = watched  # type: ignore[assignment]
    spent = [0.0]
    plain = Session.run

    def timed(self: Session, *args: Any, **options: Any) -> Any:
        began = time.perf_counter()
        try:
            return plain(self, *args, **options)
        finally:
            spent[0] += time.perf_counter() - began

    Session.run = timed  # type: ignore[method-assign]
    weights, activations = (int(b) for b in bits.removeprefix("w").split("a"))
    config = make_config({"weights": weights, "activations": activations, "preset": preset})
    report = quantize(model, samples(NETWORKS[name](), count, seed=1), config).report
    prepared, plan = inspect(model, config)
    macs, _ = pass_work(prepared, [p.layer for p in plan.layers])
    print(
        json.dumps(
            {
                "seconds": report.seconds,
                "product_rate": rate,
                "network_rate": 2 * macs * count / spent[0],
                "moments_rate": watched.macs / max(watched.seconds, 1e-9),
                "network_seconds": spent[0],
                "moments_seconds": watched.seconds,
            }
        )
    )


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--bits", default="w4a8")
    parser.add_argument("--preset", default="light")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path("hot_spots"))
    parser.add_argument("--inner", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inner:
        quantise_once(args.network, args.inner, args.bits, args.preset, args.samples)
        return
    spy = shutil.which("py-spy", path=f"{Path(sys.executable).parent}:/usr/bin:/usr/local/bin")
    if spy is None:
        sys.exit("py-spy is not installed: pip install py-spy")
    with TemporaryDirectory(prefix="onnxq-") as folder:
        model, stacks = built(args.network, Path(folder)), Path(folder) / "stacks"
        inner = [sys.executable, __file__, "--inner", model, "--network", args.network, "--bits", args.bits]
        inner += ["--preset", args.preset, "--samples", str(args.samples)]
        record_to = ["record", "--native", "--rate", "50", "--format", "raw", "--output", stacks]
        done = run([spy, *record_to, "--", *inner], timeout=7200)
        lines = [line for line in done.output.splitlines() if line.startswith("{")]
        if done.status != 0 or not lines:
            sys.exit(f"the watched quantisation failed: {done.complaint}")
        found = json.loads(lines[-1])
        spread = shares(stacks.read_text(encoding="utf-8").splitlines())
    rows = [
        *([f"share of {kind}", f"{share:.1%}"] for kind, share in spread.items()),
        ["large product", f"{found['product_rate'] / 1e9:.1f} G multiply-adds a second"],
        *(
            [f"{what}, of that", f"{found[key] / found['product_rate']:.0%}, {found[key] / 1e9:.1f} G"]
            for what, key in (("network", "network_rate"), ("moments", "moments_rate"))
        ),
        ["whole, s", f"{sum(found['seconds'].values()):.0f}"],
    ]
    table = record.markdown((f"{args.network}, {args.bits.upper()}, {args.preset}, {args.samples} samples", ""), rows)
    record.write(args.out, [{"shares": spread, **found}], table, network=args.network, samples=args.samples)
    print(table)


if __name__ == "__main__":
    main()
