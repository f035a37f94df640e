"""``onnxq quantize``: a float model and samples in, a quantized model and its report out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from onnxq.cli.errors_and_exit import BELOW, DONE, Verb
from onnxq.cli.options import FIELDS, FILE, IGNORE, common_options, config_options, configured, given, names
from onnxq.config.bit_widths import parse_candidates
from onnxq.config.without_effect import require_block_bits, require_choice
from onnxq.errors import ConfigError, OutputError


@click.command(cls=Verb, short_help="Quantise a model.")
@click.argument("model", type=FILE)
@click.option("-o", "--output", type=FILE, required=True, metavar="OUT", help="The quantised model to write.")
@click.option(
    "--calibration",
    type=FILE,
    required=True,
    metavar="DATA",
    help="Unlabelled samples: a .npz with one array per model input (first axis samples), a .npy, a folder of .npy "
    "files, or a folder of images with a preprocess.toml.",
)
@click.option(
    "--adapt",
    type=FILE,
    metavar="DATA",
    help="Unlabelled samples of the kind that the model will meet, where that is another than --calibration's, in any "
    "form that it takes: ranges and moments are found anew on them, and every integer of the weights stays as it was "
    "solved. With --work-dir and --resume no layer is solved again.",
)
@click.option(
    "--check",
    type=FILE,
    metavar="DATA",
    help="Further unlabelled samples, in any form that --calibration takes, to judge the finished model on: its "
    "outputs for the median and worst sample, and the tensors that leave their ranges.",
)
@click.option(
    "--labels",
    metavar="KEY",
    help="Name of the array in --check's .npz that holds each sample's class, to count right answers; other sets may "
    "hold it too.",
)
@IGNORE
@click.option(
    "--require-speedup",
    type=click.FloatRange(min=0, min_open=True),
    metavar="R",
    help="End with 1, the model written, where it is less than R times as fast as the float model on one thread of "
    "this machine.",
)
@config_options(*FIELDS)
@click.option(
    "--allocation",
    type=FILE,
    metavar="FILE.json",
    help="Each layer's own bits, as onnxq allocate wrote them; choice alone is enough.",
)
@click.option(
    "--point",
    type=int,
    metavar="N",
    help="Which allocation of an --allocation file that --pareto wrote: 1 is the cheapest, the last the most accurate.",
)
@click.option("--work-dir", type=FILE, metavar="DIR", help="Folder that keeps finished layers and tables.")
@click.option("--resume", is_flag=True, help="Go on with what --work-dir holds.")
@click.option("--report", type=FILE, metavar="FILE.html", help="Write the report as a self-contained HTML page too.")
@common_options
def quantize(
    model: Path,
    output: Path,
    calibration: Path,
    adapt: Path | None,
    check: Path | None,
    labels: str | None,
    ignore: str,
    require_speedup: float | None,
    config_file: Path | None,
    allocation: Path | None,
    point: int | None,
    work_dir: Path | None,
    resume: bool,
    report: Path | None,
    as_json: bool,
    debug: bool,
    **flags: Any,
) -> int:
    """Quantize MODEL and write OUT, checked to run in onnxruntime.

    Example: onnxq quantize net.onnx -o net.w4a8.onnx --calibration samples.npz --weights 4
    """
    config = configured(config_file, flags)
    if resume and work_dir is None:
        raise ConfigError("--resume goes on with the layers in a work directory; name it with --work-dir.")
    if labels is not None and check is None:
        raise ConfigError("--labels names the classes of --check's samples; give these too, or --ignore the array.")
    if point is not None and allocation is None:
        raise ConfigError("--point takes one allocation of a front; name the front's file with --allocation.")
    require_choice(config, allocated=allocation is not None)

    from onnxq.allocation.bit_allocation import read_allocation
    from onnxq.api import quantize as run
    from onnxq.cli.progress_bars import Bars
    from onnxq.ir.save import check_writable
    from onnxq.report.text import make_console, show_run

    read = {
        "model": model,
        "calibration set": calibration,
        "set to adapt to": adapt,
        "set to check on": check,
        "configuration": config_file,
        "allocation": allocation,
    }
    _check_apart(output, "output", read)
    check_writable(output)
    if report is not None:
        _check_apart(report, "report", read | {"output": output})
        check_writable(report)
    bits = read_allocation(allocation, point) if allocation else None
    if "block" in given(config_file, flags) and config.block is not None:
        some = parse_candidates(config.candidates) if config.candidates else (config.bits,)
        require_block_bits(config, bits.choice.values() if bits else some)
    with Bars() as bars:
        result = run(
            model,
            calibration,
            config,
            allocation=bits,
            adapt=adapt,
            check=check,
            labels=labels,
            ignore=names(ignore),
            require_speedup=require_speedup,
            progress=bars,
            work_dir=work_dir,
            resume=resume,
        )
    if report is not None:
        result.report.to_html(report, title=f"{model.name} → {output.name}")
    try:
        result.save(output)
    except OutputError:
        if report is not None:
            report.unlink(missing_ok=True)
        raise
    if as_json:
        click.echo(json.dumps({"model": str(model), "output": str(output), **result.report.to_dict()}))
    else:
        show_run(make_console(), result.report, title=f"{model} → {output}")
    return DONE if result.report.ok else BELOW


def _check_apart(path: Path, role: str, others: dict[str, Path | None]) -> None:
    for name, other in others.items():
        if other is not None and path.resolve() == other.resolve():
            raise OutputError(f"{role} {path} is the {name} itself, which would be overwritten; give another path.")
