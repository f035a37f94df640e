"""A run that is killed at a chosen point, gone on with, and held against one that was not.

    python crash_points.py FOLDER POINT...     one line of JSON a point

A point is KIND:NUMBER: the NUMBER-th report of progress, or the NUMBER-th file about to be replaced, synced or written.
Every run is a fork of this process, which loads the libraries once and starts no thread.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tiny_model import tiny_images, tiny_model

import onnxq.api
from onnxq.config import Config


def run(folder: Path, output: Path, *, resume: bool, point: str | None = None) -> int:
    """Quantize in a fork; its exit status, negative for a signal."""
    child = os.fork()
    if not child:
        status = 1
        try:
            listener = _fatal(point)
            result = onnxq.api.quantize(
                tiny_model(), tiny_images(24), Config(weights=4), progress=listener, work_dir=folder, resume=resume
            )
            result.save(output)
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _fatal(point: str | None) -> Callable[[Any], None]:
    """Arm a point; a listener of progress."""
    if point is None:
        return lambda moment: None
    kind, number = point.split(":")
    left = int(number)

    def pass_by(*_: Any) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if kind == "progress":
        return pass_by
    place = np if kind == "savez" else os
    original = getattr(place, kind)

    def armed(*arguments: Any, **options: Any) -> Any:
        pass_by()
        return original(*arguments, **options)

    setattr(place, kind, armed)
    return lambda moment: None


def main() -> None:
    """Kill, look, go on, compare."""
    folder = Path(sys.argv[1])
    whole = folder / "whole.onnx"
    if run(folder / "whole", whole, resume=False):
        sys.exit("the run that is not killed fails")
    for index, point in enumerate(sys.argv[2:]):
        work, output = folder / f"work{index}", folder / f"out{index}.onnx"
        killed = run(work, output, resume=False, point=point)
        there = output.exists()
        kept = len(list(work.glob("*.npz")))
        resumed = run(work, output, resume=True)
        same = output.exists() and output.read_bytes() == whole.read_bytes()
        row = {"point": point, "killed": killed, "there": there, "kept": kept, "resumed": resumed, "same": same}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
