"""A model of more than 2 GiB through the command: its time, its peak memory, the size of what comes out.

    python benchmarks/large.py [--layers 36] [--width 4096] [--bits w8a8,w4a8] [--timeout 3600] [--out large]

Matrices of random weights with ReLUs between them, stored in a file beside the model as exporters do above 2 GiB. The
weights are written piece by piece, and each run is a process of its own.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import record
from onnx import TensorProto, helper
from process import run

SAMPLES = 64
HEAD = ("bits", "float model", "seconds", "peak memory", "of the model", "quantised", "")


@dataclass(frozen=True)
class Row:
    """One run.

    Attributes:
        bits: of weights and activations.
        fp32, quantized: bytes of the models; None where there is no result.
        seconds: wall clock of the command.
        peak: largest resident memory, bytes.
        reason: why there is no result.
    """

    bits: str
    fp32: int
    quantized: int | None
    seconds: float
    peak: int
    reason: str


def build(folder: Path, layers: int, width: int) -> Path:
    """Write the model and the file of its weights; the model's path."""
    numbers = np.random.default_rng(0)
    graph = onnx.GraphProto(name="large")
    graph.input.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width]))
    graph.output.append(helper.make_tensor_value_info(f"h{layers}", TensorProto.FLOAT, ["N", width]))
    size = 4 * width * width
    with (folder / "large.data").open("wb") as file:
        for layer in range(layers):
            draw = numbers.standard_normal((width, width), np.float32) * np.float32((2 / width) ** 0.5)
            file.write(draw.tobytes())
            tensor = graph.initializer.add(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[width, width])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in {"location": "large.data", "offset": layer * size, "length": size}.items():
                tensor.external_data.add(key=key, value=str(value))
            source = f"h{layer}" if layer else "x"
            graph.node.append(helper.make_node("MatMul", [source, f"w{layer}"], [f"m{layer}"], f"layer{layer}"))
            graph.node.append(helper.make_node("Relu", [f"m{layer}"], [f"h{layer + 1}"], f"relu{layer}"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    (folder / "large.onnx").write_bytes(model.SerializeToString())
    np.savez(folder / "samples.npz", x=numbers.standard_normal((SAMPLES, width), np.float32))
    return folder / "large.onnx"


def measure(model: Path, bits: str, timeout: float) -> Row:
    """Quantize in a process of its own."""
    output = model.with_name(f"{bits}.onnx")
    weights, activations = bits.removeprefix("w").split("a")
    command = [sys.executable, "-m", "onnxq", "quantize", model, "-o", output, "--weights", weights]
    command += ["--activations", activations, "--calibration", model.with_name("samples.npz"), "--config"]
    options = model.with_name("options.toml")
    options.write_text("second_order = false\n")  # its time grows with the cube of the width
    done = run([*command, options], timeout=timeout)
    size = sum(f.stat().st_size for f in model.parent.glob(f"{output.name}*")) if output.exists() else None
    fp32 = sum(f.stat().st_size for f in (model, model.with_name("large.data")))
    late = f"not finished after {timeout:.0f} s" if done.status is None else ""
    return Row(bits, fp32, size, done.seconds, done.peak, late or (done.complaint[:200] if done.status else ""))


def markdown(rows: list[Row]) -> str:
    """The rows as a table for people."""
    cells = [
        [
            row.bits.upper(),
            f"{row.fp32 / 2**30:.2f} GiB",
            f"{row.seconds:.0f}",
            f"{row.peak / 2**30:.2f} GiB",
            f"×{row.peak / row.fp32:.1f}",
            "–" if row.quantized is None else f"{row.quantized / 2**30:.2f} GiB",
            row.reason,
        ]
        for row in rows
    ]
    return record.markdown(HEAD, cells)


def main() -> None:
    """Build the model and measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=36)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--bits", default="w8a8")
    parser.add_argument("--timeout", type=float, default=3600.0, help="seconds a run [default: 3600]")
    parser.add_argument("--out", type=Path, default=Path("large"))
    args = parser.parse_args()
    rows: list[Row] = []
    with TemporaryDirectory(prefix="onnxq-") as folder:
        model = build(Path(folder), args.layers, args.width)
        for bits in args.bits.split(","):
            rows.append(measure(model, bits, args.timeout))
            print(markdown(rows).splitlines()[-1], flush=True)
            record.write(args.out, [asdict(row) for row in rows], markdown(rows))


if __name__ == "__main__":
    main()
