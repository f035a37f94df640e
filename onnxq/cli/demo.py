"""``onnxq demo``: the bundled model, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import click

from onnxq.cli.errors_and_exit import BELOW, DONE, Verb
from onnxq.cli.options import FILE, common_options
from onnxq.errors import OutputError


@click.command(cls=Verb, short_help="Quantise and judge the bundled model.")
@click.option(
    "-o", "--output", type=FILE, metavar="DIR", help="Folder for the quantised models, made where there is none."
)
@common_options
def demo(output: Path | None, as_json: bool, debug: bool) -> int:
    """Quantize the bundled digit classifier to 8 and to 4 bits and show what that costs and gains.

    Takes less than a minute. Nothing is written unless --output says where.
    """
    from onnxq.cli.progress_bars import Bars
    from onnxq.demo import demonstrate
    from onnxq.ir.save import save
    from onnxq.report.text import make_console, show_comparison

    if output is not None:
        _make_folder(output)
    with Bars() as bars:
        found = demonstrate(bars)
    if output is not None:
        for variant in found.variants:
            save(variant.model, output / f"{Path(found.model).stem}.{variant.name.lower()}.onnx")
    if as_json:
        click.echo(json.dumps(found.to_dict()))
    else:
        judged = {variant.name: variant.verification for variant in found.variants}
        title = f"{found.model} on {found.variants[0].verification.samples} images that it has never seen"
        show_comparison(make_console(), judged, title=title)
        click.echo("W4 is stored in 4 bits, which onnxruntime unpacks for its integer kernels when it starts.")
        click.echo(f"{found.seconds:.0f} seconds for everything.")
    return DONE if found.ok else BELOW


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder {path} cannot be made: {error.strerror}.") from error
