"""onnxq beside onnxruntime's quantizer, AIMET and Quark: same model, same samples, one run.

    python benchmarks/peers.py MODEL.onnx --calibration DATA.npz --data TEST.npz --labels KEY
           [--bits w8a8,w4a8,w4a4] [--rows onnxq:light,aimet:adaround-1000] [--environments DIR] [--out peers]

Each tool is installed in a virtual environment of its own under --environments (kept for the next run) with uv or pip.
Every model is judged by ``onnxq verify`` on the same data; first and last layers have 8 bits everywhere. A row that a
tool cannot do stands there with the reason. Seconds are those of quantizing alone, without imports; processor seconds
and memory are those of the whole process.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import environments
import numpy as np
import record
from process import Finished, run

from onnxq.api import inspect
from onnxq.config import make_config

EDGE_BITS = 8
OURS = "onnxq"
JOB = "job.json"
ROWS = (
    "onnxq:light",
    "onnxq:advanced",
    "onnxruntime:minmax",
    "onnxruntime:entropy",
    "onnxruntime:percentile",
    "aimet:tf_enhanced",
    "aimet:cle",
    "aimet:seq_mse",
    "aimet:adaround-1000",
    "quark:minmax",
    "quark:adaround",
    "quark:adaquant",
)
HEAD = (
    "bits",
    "tool",
    "method",
    "KL, nats",
    "top-1 float → quantised",
    "seconds",
    "processor seconds",
    "peak memory",
    "size",
    "levels",
    "",
)


@dataclass(frozen=True)
class Row:
    """One tool's attempt.

    Attributes:
        tool, version, method, bits: who did what.
        seconds: of quantizing, without imports; None where it did not finish.
        process_seconds: wall clock of the whole process.
        cpu_seconds: processor time of the whole process.
        peak: memory of the process, bytes.
        kl, top1_fp32, top1, sqnr_db: as ``onnxq verify`` found.
        size: of the file, as a share of the float model's.
        loads: onnxruntime's optimization levels at which it works, of four.
        reason: why there is no result.
    """

    tool: str
    version: str
    method: str
    bits: str
    seconds: float | None = None
    process_seconds: float | None = None
    cpu_seconds: float | None = None
    peak: int | None = None
    kl: float | None = None
    top1_fp32: float | None = None
    top1: float | None = None
    sqnr_db: float | None = None
    size: float | None = None
    loads: int | None = None
    reason: str = ""


@dataclass(frozen=True)
class Task:
    """The model, its data, and the limits."""

    model: Path
    calibration: Path
    data: Path
    labels: str | None
    samples: int | None
    timeout: float


def attempt(task: Task, tool: str, method: str, bits: str, place: environments.Place, folder: Path) -> Row:
    """Quantize with one tool and judge the result."""
    row = Row(tool, place.version, method, bits)
    if place.reason:
        return replace(row, reason=place.reason)
    weights, activations = (int(b) for b in bits.removeprefix("w").split("a"))
    if tool == "quark" and min(weights, activations) < 8:
        return replace(row, reason="Quark has no integers below 8 bits for Conv and Gemm")
    output = folder / "quantised.onnx"
    output.unlink(missing_ok=True)
    if tool == OURS:
        command = our_command(task, method, (weights, activations), place.python, output)
    else:
        write_job(task, method, (weights, activations), folder, output)
        driver = Path(__file__).resolve().parent / "peer_drivers" / f"{environments.TOOLS[tool].driver}.py"
        command = [place.python, driver, folder / JOB]
    done = run(command, timeout=task.timeout)
    row = replace(row, process_seconds=done.seconds, cpu_seconds=done.cpu_seconds, peak=done.peak)
    if done.status is None:
        return replace(row, reason=f"not finished after {task.timeout:.0f} s")
    if not output.exists():
        return replace(row, reason=done.complaint[:200] or f"ended with {done.status} and no model")
    return judged(task, replace(row, seconds=_seconds(done)), output)


def our_command(task: Task, method: str, bits: tuple[int, int], python: Path, output: Path) -> list[str | Path]:
    """The command that a user of onnxq would give; the method is the preset."""
    command: list[str | Path] = [python, "-m", "onnxq", "quantize", task.model, "-o", output]
    command += ["--calibration", task.calibration, "--preset", method, "--edge-bits", str(EDGE_BITS), "--json"]
    command += ["--weights", str(bits[0]), "--activations", str(bits[1])]
    return command + (["--samples", str(task.samples)] if task.samples else [])


def write_job(task: Task, method: str, bits: tuple[int, int], folder: Path, output: Path) -> None:
    """The file that tells a driver what to do; which layers are the edges is what onnxq finds."""
    job = {
        "model": str(task.model.resolve()),
        "calibration": str(_limited(task, folder).resolve()),
        "output": str(output),
        "method": method,
        "weights": bits[0],
        "activations": bits[1],
        "edge_bits": EDGE_BITS,
        "edges": edges_of(task.model, *bits),
    }
    (folder / JOB).write_text(json.dumps(job))


def edges_of(model: Path, weights: int, activations: int) -> list[list[str]]:
    """Weight and input of each first and last layer, by the names that the model gives them."""
    _, plan = inspect(model, make_config({"weights": weights, "activations": activations}))
    return [[p.layer.weight, p.layer.input] for p in plan.layers if p.edge]


def _limited(task: Task, folder: Path) -> Path:
    """The calibration samples that everyone gets."""
    if not task.samples:
        return task.calibration
    path = folder / "calibration.npz"
    if not path.exists():
        with np.load(task.calibration) as arrays:
            limited = {name: arrays[name][: task.samples] for name in arrays}
        with path.open("wb") as file:
            np.savez(file, **limited)
    return path


def _seconds(done: Finished) -> float | None:
    """What the driver's, or our own, last line says."""
    lines = [line for line in done.output.splitlines() if line.startswith("{")]
    told = json.loads(lines[-1]).get("seconds") if lines else None
    return sum(told.values()) if isinstance(told, dict) else told


def judged(task: Task, row: Row, output: Path) -> Row:
    """The row with what ``onnxq verify`` says of the model."""
    labels = ["--labels", task.labels] if task.labels else ["--classification"]
    files: list[str | Path] = [task.model, output, "--data", task.data]
    done = run([sys.executable, "-m", "onnxq", "verify", *files, *labels, "--json"], timeout=task.timeout)
    if not done.output.strip():
        return replace(row, reason=f"cannot be judged: {done.complaint[:200]}")
    found = json.loads(done.output)
    first: dict[str, Any] = next(iter(found["outputs"].values()), {})
    return replace(
        row,
        kl=first.get("kl"),
        top1_fp32=first.get("top1_fp32"),
        top1=first.get("top1_quantized"),
        sqnr_db=first.get("sqnr_db"),
        size=found["quantized"] / found["fp32"],
        loads=sum(level["ok"] for level in found["loads"].values()),
    )


def markdown(rows: list[Row]) -> str:
    """The rows as a table for people."""

    def number(value: float | None, form: str) -> str:
        return "–" if value is None else format(value, form)

    cells = [
        [
            r.bits.upper(),
            f"{r.tool} {r.version}".strip(),
            r.method,
            number(r.kl, ".4f"),
            f"{number(r.top1_fp32, '.2f')} → {number(r.top1, '.2f')}" if r.top1 is not None else "–",
            number(r.seconds, ".1f"),
            number(r.cpu_seconds, ".0f"),
            f"{r.peak / 2**30:.2f} GiB" if r.peak else "–",
            f"{100 * r.size:.0f}%" if r.size else "–",
            f"{r.loads} of 4" if r.loads is not None else "–",
            r.reason,
        ]
        for r in rows
    ]
    return record.markdown(HEAD, cells)


def wanted(rows: str, bits: str) -> Iterator[tuple[str, str, str]]:
    """Bits, tool and method of every row, tools of the same bits one after the other."""
    for width in bits.split(","):
        for name in rows.split(","):
            tool, _, method = name.partition(":")
            yield width, tool, method


def main() -> None:
    """Fill the table that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--calibration", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--labels")
    parser.add_argument("--samples", type=int)
    parser.add_argument("--bits", default="w8a8,w4a8,w4a4")
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "onnxq-peers")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds a row [default: 3600]")
    parser.add_argument("--out", type=Path, default=Path("peers"))
    args = parser.parse_args()
    task = Task(args.model, args.calibration, args.data, args.labels, args.samples, args.timeout)
    places = {OURS: environments.Place(Path(sys.executable), version("onnxq"))}
    rows: list[Row] = []
    with TemporaryDirectory(prefix="onnxq-") as folder:
        for bits, tool, method in wanted(args.rows, args.bits):
            if tool not in places:
                places[tool] = environments.prepare(tool, args.environments)
            rows.append(attempt(task, tool, method, bits, places[tool], Path(folder)))
            print(markdown(rows[-1:]).splitlines()[-1], flush=True)
            facts = {"model": args.model.name, "samples": args.samples}
            record.write(args.out, [asdict(row) for row in rows], markdown(rows), **facts)


if __name__ == "__main__":
    main()
