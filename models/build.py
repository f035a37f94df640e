"""Write a reference network as an ONNX file.

python -m onnxq.models.build resnet50 -o resnet50.onnx                            seeded random weights
python -m onnxq.models.build resnet50 -o resnet50.onnx --weights resnet50.safetensors
python -m onnxq.models.build resnet50 -o resnet50.onnx --samples 64 --samples-out calibration.npz
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np

from onnxq.errors import OnnxqError
from onnxq.ir.save import check_writable, save
from onnxq.models.catalogue import NETWORKS
from onnxq.models.network import Network
from onnxq.models.random_weights import random_values
from onnxq.models.samples import samples
from onnxq.models.state_dict import fit, read_state_dict


def main(arguments: list[str] | None = None) -> int:
    """Build what the command line asks for; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m onnxq.models.build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("network", choices=sorted(NETWORKS))
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE.onnx")
    parser.add_argument("--weights", type=Path, metavar="FILE", help=".safetensors, .npz, .pth, .pt or .bin")
    parser.add_argument("--seed", type=int, default=0, help="of random weights and samples [default: 0]")
    parser.add_argument("--samples", type=int, default=64, metavar="N", help="random inputs to write [default: 64]")
    parser.add_argument("--samples-out", type=Path, metavar="FILE.npz", help="where to write random inputs")
    parser.add_argument("--sequence", type=int, default=128, metavar="N", help="tokens a sample [default: 128]")
    args = parser.parse_args(arguments)
    network = NETWORKS[args.network]()
    try:
        for path in filter(None, (args.output, args.samples_out)):
            check_writable(path)
        values = fit(network, read_state_dict(args.weights)) if args.weights else random_values(network, seed=args.seed)
        save(network.model(values), args.output)
        if args.samples_out:
            _write_samples(network, args.samples_out, args.samples, args.sequence, args.seed)
    except OnnxqError as error:
        print(f"onnxq: {error}", file=sys.stderr)
        return 2
    print(f"{args.output}: {network.name}, {network.size:,} parameters")
    return 0


def _write_samples(network: Network, path: Path, count: int, sequence: int, seed: int) -> None:
    # Other samples than those that the statistics of random weights were taken of.
    arrays: dict[str, Any] = next(samples(network, count, batch=count, sequence=sequence, seed=seed + 1))
    with path.open("wb") as file:
        np.savez(file, **arrays)


if __name__ == "__main__":
    sys.exit(main())
