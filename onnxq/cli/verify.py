"""``onnxq verify``: a quantized model judged against its float model, whoever made it."""

from __future__ import annotations

import json
from pathlib import Path

import click

from onnxq.cli.errors_and_exit import BELOW, DONE, Verb
from onnxq.cli.options import FILE, IGNORE, common_options, names


@click.command(cls=Verb, short_help="Compare a quantised model with its float model.")
@click.argument("fp32", type=FILE)
@click.argument("quantized", type=FILE)
@click.option(
    "--data",
    type=FILE,
    required=True,
    metavar="DATA",
    help="Samples, in any form that quantize --calibration takes.",
)
@click.option("--labels", metavar="KEY", help="Name of the array in DATA.npz that holds each sample's class.")
@IGNORE
@click.option("--classification", is_flag=True, help="Judge outputs as class scores; --labels implies it.")
@click.option("--samples", type=int, metavar="N", help="Samples to use at most. [default: all]")
@click.option(
    "--ranges",
    is_flag=True,
    help="Measure too how much of the samples leaves the range of each quantised tensor; takes about twice as long.",
)
@common_options
def verify(
    fp32: Path,
    quantized: Path,
    data: Path,
    labels: str | None,
    ignore: str,
    classification: bool,
    samples: int | None,
    ranges: bool,
    as_json: bool,
    debug: bool,
) -> int:
    """Compare QUANTIZED with FP32 on samples: fidelity, accuracy, bits, loading and speed.

    Fidelity is told over all values and, where an output has an axis of samples, of the median and of the worst
    sample: one sample may hold most of the power. --ranges tells where samples of another kind than those of the
    calibration are cut off.

    Ends with 1 where QUANTIZED does not run at every optimization level of onnxruntime.
    """
    from onnxq.cli.progress_bars import Bars
    from onnxq.data import count_samples, labels_of, read_feeds
    from onnxq.data.replay import batch_size
    from onnxq.ir.load import OLDEST_OPSET, load
    from onnxq.passes.own_batch import with_own_batch
    from onnxq.progress import Progress
    from onnxq.report.text import make_console, show_verification
    from onnxq.runtime.memory import free_old_graphs
    from onnxq.verify import verify as run

    inputs = with_own_batch(load(fp32, minimum_opset=OLDEST_OPSET)).inputs
    free_old_graphs()
    batch = batch_size(inputs)
    feeds = read_feeds(
        data, inputs, samples=samples, batch=batch, ignore={*names(ignore), *([labels] if labels else [])}
    )
    known = [n for n in (count_samples(data, inputs), samples) if n is not None]
    classes = labels_of(data, labels, inputs, samples) if labels else None
    with Bars() as bars:
        report = run(
            fp32,
            quantized,
            feeds,
            labels=classes,
            classification=classification,
            ranges=ranges,
            progress=lambda done: bars(Progress("verify", done, min(known, default=None))),
        )
    if as_json:
        click.echo(json.dumps(report.to_dict()))
    else:
        show_verification(make_console(), report, title=f"{fp32} against {quantized}")
    return DONE if report.ok else BELOW
