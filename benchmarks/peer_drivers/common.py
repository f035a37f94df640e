"""What the drivers share: their arguments, the samples, and how they tell what they did.

A driver runs in the environment of the tool it drives, where onnxq is not installed.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

BATCH = 32


@dataclass(frozen=True)
class Job:
    """What to quantize and how.

    Attributes:
        model: float ONNX file.
        calibration: ``.npz``, one array per input, samples along the first axis.
        output: where the quantized model goes.
        method: one of the driver's.
        weights, activations: bits.
        edge_bits: of first and last layers, at least.
        edges: their weights and activation inputs, by tensor name.
    """

    model: Path
    calibration: Path
    output: Path
    method: str
    weights: int
    activations: int
    edge_bits: int
    edges: tuple[tuple[str, str], ...]

    def batches(self, size: int = BATCH) -> Iterator[dict[str, np.ndarray]]:
        """The calibration samples."""
        with np.load(self.calibration) as archive:
            arrays = dict(archive)
        count = len(next(iter(arrays.values())))
        for first in range(0, count, size):
            yield {name: array[first : first + size] for name, array in arrays.items()}


def drive(method: Callable[[Job], Any]) -> None:
    """Read the job from the command line, do it, and print the seconds it took without imports."""
    parser = argparse.ArgumentParser()
    parser.add_argument("job", type=Path, help="JSON file with the fields of a job")
    values = json.loads(parser.parse_args().job.read_text())
    for key in ("model", "calibration", "output"):
        values[key] = Path(values[key])
    values["edges"] = tuple(tuple(edge) for edge in values["edges"])
    began = time.perf_counter()
    method(Job(**values))
    print(json.dumps({"seconds": time.perf_counter() - began}))
