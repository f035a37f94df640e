"""Right on data it has not seen: onnxq and onnxruntime's quantizer from the same few samples, judged on new ones.

    python benchmarks/unseen.py                                        made-up families and the bundled network
    python benchmarks/unseen.py --assets DIR [--networks mlp,kws]      those of DIR/cases.py too (see accuracy.py)
    ... --samples 1,4,16,64,256 --draws 5 --bits w8a8,w4a8 --config equalize=false --no-peers -o unseen.json
    python benchmarks/unseen.py --summary -o unseen.json               what the rows so far say together

A draw is another network of a family with data of its own (unseen_families.py), or other calibration samples of a
network that has data. All is run by onnxruntime at its default level and held against the float model; decibels are of
signal to noise. onnxruntime's quantizer gets the same samples, after its own preparation of the model, with a scale for
each channel, unsigned activations and signed weights. Processors without VNNI cut off such products: the processor
stands in the results. ``told`` is what onnxq's own report says of the output.

Rows that the file holds are not measured again; a stopped run goes on. Peers that have been measured once can be taken
from another file (--peers-from), for they do not depend on onnxq.
"""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
import time
import tomllib
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from environment import sentence
from peers import EDGE_BITS, edges_of
from unseen_families import FAMILIES
from unseen_judgement import Array, Judged, answers, judged, percent
from unseen_networks import BUNDLED, DESCRIBED, Case, Source, joined
from unseen_rows import OURS, PEERS, Key, Record, read
from unseen_summary import summary

from onnxq.api import quantize
from onnxq.config import make_config
from onnxq.config.bit_widths import parse_candidate
from onnxq.data import Feed

sys.path.insert(0, str(Path(__file__).resolve().parent / "peer_drivers"))

from common import Job
from drive_onnxruntime import ACTIVATIONS, WEIGHTS, quantise


@dataclass(frozen=True)
class Attempt:
    """What is to be done with one draw of samples.

    Attributes:
        case: the network, its new samples among it.
        exact: what its float model answers to those.
        feeds: calibration samples.
        bits: such as ``w8a8``.
        config: other options of onnxq.
        folder: for what is written on the way.
    """

    case: Case
    exact: Array
    feeds: list[Feed]
    bits: str
    config: dict[str, Any]
    folder: Path

    @property
    def options(self) -> dict[str, Any]:
        """All options of onnxq."""
        bits = parse_candidate(self.bits)
        return {"weights": bits.weights, "activations": bits.activations, "edge_bits": EDGE_BITS, **self.config}

    def by(self, who: str) -> tuple[Judged, dict[str, float | None]]:
        """A quantized model's figures, and what its maker's report tells by output."""
        output, began = self.folder / "quantised.onnx", time.perf_counter()
        told: dict[str, float | None] = {}
        try:
            if who == OURS:
                result = quantize(self.case.model, self.feeds, make_config(self.options))
                result.save(output)
                told = result.report.simulated_sqnr_db
            else:
                self._onnxruntime(who, output)
            seconds = time.perf_counter() - began
            _, found = answers(output, self.case.fresh)
        except Exception as error:  # every kind is a finding
            return Judged(reason=f"{type(error).__name__}: {str(error).strip()[:300]}"), told
        return judged(self.exact, found, self.case.labels, scores=self.case.scores, seconds=seconds), told

    def _onnxruntime(self, method: str, output: Path) -> None:
        """Its quantizer, as the comparison of tools drives it."""
        samples = self.folder / "calibration.npz"
        np.savez(samples, **joined(self.feeds))
        bits = parse_candidate(self.bits)
        if bits.weights not in WEIGHTS or bits.activations not in ACTIVATIONS:
            raise ValueError(f"its driver has no {bits}, only 4 and 8 bits")
        edges = edges_of(self.case.model, bits.weights, bits.activations) if self.bits != "w8a8" else []
        pairs = tuple((weight, activation) for weight, activation in edges)
        job = Job(self.case.model, samples, output, method, bits.weights, bits.activations, EDGE_BITS, pairs)
        logging.disable(logging.WARNING)  # its advice, once a tensor
        try:
            with redirect_stdout(StringIO()):
                quantise(job)
        finally:
            logging.disable(logging.NOTSET)


def measure(args: argparse.Namespace, source: Source, kept: Record, folder: Path) -> None:
    """Measure every row that is asked for and not there."""
    wanted = [OURS, *(PEERS if args.peers else ())]
    for name in args.networks:
        if reason := source.missing(name):
            print(reason, file=sys.stderr)
            continue
        for draw in range(args.draws):
            keys = [(name, bits, samples, draw) for bits in args.bits for samples in args.samples]
            left = [key for key in keys if kept.lacks(key) or not kept.had(key) >= {*wanted}]
            if left:
                _measure_draw(source.case(name, draw), left, wanted, args.config, kept, folder)


def _measure_draw(
    case: Case, keys: list[Key], wanted: list[str], config: dict[str, Any], kept: Record, folder: Path
) -> None:
    """Measure rows of one network and draw, each with whom it lacks of those wanted."""
    output, exact = answers(case.model, case.fresh)
    right = None if case.labels is None else percent(exact.argmax(-1).reshape(case.labels.shape) == case.labels)
    for key in keys:
        name, bits, samples, _ = key
        feeds = case.calibration(samples)
        if len(feeds) < samples:
            print(f"{name} is not measured from {samples} samples: it has {len(feeds)}", file=sys.stderr)
            continue
        attempt = Attempt(case, exact, feeds, bits, config, folder)
        row = replace(kept.get(key), accuracy_fp32=right)
        for who in (w for w in wanted if w not in kept.had(key)):
            figures, told = attempt.by(who)
            row = replace(row, judged={**row.judged, who: figures})
            if who == OURS:
                row = replace(row, told_db=told.get(output))
        kept.put(row)


def option(text: str) -> tuple[str, Any]:
    """A name and a value, as TOML writes it or a bare word.

    Example:
        >>> option("equalize=false"), option("preset=advanced")
        (('equalize', False), ('preset', 'advanced'))
    """
    name, _, value = text.partition("=")
    try:
        return name, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return name, value


def listed(text: str) -> list[str]:
    """The words between commas."""
    return [word for word in text.split(",") if word]


def parsed(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=listed, help="[default: the families, the bundled one, those of --assets]")
    parser.add_argument("--assets", type=Path)
    parser.add_argument("--samples", type=lambda text: [int(n) for n in listed(text)], default=[1, 4, 16, 64, 256])
    parser.add_argument("--draws", type=int, default=5)
    parser.add_argument("--bits", type=listed, default=["w8a8"])
    parser.add_argument("--config", type=option, action="append", default=[], help="option=value of onnxq")
    parser.add_argument("--peers", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--peers-from", type=Path, help="results that hold the peers' figures")
    parser.add_argument("--fresh", type=int, default=200, help="new samples [default: 200]")
    parser.add_argument("--pool", type=int, default=512, help="samples that draws are taken from [default: 512]")
    parser.add_argument("--summary", action="store_true", help="tell of the rows so far, measure nothing")
    parser.add_argument("-o", "--out", type=Path, default=Path("unseen.json"))
    args = parser.parse_args(arguments)
    args.networks = args.networks or [*FAMILIES, BUNDLED, *(DESCRIBED if args.assets else ())]
    if unknown := [name for name in args.networks if name not in (*FAMILIES, BUNDLED, *DESCRIBED)]:
        parser.error(f"{unknown[0]} is no network of this benchmark: {', '.join([*FAMILIES, BUNDLED, *DESCRIBED])}")
    args.config = dict(args.config)
    return args


def main(arguments: list[str] | None = None) -> None:
    """Measure what the command line asks for."""
    args = parsed(arguments)
    if not args.summary:
        settings = {"config": args.config, "fresh": args.fresh, "pool": args.pool}
        kept = Record(args.out, settings, shlex.join(["python", *sys.argv]))
        if args.peers_from:
            kept.take_peers(args.peers_from)
        with TemporaryDirectory(prefix="onnxq-") as folder:
            measure(args, Source(Path(folder), args.assets, args.fresh, args.pool), kept, Path(folder))
    found = read(args.out.with_suffix(".json"))
    print(f"\n{summary(found['rows'])}\n{found['command']}\n{sentence(found['machine'])}")


if __name__ == "__main__":
    main()
