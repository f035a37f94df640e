"""Reference networks on disk, built by a process of their own: the one that measures stays small."""

from __future__ import annotations

import sys
from pathlib import Path

from process import run


def built(name: str, folder: Path, *, weights: str = "", timeout: float = 3600) -> Path:
    """The ONNX file of a reference network with seeded random weights, or with those of a file; ends where it fails."""
    model = folder / f"{name}.onnx"
    given = ["--weights", weights] if weights else []
    done = run([sys.executable, "-m", "onnxq.models.build", name, "-o", model, *given], timeout=timeout)
    if done.status != 0:
        sys.exit(f"{name} could not be built: {done.complaint}")
    return model
