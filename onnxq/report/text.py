"""Reports as text for people: a summary in words, then tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from onnxq.report.ranges import show_ranges
from onnxq.report.unseen import tell_unseen
from onnxq.report.wording import (
    NONE,
    bits,
    decibels,
    in_bytes,
    levels,
    loss,
    missing_speed,
    number,
    percent,
    printable,
    shape,
    sizes,
    speed,
)
from onnxq.verify import LayerBits, OutputFidelity, VerificationReport

if TYPE_CHECKING:
    from onnxq.ir.model import Remark
    from onnxq.plan.inspection import Inspection
    from onnxq.report.run import RunReport

WORST_LAYERS = 8
LISTED_REMARKS = 8
PIPE_WIDTH = 120
"""Columns where stdout is no terminal."""


def make_console() -> Console:
    """A console on stdout that prints names as they are."""
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, PIPE_WIDTH)
    return console


def show_run(console: Console, report: RunReport, *, title: str) -> None:
    """A quantization: bits, sizes, proof, time, the layers that lost most, and what stayed in float."""
    console.print(printable(title), style="bold")
    console.print(_facts(_run_facts(report)))
    if report.missed:
        names = ", ".join(printable(name) for name in report.missed)
        console.print(f"More bits than were asked for in: {names}", style="bold red")
    if report.required_speedup is not None and report.too_slow:
        told = missing_speed(report.speedup, report.required_speedup)
        console.print(f"{told}; it is written all the same", style="bold red")
    worst = sorted(report.layers, key=lambda layer: layer.loss, reverse=True)[:WORST_LAYERS]
    table = _table(f"Layers that lost most ({len(worst)} of {len(report.layers)})", left=("layer", "operator"))
    for heading in ("bits", "weights", "loss, nearest", "loss", "seconds"):
        table.add_column(heading, justify="right")
    for layer in worst:
        table.add_row(
            printable(layer.name),
            layer.op,
            bits(layer.weight_bits, layer.activation_bits),
            f"{layer.parameters:,}",
            loss(layer.loss_nearest),
            loss(layer.loss),
            f"{layer.seconds:.1f}",
        )
    console.print(table)
    console.print("loss: squared error of a layer's output relative to its power, on samples kept back from fitting")
    if report.check is not None:
        _show_check(console, report.check)
    _show_remarks(console, report.left_in_float)
    for note in report.notes:
        console.print(printable(f"{'Network' if note.node == 'network' else note.node}: {note.reason}"))


def _show_check(console: Console, found: VerificationReport) -> None:
    """What a finished model came to on samples that it was not made from."""
    console.print(_outputs(found.outputs, f"Check on {found.samples:,} further samples"))
    if not found.ok:
        console.print(f"On these it runs {levels(found.loads)}", style="bold red")
    show_ranges(console, found.ranges or ())


def show_inspection(console: Console, inspection: Inspection, *, title: str) -> None:
    """A model's layers, and what would become of them."""
    console.print(printable(title), style="bold")
    work = inspection.macs
    console.print(
        _facts(
            {
                "Operator set": str(inspection.opset),
                "Inputs": printable("; ".join(i.describe() for i in inspection.inputs)),
                "Outputs": printable("; ".join(o.describe() for o in inspection.outputs)),
                "Layers": f"{len(inspection.layers)} with {inspection.parameters:,} weights",
                "Besides": f"{len(inspection.products)} products of two activations, {len(inspection.tables)} tables",
                "Work": "not known: sizes are open" if work is None else f"{work:,} multiplications a sample",
            }
        )
    )
    table = _table("Layers", left=("layer", "operator"))
    for heading in ("input", "weight", "output", "weights", "multiplications", "bits"):
        table.add_column(heading, justify="right")
    for layer in inspection.layers:
        table.add_row(
            printable(layer.name),
            layer.op,
            shape(layer.input_shape),
            shape(layer.weight_shape),
            shape(layer.output_shape),
            f"{layer.parameters:,}",
            "?" if layer.macs is None else f"{layer.macs:,}",
            bits(layer.weight_bits, layer.activation_bits) + (" edge" if layer.edge else ""),
        )
    console.print(table)
    _show_remarks(console, inspection.left_in_float, limit=None)


def show_verification(console: Console, report: VerificationReport, *, title: str) -> None:
    """A comparison of two models: fidelity of each output, sizes, speed, bits and loading."""
    console.print(printable(title), style="bold")
    facts = {
        "Size": sizes(report.fp32, report.quantized),
        "Samples": f"{report.samples:,}",
        "Loads": levels(report.loads),
        "Layers": _bit_counts(report.bits),
    }
    if report.difference is not None:
        facts["First"] = printable(str(report.difference))
    time = report.latency_ms
    if time is not None:
        facts["Speed"] = speed(time)
    console.print(_facts(facts))
    if report.outputs:
        console.print(_outputs(report.outputs))
    for output in report.outputs:
        if output.left_out:
            console.print(f"Output {printable(output.name)} is not compared: {output.left_out}")
        if output.broken:
            told = f"NaN or infinite in {output.broken:,} values that the float model has"
            console.print(f"Output {printable(output.name)} is {told}", style="bold red")
    if report.ranges is not None:
        show_ranges(console, report.ranges)


def show_comparison(console: Console, judged: Mapping[str, VerificationReport], *, title: str) -> None:
    """Variants of one model, a line for each below the float model: how large, how accurate, how fast.

    Args:
        console: where to print.
        judged: verifications by the variant's name; at least one.
        title: of the table.
    """
    table = _table(title, left=("model",))
    for heading in ("size", "smaller", "accuracy", "answers as float32", "SQNR", "loads everywhere", "time", "speed"):
        table.add_column(heading, justify="right")
    first = next(iter(judged.values()))
    before = "" if first.latency_ms is None else f"{number(first.latency_ms.fp32)} ms"
    accuracy = percent(first.outputs[0].top1_fp32) if first.outputs else NONE
    table.add_row("float32", in_bytes(first.fp32), "", accuracy, "", "", "", before, "")
    for name, report in judged.items():
        output, spent = report.outputs[0] if report.outputs else None, report.latency_ms
        table.add_row(
            name,
            in_bytes(report.quantized),
            f"{report.fp32 / report.quantized:.1f}x",
            percent(output.top1_quantized if output else None),
            percent(output.top1_agreement if output else None),
            _sqnr(output) if output else NONE,
            "yes" if report.ok else "no",
            f"{number(spent.quantized)} ms" if spent else NONE,
            f"{spent.speedup:.2f}x" if spent else NONE,
        )
    console.print(table)
    if first.latency_ms is not None:
        batch = first.latency_ms.batch
        console.print(
            f"WxAy: weights of x bits, activations of y bits. Time: of a run on {batch} sample{'s'[: batch > 1]}."
        )


def _sqnr(output: OutputFidelity) -> str:
    if output.equal == 100:
        return "exact"
    return decibels(output.sqnr_db)


def _worst(output: OutputFidelity) -> str:
    """The worst sample's signal to noise, and which it is."""
    told = decibels(output.sqnr_db_worst)
    return told if output.worst_sample is None else f"{told} (#{output.worst_sample})"


def _run_facts(report: RunReport) -> dict[str, str]:
    counts = Counter((layer.weight_bits, layer.activation_bits) for layer in report.layers)
    asked = ", ".join(f"{n} at {bits(*pair)}" for pair, n in counts.most_common())
    stages = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in report.seconds.items())
    did = {f"Loss, {s.stage}": printable(f"{s.change} ({s.judged_by}): {s.did}") for s in report.stages}
    return {
        "Layers": f"{asked} (weights/activations)",
        **({} if report.quantized_share is None else {"Weights": f"{100 * report.quantized_share:.1f}% are quantised"}),
        "Size": sizes(report.fp32, report.quantized),
        **({} if report.latency_ms is None else {"Speed": speed(report.latency_ms)}),
        "Loads": levels(report.loads),
        "SQNR": tell_unseen(report),
        **did,
        "Time": f"{sum(report.seconds.values()):.1f} s: {stages}",
    }


def _bit_counts(layers: Sequence[LayerBits]) -> str:
    if not layers:
        return "none is quantised"
    counts = Counter((layer.weight_bits, layer.activation_bits) for layer in layers)
    found = ", ".join(f"{n} at {bits(*pair)}" for pair, n in counts.most_common())
    fused = sum(layer.fused is not None for layer in layers)
    return f"{found} (weights/activations), {fused} of {len(layers)} computed on integers"


def _outputs(outputs: Iterable[OutputFidelity], title: str = "Outputs") -> Table:
    table = _table(title, left=("output",))
    for heading in (
        "SQNR",
        "median sample",
        "worst sample",
        "cosine",
        "KL, nats",
        "top-1 agrees",
        "top-1 before",
        "top-1 after",
    ):
        table.add_column(heading, justify="right")
    for output in outputs:
        table.add_row(
            printable(output.name),
            _sqnr(output),
            decibels(output.sqnr_db_median),
            _worst(output),
            NONE if output.cosine is None else f"{output.cosine:.6f}",
            number(output.kl),
            percent(output.top1_agreement),
            percent(output.top1_fp32),
            percent(output.top1_quantized),
        )
    return table


def _facts(rows: Mapping[str, str]) -> Table:
    table = Table.grid(padding=(0, 2))
    for name, text in rows.items():
        table.add_row(name, text)
    return table


def _table(title: str, left: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold")
    for heading in left:
        table.add_column(heading, overflow="fold")
    return table


def _show_remarks(console: Console, remarks: Sequence[Remark], limit: int | None = LISTED_REMARKS) -> None:
    if not remarks:
        return
    console.print(f"Left as it was ({len(remarks)})", style="bold")
    for remark in remarks[:limit]:
        console.print(f"  {printable(remark.node)}: {printable(remark.reason)}")
    if limit is not None and len(remarks) > limit:
        console.print(f"  and {len(remarks) - limit} more, which --json and --report list")
