"""``onnxq inspect``: what is in a model, and what a quantization would do with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from onnxq.cli.errors_and_exit import DONE, Verb
from onnxq.cli.options import FILE, common_options, config_options, configured


@click.command(cls=Verb, short_help="List a model's layers and what would become of them.")
@click.argument("model", type=FILE)
@config_options("weights", "activations", "edge_bits", "target", "container", "attention", "embeddings", "exclude")
@common_options
def inspect(model: Path, config_file: Path | None, as_json: bool, debug: bool, **flags: Any) -> int:
    """List MODEL's layers: shapes, parameters, multiplications, planned bits, and what stays in float and why.

    Shapes and multiplications are those of a single sample; they are open where the model leaves sizes open.
    """
    config = configured(config_file, flags)

    from onnxq.api import inspect as plan_model
    from onnxq.plan.inspection import describe
    from onnxq.report.text import make_console, show_inspection

    inspection = describe(*plan_model(model, config))
    if as_json:
        click.echo(json.dumps({"model": str(model), **inspection.to_dict()}))
    else:
        show_inspection(make_console(), inspection, title=str(model))
    return DONE
