"""The gradient part on two devices, layer for layer: the same problems, solved by the same code.

    python benchmarks/devices.py [--network resnet18] [--bits w4a8] [--samples 32] [--platforms cpu,cuda]
           [--out devices]

Platforms are JAX's names. Every layer is solved on float inputs (``mode="parallel"``), which onnxruntime computes on
the processor, so that both devices get the same numbers; what differs is the order of additions in 240 steps of
gradient descent. Networks have seeded random weights (see ``models/README.md``).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import record
from process import run
from reference import built


@dataclass(frozen=True)
class Row:
    """One layer: squared error relative to the output's power.

    Attributes:
        layer: its name.
        nearest: rounded to nearest.
        start: closed form, on the first platform.
        refined: by gradient, by platform.
    """

    layer: str
    nearest: float
    start: float
    refined: dict[str, float]

    @property
    def ratio(self) -> float:
        """Largest over smallest refined error."""
        return max(self.refined.values()) / max(min(self.refined.values()), 1e-30)


def solve_once(name: str, model: Path, bits: str, preset: str, count: int) -> None:
    """What a child process does: quantize on its platform, and print what every layer loses."""
    import jax

    from onnxq.api import quantize
    from onnxq.config import make_config
    from onnxq.models.catalogue import NETWORKS
    from onnxq.models.samples import samples

    weights, activations = (int(b) for b in bits.removeprefix("w").split("a"))
    options = {"preset": preset, "tune": False, "mode": "parallel"}  # not tuned, the advanced preset refines layers
    config = make_config({"weights": weights, "activations": activations, **options})
    report = quantize(model, samples(NETWORKS[name](), count, seed=1), config).report
    layers = {layer.name: (layer.loss_nearest, layer.loss) for layer in report.layers}
    print(json.dumps({"device": jax.devices()[0].device_kind, "seconds": report.seconds["solve"], "layers": layers}))


def solved(name: str, model: Path, bits: str, preset: str, count: int, platform: str) -> dict[str, object]:
    """The same, from a process whose JAX runs on that platform."""
    inner = ["--inner", str(model), "--network", name, "--bits", bits, "--preset", preset, "--samples", str(count)]
    done = run([sys.executable, __file__, *inner], timeout=7200, environment={**os.environ, "JAX_PLATFORMS": platform})
    if done.status != 0:
        sys.exit(f"{preset} on {platform} failed: {done.complaint}")
    found: dict[str, object] = json.loads(done.output.splitlines()[-1])
    return found


def markdown(rows: list[Row]) -> str:
    """The rows as a table for people."""
    platforms = list(rows[0].refined)
    cells = [
        [r.layer, f"{r.nearest:.3g}", f"{r.start:.3g}", *(f"{r.refined[p]:.4g}" for p in platforms), f"{r.ratio:.4f}"]
        for r in rows
    ]
    return record.markdown(("layer", "nearest", "start", *(f"refined, {p}" for p in platforms), "ratio"), cells)


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--bits", default="w4a8")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--platforms", default="cpu,cuda")
    parser.add_argument("--out", type=Path, default=Path("devices"))
    parser.add_argument("--inner", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--preset", default="advanced", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.inner:
        solve_once(args.network, args.inner, args.bits, args.preset, args.samples)
        return
    with TemporaryDirectory(prefix="onnxq-") as folder:
        model = built(args.network, Path(folder))
        platforms = args.platforms.split(",")
        start = solved(args.network, model, args.bits, "light", args.samples, platforms[0])["layers"]
        found = {p: solved(args.network, model, args.bits, "advanced", args.samples, p) for p in platforms}
    assert isinstance(start, dict)
    refined = {p: f["layers"] for p, f in found.items()}
    rows = [
        Row(name, nearest, loss, {p: layers[name][1] for p, layers in refined.items()})  # type: ignore[index]
        for name, (nearest, loss) in start.items()
    ]
    table = markdown(rows)
    record.write(args.out, [asdict(r) | {"ratio": r.ratio} for r in rows], table, samples=args.samples)
    print(table)
    for platform, of_run in found.items():
        print(f"{platform} ({of_run['device']}): {of_run['seconds']:.0f} s")
    print(f"largest ratio {max(r.ratio for r in rows):.4f}")


if __name__ == "__main__":
    main()
