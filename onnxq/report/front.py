"""Allocations for people: one as a table of layers, many as a front, and the front as a picture."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from onnxq.allocation.bit_allocation import BitAllocation
from onnxq.config.budget import LOSS
from onnxq.errors import ConfigError, OutputError
from onnxq.report.wording import in_bytes, number, printable

FORMATS = (".svg", ".png")


def show_allocation(console: Console, allocation: BitAllocation, whole: Mapping[str, float]) -> None:
    """What was chosen for every layer, what it costs and how well that is proven.

    Args:
        console: where to print.
        allocation: which.
        whole: what the float network spends, by quantity.
    """
    facts = Table.grid(padding=(0, 2))
    facts.add_row("Predicted loss", f"{number(allocation.loss)} ± {number(allocation.loss_error)}")
    for quantity, spent in allocation.costs.items():
        share = f", {100 * spent / whole[quantity]:.2f} % of float" if whole.get(quantity, 0) > 0 else ""
        facts.add_row(quantity.capitalize(), f"{amount(quantity, spent)}{share}")
    facts.add_row(
        "Proof", f"{allocation.status.value}, gap {100 * allocation.gap:.3g} % of the least {allocation.minimised}"
    )
    console.print(facts)
    table = Table(title="Bits", title_justify="left", title_style="bold")
    table.add_column("layer", overflow="fold")
    table.add_column("bits", justify="right")
    for name, candidate in allocation.choice.items():
        table.add_row(printable(name), str(candidate))
    console.print(table)


def show_front(console: Console, front: Sequence[BitAllocation], quantity: str, whole: Mapping[str, float]) -> None:
    """A line for each allocation, from the cheapest to the most accurate, with the number that takes it."""
    table = Table(title=f"Least loss for each {quantity}", title_justify="left", title_style="bold")
    for heading in ("point", quantity, "of float", "predicted loss", "bits"):
        table.add_column(heading, justify="left" if heading == "bits" else "right")
    for place, point in enumerate(front, 1):
        spent, counts = point.costs[quantity], Counter(map(str, point.choice.values()))
        share = f"{100 * spent / whole[quantity]:.2f} %" if whole.get(quantity, 0) > 0 else ""
        bits = ", ".join(f"{count} at {word}" for word, count in sorted(counts.items()))
        loss = f"{number(point.loss)} ± {number(point.loss_error)}"
        table.add_row(str(place), amount(quantity, spent), share, loss, bits)
    console.print(table)


def amount(quantity: str, value: float) -> str:
    """A quantity with its unit."""
    if quantity == "size":
        return in_bytes(round(value))
    units = {"latency": " ms", "energy": " pJ", "bops": " bit operations", LOSS: ""}
    return f"{value:.4g}{units.get(quantity, '')}"


def plot_front(
    path: Path, front: Sequence[BitAllocation], quantity: str, whole: float, title: str, metric: str
) -> None:
    """Draw the front: loss over cost, with the standard error of the prediction.

    Args:
        path: an ``.svg`` or ``.png`` to write.
        front: at least one allocation.
        quantity: on the horizontal axis.
        whole: what the float network spends; the axis counts in percent of it where it is positive.
        title: above the picture.
        metric: of the loss.

    Raises:
        ConfigError: matplotlib is not installed.
        OutputError: the name ends otherwise, or the place cannot be written.
    """
    check_format(path)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("a plot needs matplotlib; install it with pip install 'onnxq[plot]'.") from error
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes: Any = figure.subplots()
    unit = 100 / whole if whole > 0 else 1.0
    spent, loss = [unit * p.costs[quantity] for p in front], [p.loss for p in front]
    axes.errorbar(spent, loss, yerr=[p.loss_error for p in front], fmt="o-", capsize=2, markersize=4, linewidth=1)
    if min(loss) > 0:
        axes.set_yscale("log")
    axes.set_xlabel(f"{quantity}, % of the float network" if whole > 0 else quantity)
    axes.set_ylabel("predicted KL, nats" if metric == "kl" else "predicted squared error, relative")
    axes.set_title(title)
    axes.grid(visible=True, which="both", alpha=0.3)
    try:
        figure.savefig(path, format=path.suffix[1:], metadata={"Date": None} if path.suffix == ".svg" else None)
    except OSError as error:
        raise OutputError(f"plot {path} cannot be written: {error.strerror}.") from error


def check_format(path: Path) -> None:
    """Whether a plot can have this name.

    Raises:
        OutputError: it ends otherwise.
    """
    if path.suffix not in FORMATS:
        raise OutputError(f"plot {path} has no known form; let its name end in {' or '.join(FORMATS)}.")
