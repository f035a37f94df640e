"""The table of the AdaQuant paper: networks × bits × presets, on labelled images.

    python benchmarks/paper.py IMAGES --networks resnet18=resnet18.safetensors,net.onnx [--preprocess FILE.toml]
           [--calibration IMAGES] [--bits w8a8,w4a8,w4a4,mixed] [--presets light,advanced] [--samples 512]
           [--limit N] [--out paper]

A network is a reference network with published weights (NAME=FILE, see ``models/README.md``) or an ONNX file. IMAGES
holds a folder for each class, whose order is that of the labels, such as ImageNet's validation set as torchvision reads
it; or files whose names begin with the label and an underscore. Without ``--calibration`` the calibration images are
drawn from the same ones and left out of the evaluation. ``mixed`` chooses each layer's weights among 2 to 8 bits within
13% of the float network's size, at k bits for a k-bit weight, and leaves activations at 8.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import record
from accuracy import Network, Row, markdown, measure
from PIL import Image
from reference import built

from onnxq.data.image_folder import SUFFIXES
from onnxq.data.order import files_under
from onnxq.data.preprocess import Preprocess, prepare, read_preprocess
from onnxq.ir.load import load

IMAGENET = Preprocess(resize=256, crop=224, scale="1/255", mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
"""As torchvision's networks were trained."""

MIXED: dict[str, Any] = {
    "candidates": "w2a8,w3a8,w4a8,w5a8,w6a8,w7a8,w8a8",
    "budget": "size=0.13",
    "edge_bits": "same",
}
BATCH = 32

Labelled = tuple[Path, int]


def labelled(folder: Path) -> list[Labelled]:
    """Images with their labels, in natural order."""
    files = files_under(folder, SUFFIXES)
    classes = {path.name: i for i, path in enumerate(sorted(p for p in folder.iterdir() if p.is_dir()))}
    if classes:
        return [(file, classes[file.relative_to(folder).parts[0]]) for file in files]
    heads = [file.stem.split("_")[0] for file in files]
    if not all(head.isdecimal() for head in heads):
        sys.exit(f"{folder} has no folder for each class, nor do all its files begin with a label and an underscore.")
    return [(file, int(head)) for file, head in zip(files, heads, strict=True)]


def batches(files: Sequence[Path], spec: Preprocess, name: str) -> Iterator[dict[str, np.ndarray]]:
    """Prepared images, a few at a time."""
    for begin in range(0, len(files), BATCH):
        images = []
        for file in files[begin : begin + BATCH]:
            with Image.open(file) as image:
                images.append(prepare(image, spec))
        yield {name: np.stack(images)}


def network(
    name: str, model: Path, calibration: Sequence[Path], evaluation: Sequence[Labelled], spec: Preprocess
) -> Network:
    """A network with its images."""
    (entry,) = (i.name for i in load(model).inputs)
    return Network(
        name,
        model,
        lambda n: batches(calibration[:n], spec, entry),
        lambda: batches([file for file, _ in evaluation], spec, entry),
        lambda: np.array([label for _, label in evaluation]),
    )


def split(args: Any) -> tuple[list[Path], list[Labelled]]:
    """Calibration images, and images with labels that are none of them."""
    images, rng = labelled(args.images), np.random.default_rng(0)
    if args.calibration:
        return files_under(args.calibration, SUFFIXES), images[: args.limit]
    chosen = set(rng.choice(len(images), min(args.samples, len(images) // 2), replace=False).tolist())
    return [images[i][0] for i in sorted(chosen)], [im for i, im in enumerate(images) if i not in chosen][: args.limit]


def named(entry: str, folder: Path) -> tuple[str, Path]:
    """Name and ONNX file of an entry of ``--networks``."""
    name, _, weights = entry.partition("=")
    return (name, built(name, folder, weights=weights)) if weights else (Path(name).stem, Path(name))


def judged(found: Network, bits: str, preset: str, samples: int) -> Row:
    """One cell of the table."""
    if bits == "mixed":
        return replace(measure(found, "w8a8", samples, preset=preset, **MIXED), bits="mixed, 13%")
    return measure(found, bits, samples, preset=preset)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--networks", required=True)
    parser.add_argument("--preprocess", type=Path, help="of the images; torchvision's for ImageNet when left out")
    parser.add_argument("--calibration", type=Path)
    parser.add_argument("--bits", default="w8a8,w4a8,w4a4,mixed")
    parser.add_argument("--presets", default="light,advanced")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--out", type=Path, default=Path("paper"))
    args = parser.parse_args()
    spec = read_preprocess(args.preprocess) if args.preprocess else IMAGENET
    calibration, evaluation = split(args)
    rows: list[Row] = []
    with TemporaryDirectory(prefix="onnxq-") as folder:
        for entry in args.networks.split(","):
            found = network(*named(entry, Path(folder)), calibration, evaluation, spec)
            for bits in args.bits.split(","):
                for preset in args.presets.split(","):
                    rows.append(judged(found, bits, preset, args.samples))
                    print(markdown(rows[-1:]).splitlines()[-1], flush=True)
                    facts = {"samples": args.samples, "evaluated": len(evaluation)}
                    record.write(args.out, [asdict(row) for row in rows], markdown(rows), **facts)


if __name__ == "__main__":
    main()
