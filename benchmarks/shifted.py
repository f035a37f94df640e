"""Networks that meet other samples than those they were calibrated on, as they are and adapted: two rows a shift.

    python benchmarks/shifted.py                                 the bundled network
    python benchmarks/shifted.py --assets DIR [--cases a,b]      networks described by DIR/cases.py (see accuracy.py)
    ... --bits w8a8,w4a8 --shifts none,gain,noise --samples 256 --adapt 256 --evaluation 1000 --out shifted

A network is quantized on its first calibration samples and adapted to those that follow, changed by the shift. It is
judged on its evaluation samples, changed alike, against what the float network makes of them. Shifts are made of the
network's inputs: ``gain`` doubles them and ``faint`` halves them; ``bright`` and ``dark`` stretch a picture from its
black by 1.8, up to its white, and by 0.4; ``noise`` adds half of their deviation.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import record
from accuracy import Network, chosen_networks, first_batches

from onnxq.adaptation.adapt import adapted
from onnxq.config import Config, make_config
from onnxq.data import read_feeds, samples_in
from onnxq.data.replay import batch_size
from onnxq.ir.load import load
from onnxq.pipeline import Result, Task, run
from onnxq.progress import silent
from onnxq.verify import verify

HEAD = (
    "network",
    "bits",
    "shift",
    "adapted",
    "SQNR, median and worst sample, dB",
    "KL, nats",
    "top-1 float → quantised",
    "cut off of the worst tensor",
)

Array = np.ndarray[Any, np.dtype[Any]]
Shift = Callable[[Array, "Extent", np.random.Generator], Array]


@dataclass(frozen=True)
class Extent:
    """Of the calibration samples of one input: smallest and largest value a channel, and deviation."""

    black: Array
    white: Array
    deviation: float

    @staticmethod
    def of(values: Array) -> Extent:
        """The extent of samples, (samples, channels, …) or (samples, values)."""
        axes = tuple(axis for axis in range(values.ndim) if axis != 1)
        return Extent(values.min(axes, keepdims=True), values.max(axes, keepdims=True), float(values.std()))


SHIFTS: dict[str, Shift] = {
    "none": lambda x, extent, rng: x,
    "gain": lambda x, extent, rng: 2 * x,
    "faint": lambda x, extent, rng: x / 2,
    "bright": lambda x, extent, rng: np.minimum(extent.black + 1.8 * (x - extent.black), extent.white),
    "dark": lambda x, extent, rng: extent.black + 0.4 * (x - extent.black),
    "noise": lambda x, extent, rng: x + rng.normal(0, 0.5 * extent.deviation, x.shape),
}


@dataclass(frozen=True)
class Row:
    """One model on shifted samples; ``adapted`` says what the adaptation did, nothing where there was none."""

    network: str
    bits: str
    shift: str
    adapted: str
    sqnr_db: float | None
    sqnr_db_median: float | None
    sqnr_db_worst: float | None
    kl: float | None
    top1_fp32: float | None
    top1: float | None
    lost: float
    loads: bool


def shifted(feeds: Iterable[Any], shift: Shift, extents: dict[str, Extent]) -> Iterator[dict[str, Array]]:
    """Feeds whose floating-point inputs are changed, each time alike."""
    rng = np.random.default_rng(0)
    for feed in feeds:
        yield {
            name: shift(np.asarray(value), extents[name], rng).astype(value.dtype) if name in extents else value
            for name, value in feed.items()
        }


def measured(network: Network, bits: str, shifts: list[str], args: argparse.Namespace) -> Iterator[Row]:
    """Both rows of each shift."""
    inputs = load(network.model).inputs
    batch = batch_size(inputs)
    wanted = args.samples + args.adapt
    feeds = list(read_feeds(network.calibration(wanted), inputs, samples=wanted, batch=batch))
    known = list(first_batches(feeds, args.samples))
    fresh = feeds[len(known) :]
    assert fresh, f"{network.name} has no samples beyond the {args.samples} that it is calibrated on"
    extents = {
        name: Extent.of(np.concatenate([feed[name] for feed in known]))
        for name, value in known[0].items()
        if np.issubdtype(value.dtype, np.floating)
    }
    weights, activations = (int(b) for b in bits.removeprefix("w").split("a"))
    config = make_config({"weights": weights, "activations": activations, "preset": args.preset})
    solved = run(Task(network.model, known, config, None, silent, None, False))
    for shift in shifts:
        moved = adapted(solved, config, shifted(fresh, SHIFTS[shift], extents), silent)
        for result in (solved.result, moved.result):
            yield judged(network, bits, shift, result, extents, args.evaluation)


def judged(network: Network, bits: str, shift: str, result: Result, extents: dict[str, Extent], limit: int) -> Row:
    """One quantized model on shifted evaluation samples."""
    feeds = list(shifted(first_batches(network.evaluation(), limit), SHIFTS[shift], extents))
    labels = network.labels()[: sum(map(samples_in, feeds))] if network.scores else None
    report = verify(network.model, result.model, feeds, labels=labels, latency=False, ranges=True)
    output, last = report.outputs[0], result.report.stages[-1]
    return Row(
        network.name,
        bits,
        shift,
        last.did if last.stage == "adapt" else "",
        output.sqnr_db,
        output.sqnr_db_median,
        output.sqnr_db_worst,
        output.kl,
        output.top1_fp32,
        output.top1_quantized,
        report.ranges[0].lost if report.ranges else 0.0,
        report.ok,
    )


def markdown(rows: list[Row]) -> str:
    """The rows as a table for people."""

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    cells = [
        [
            r.network,
            r.bits.upper(),
            r.shift,
            ("no" if not r.adapted else "left as it was" if r.adapted.startswith("left") else "yes"),
            ", ".join(number(v, ".1f") for v in (r.sqnr_db, r.sqnr_db_median, r.sqnr_db_worst)),
            number(r.kl, ".4f"),
            f"{number(r.top1_fp32, '.2f')} → {number(r.top1, '.2f')}",
            f"{100 * r.lost:.2g}%",
        ]
        for r in rows
    ]
    return record.markdown(HEAD, cells)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path)
    parser.add_argument("--cases", default="")
    parser.add_argument("--bits", default="w8a8,w4a8")
    parser.add_argument("--shifts", default=",".join(SHIFTS))
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--adapt", type=int, default=256)
    parser.add_argument("--evaluation", type=int, default=1000)
    parser.add_argument("--preset", default=Config().preset)
    parser.add_argument("--out", type=Path, default=Path("shifted"))
    args = parser.parse_args()
    rows: list[Row] = []
    for network in chosen_networks(args.assets, args.cases):
        for bits in args.bits.split(","):
            for row in measured(network, bits, args.shifts.split(","), args):
                rows.append(row)
                print(markdown(rows[-1:]).splitlines()[-1], flush=True)
                facts = {"samples": args.samples, "adapt": args.adapt, "evaluation": args.evaluation}
                record.write(args.out, [asdict(row) for row in rows], markdown(rows), **facts)


if __name__ == "__main__":
    main()
