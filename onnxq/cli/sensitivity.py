"""``onnxq sensitivity``: what every layer loses and costs at each candidate, as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from onnxq.cli.errors_and_exit import DONE, Verb
from onnxq.cli.options import FILE, IGNORE, common_options, config_options, configured, names
from onnxq.errors import ConfigError


@click.command(cls=Verb, short_help="Measure what each layer loses and costs at each candidate.")
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, metavar="TABLE.json", help="The table to write.")
@click.option(
    "--calibration", type=FILE, required=True, metavar="DATA", help="Unlabelled samples, as onnxq quantize takes them."
)
@click.option(
    "--method",
    default="full",
    metavar="full|scaled",
    help="full runs the rest of the network for every candidate; scaled for one a layer, the others in proportion to "
    "the error of the layer's own output. [default: full]",
)
@click.option(
    "--metric", metavar="kl|mse", help="Loss of the output. [default: kl for class scores, else mse]", default=None
)
@click.option("--latency", is_flag=True, help="Measure each candidate's time with onnxruntime on this machine.")
@click.option(
    "--latency-table",
    type=FILE,
    metavar="FILE.csv",
    help="Times measured on other hardware: columns layer, candidate, milliseconds.",
)
@click.option(
    "--energy-table", type=FILE, metavar="FILE.toml", help="Energies of elementary steps. [default: 45 nm, bundled]"
)
@IGNORE
@config_options("candidates", "table_samples", "edge_bits", "target", "container", "exclude", "memory_limit", "seed")
@common_options
def sensitivity(
    model: Path,
    output: Path,
    calibration: Path,
    method: str,
    metric: str | None,
    latency: bool,
    latency_table: Path | None,
    energy_table: Path | None,
    ignore: str,
    config_file: Path | None,
    as_json: bool,
    debug: bool,
    **flags: Any,
) -> int:
    """Measure MODEL's layers at every candidate and write a table, from which onnxq allocate makes choices.

    Example: onnxq sensitivity net.onnx --calibration samples.npz --candidates w2a8,w4a8,w8a8 -o table.json
    """
    config = configured(config_file, flags)
    if method not in ("full", "scaled") or metric not in (None, "kl", "mse"):
        raise ConfigError(f"method {method!r} with metric {metric!r}: write full or scaled, and kl or mse.")

    from onnxq.allocation.measure import Measuring
    from onnxq.api import sensitivity as measure
    from onnxq.cli.progress_bars import Bars
    from onnxq.ir.save import check_writable, write_text

    check_writable(output)
    options = Measuring(method, metric, latency, latency_table, energy_table)
    with Bars() as bars:
        found = measure(model, calibration, config, options, ignore=names(ignore), progress=bars)
    write_text(output, found.to_json())
    if as_json:
        click.echo(json.dumps({"model": str(model), "output": str(output), **json.loads(found.to_json())}))
    else:
        click.echo(
            f"{output}: {len(found.layers)} layers at {', '.join(map(str, found.candidates))}, "
            f"{found.sensitivity.metric} on {found.sensitivity.samples} samples; costs: {', '.join(found.costs.values)}"
        )
    return DONE
