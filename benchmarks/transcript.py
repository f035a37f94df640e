"""A first session with onnxq, command by command, as a page with what each really prints.

    python benchmarks/transcript.py [--out onnxq/docs/transcript.md]

Every step runs in an empty folder that holds the bundled network as ``model.onnx``, its calibration samples and its
labelled test images. The page says the commit and the machine; times on it are that machine's.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from environment import machine, sentence

from onnxq.models import bundled

COLUMNS = 110
GATE = """import json, sys
found = json.load(open("verify.json"))
output = found["outputs"]["logits"]
drop = output["top1_fp32"] - output["top1_quantized"]
print(f"top-1 drops by {drop:.2f} points, SQNR {output['sqnr_db']:.1f} dB")
sys.exit(drop > 0.5)
"""


@dataclass(frozen=True)
class Step:
    """A part of the session.

    Attributes:
        title: heading of it.
        text: what the reader is to see, in a sentence or two.
        commands: run in order; a word ``> FILE`` at the end keeps stdout in a file.
    """

    title: str
    text: str
    commands: tuple[str, ...]


STEPS = (
    Step("Try it", "The bundled network, end to end.", ("onnxq demo",)),
    Step("Look at a model", "Layers, planned bits, and what stays in float.", ("onnxq inspect model.onnx",)),
    Step(
        "Quantize it and judge it",
        "Fidelity on samples that were not fitted stands in the report; labels add accuracy.",
        (
            "onnxq quantize model.onnx -o w8a8.onnx --calibration samples.npz",
            "onnxq verify model.onnx w8a8.onnx --data test.npz --labels labels",
        ),
    ),
    Step(
        "Poor accuracy, found and mended",
        "At 2-bit weights and 4-bit activations in every layer the worst sample keeps 2 dB. First and last layers at 8 "
        "bits, the default, mend that for the same size.",
        (
            "onnxq quantize model.onnx -o w2a4.onnx --calibration samples.npz --weights 2 --activations 4 "
            "--edge-bits same",
            "onnxq verify model.onnx w2a4.onnx --data test.npz --labels labels",
            "onnxq quantize model.onnx -o w2a4.onnx --calibration samples.npz --weights 2 --activations 4",
            "onnxq verify model.onnx w2a4.onnx --data test.npz --labels labels",
        ),
    ),
    Step(
        "A slow model, found and mended",
        "Weights in the standard's 4-bit type run in float: see how many layers are computed on integers. The default "
        "container unpacks them for integer kernels when onnxruntime starts.",
        (
            "onnxq quantize model.onnx -o w4a8.onnx --calibration samples.npz --weights 4 --container int4",
            "onnxq verify model.onnx w4a8.onnx --data test.npz --labels labels",
            "onnxq quantize model.onnx -o w4a8.onnx --calibration samples.npz --weights 4",
            "onnxq verify model.onnx w4a8.onnx --data test.npz --labels labels",
        ),
    ),
    Step(
        "Mixed precision to a size",
        "A fifth of the float file, the bits of each layer chosen.",
        (
            "onnxq quantize model.onnx -o mixed.onnx --calibration samples.npz --candidates w4a8,w8a8,float "
            "--budget size=0.2",
        ),
    ),
    Step(
        "A gate for CI",
        "`gate.py` reads the JSON and ends with 1 where accuracy drops by more than half a point.",
        (
            "onnxq verify model.onnx mixed.onnx --data test.npz --labels labels --json > verify.json",
            "python gate.py",
        ),
    ),
)


def session(folder: Path) -> str:
    """Every step run in a folder, as Markdown."""
    return "\n".join(f"## {step.title}\n\n{step.text}\n\n" + "\n".join(_run(step, folder)) for step in STEPS)


def _run(step: Step, folder: Path) -> list[str]:
    shown = []
    for command in step.commands:
        line, _, kept = command.partition(" > ")
        program, *words = shlex.split(line)
        start = [sys.executable, "-m", "onnxq"] if program == "onnxq" else [sys.executable]
        done = subprocess.run(
            [*start, *words],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "COLUMNS": str(COLUMNS)},
        )
        if kept:
            (folder / kept).write_text(done.stdout, encoding="utf-8")
        told = "" if kept else done.stdout
        told += done.stderr if done.returncode == 2 else ""
        told += f"exit status {done.returncode}\n" if done.returncode else ""
        shown.append(f"```console\n$ {command}\n{told}```\n")
    return shown


def main() -> None:
    """Run the session and write the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    docs = Path(__file__).parent.parent / "onnxq" / "docs"
    parser.add_argument("--out", type=Path, default=docs / "transcript.md")
    args = parser.parse_args()
    files = bundled()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(files.model, folder / "model.onnx")
        shutil.copy(files.calibration, folder / "samples.npz")
        shutil.copy(files.evaluation, folder / "test.npz")
        (folder / "gate.py").write_text(GATE, encoding="utf-8")
        told = session(folder)
    head = f"# A first session\n\nMade by `python benchmarks/transcript.py`. {sentence(machine())}\n\n"
    args.out.write_text("\n".join(line.rstrip() for line in (head + told).splitlines()) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
