"""Accuracy, size and time of quantized networks: one row a network and bit-width.

    python benchmarks/accuracy.py                                 the bundled network
    python benchmarks/accuracy.py --assets DIR [--cases a,b]      networks described by DIR/cases.py
    ... --bits w8a8,w4a8,w4a4 --presets light,advanced --samples 512 --out results

DIR/cases.py defines ``CASES``: by name, an object with ``model`` (a path), ``calibration(n)`` (batches of
inputs) and ``evaluation()`` (batches of inputs with labels). Every network is quantized with first and last
layers at 8 bits and judged on its whole evaluation set at onnxruntime's default level, against its own float
outputs. Results go to OUT.json and OUT.md with the machine, the versions and the commit.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import record

from onnxq.api import quantize
from onnxq.config import make_config
from onnxq.data import read_feeds, read_labels, samples_in
from onnxq.ir.load import load
from onnxq.models import bundled
from onnxq.verify import verify

HEAD = ("network", "bits", "preset", "KL, nats", "top-1 float → quantised", "size", "seconds", "all levels load")


@dataclass(frozen=True)
class Network:
    """A network with data.

    Attributes:
        name: of the rows.
        model: where it lies.
        calibration: so many samples, in batches.
        evaluation: batches of inputs.
        labels: all labels in their order; empty where ``scores`` is False.
        scores: whether its output is a score for each class.
    """

    name: str
    model: Path
    calibration: Callable[[int], Any]
    evaluation: Callable[[], Iterable[Any]]
    labels: Callable[[], np.ndarray]
    scores: bool = True


@dataclass(frozen=True)
class Row:
    """One quantization, judged."""

    network: str
    bits: str
    preset: str
    kl: float | None
    top1_fp32: float | None
    top1: float | None
    sqnr_db: float | None
    size: float
    seconds: float
    loads: bool
    largest_level_difference: float | None


def bundled_network() -> Network:
    """The network that is installed with the package."""
    files = bundled()
    inputs = load(files.model).inputs
    return Network(
        "digits",
        files.model,
        lambda _: files.calibration,
        lambda: read_feeds(files.evaluation, inputs, batch=64, ignore={"labels"}),
        lambda: read_labels(files.evaluation, "labels"),
    )


def described_networks(folder: Path, names: list[str], *, pairs: bool = False) -> list[Network]:
    """Networks with labels from a folder's ``cases.py``, and those judged by pairs of inputs if they are wanted."""
    spec = importlib.util.spec_from_file_location("cases", folder / "cases.py")
    assert spec and spec.loader, f"{folder} has no cases.py"
    module = importlib.util.module_from_spec(spec)
    sys.modules["cases"] = module
    spec.loader.exec_module(module)

    def network(name: str, case: Any) -> Network:
        return Network(
            name,
            case.model,
            case.calibration,
            lambda: (feed for feed, _ in case.evaluation()),
            lambda: np.concatenate([labels for _, labels in case.evaluation()]),
        )

    def of_pairs(name: str, case: Any) -> Network:
        return Network(
            name,
            case.model,
            case.calibration,
            lambda: (side for pair, _ in case.evaluation() for side in pair),
            lambda: np.empty(0, np.int64),
            scores=False,
        )

    chosen = {n: c for n, c in module.CASES.items() if not names or n in names}
    return [
        network(name, case) if case.metric == "top1" else of_pairs(name, case)
        for name, case in chosen.items()
        if case.metric == "top1" or pairs
    ]


def chosen_networks(assets: Path | None, names: str, *, pairs: bool = False) -> list[Network]:
    """Networks of a folder, all or those named with commas between; the bundled one without a folder."""
    if assets is None:
        return [bundled_network()]
    return described_networks(assets, [n for n in names.split(",") if n], pairs=pairs)


def first_batches(feeds: Iterable[Any], samples: int) -> Iterator[Any]:
    """Whole batches until they hold so many samples."""
    taken = 0
    for feed in feeds:
        yield feed
        taken += samples_in(feed)
        if taken >= samples:
            return


def measure(network: Network, bits: str, samples: int, **options: Any) -> Row:
    """Quantize with these options and judge one network; ``bits`` reads like ``w4a8``."""
    weights, activations = (int(b) for b in bits.removeprefix("w").split("a"))
    config = make_config({"weights": weights, "activations": activations, "samples": samples, **options})
    began = time.perf_counter()
    result = quantize(network.model, network.calibration(samples), config)
    seconds = time.perf_counter() - began
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantised.onnx"
        result.save(path)
        report = verify(
            network.model, path, network.evaluation(), labels=network.labels(), classification=True, latency=False
        ).to_dict()
    (output,) = report["outputs"].values()
    differences = [level["relative_diff"] for level in report["loads"].values() if level["ok"]]
    return Row(
        network=network.name,
        bits=bits,
        preset=config.preset,
        kl=output["kl"],
        top1_fp32=output["top1_fp32"],
        top1=output["top1_quantized"],
        sqnr_db=output["sqnr_db"],
        size=report["quantized"] / report["fp32"],
        seconds=seconds,
        loads=all(level["ok"] for level in report["loads"].values()),
        largest_level_difference=max(differences, default=None),
    )


def markdown(rows: list[Row]) -> str:
    """The rows as a table for people."""
    cells = [
        [
            r.network,
            r.bits.upper(),
            r.preset,
            f"{r.kl:.4f}",
            f"{r.top1_fp32:.2f} → {r.top1:.2f}",
            f"{100 * r.size:.0f}%",
            f"{r.seconds:.0f}",
            "yes" if r.loads else "no",
        ]
        for r in rows
    ]
    return record.markdown(HEAD, cells)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--assets", type=Path)
    parser.add_argument("--cases", default="")
    parser.add_argument("--bits", default="w8a8,w4a8,w4a4")
    parser.add_argument("--presets", default="light,advanced")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--out", type=Path, default=Path("accuracy"))
    args = parser.parse_args()
    rows: list[Row] = []
    for network in chosen_networks(args.assets, args.cases):
        for bits in args.bits.split(","):
            for preset in args.presets.split(","):
                rows.append(measure(network, bits, args.samples, preset=preset))
                print(markdown(rows[-1:]).splitlines()[-1], flush=True)
                record.write(args.out, [asdict(row) for row in rows], markdown(rows), samples=args.samples)


if __name__ == "__main__":
    main()
