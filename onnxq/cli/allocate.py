"""``onnxq allocate``: from a table to the bits of every layer, or to the whole front."""

from __future__ import annotations

import json
from pathlib import Path

import click

from onnxq.cli.errors_and_exit import DONE, Verb
from onnxq.cli.options import FILE, common_options
from onnxq.config.bit_widths import Candidate, parse_candidate, parse_candidates
from onnxq.config.budget import LOSS, QUANTITIES, parse_budgets
from onnxq.errors import ConfigError


@click.command(cls=Verb, short_help="Choose the bits of every layer within budgets.")
@click.argument("table", type=FILE)
@click.option(
    "--budget",
    "budgets",
    multiple=True,
    metavar="WHAT=AMOUNT",
    help=f"Upper limit of {', '.join(QUANTITIES)}; several at once. Up to 1, or with %, a fraction of the "
    "float network: size=0.13, size=300KiB, latency=2.5ms, bops=5%, loss=0.02.",
)
@click.option("--minimise", metavar="WHAT", help="What is made least. [default: loss, or size where loss has a budget]")
@click.option("--pareto", is_flag=True, help="The allocations of least loss for a range of budgets.")
@click.option("--over", default="size", metavar="WHAT", help="The cost that --pareto varies. [default: size]")
@click.option("--points", type=click.IntRange(2, 1000), default=20, help="Budgets that --pareto tries. [default: 20]")
@click.option("--allow", metavar="w4a8,…", help="Candidates that may be chosen, such as those a target has.")
@click.option("--fix", multiple=True, metavar="LAYER=w8a8", help="A layer whose bits are given; several at once.")
@click.option("--plot", type=FILE, metavar="FRONT.svg", help="Draw the front, as .svg or .png (needs matplotlib).")
@click.option("-o", "--output", type=FILE, metavar="ALLOCATION.json", help="Write the allocation, or all of --pareto.")
@common_options
def allocate(
    table: Path,
    budgets: tuple[str, ...],
    minimise: str | None,
    pareto: bool,
    over: str,
    points: int,
    allow: str | None,
    fix: tuple[str, ...],
    plot: Path | None,
    output: Path | None,
    as_json: bool,
    debug: bool,
) -> int:
    """Choose the bits of every layer from TABLE, which onnxq sensitivity wrote; nothing is measured again.

    Example: onnxq allocate table.json --budget size=0.13 -o bits.json
    """
    from onnxq.allocation.allocate import allocate as solve
    from onnxq.allocation.pareto import pareto_front
    from onnxq.allocation.problem import read_problem
    from onnxq.ir.save import check_writable, write_text
    from onnxq.report.front import check_format, plot_front, show_allocation, show_front
    from onnxq.report.text import make_console

    for path in (plot, output):
        if path is not None:
            check_writable(path)
    if plot is not None:
        check_format(plot)
        if not pareto:
            raise ConfigError("--plot draws a front; ask for one with --pareto.")
    if over == LOSS:
        raise ConfigError(f"--over names a cost, not the loss: {', '.join(q for q in QUANTITIES if q != LOSS)}.")
    problem, limits = read_problem(table), parse_budgets(budgets)
    fixed, allowed = dict(map(_fixed, fix)), parse_candidates(allow) if allow else None
    whole = problem.costs.whole
    if not pareto:
        found = solve(problem, limits, minimise=minimise, fixed=fixed, allowed=allowed)
        if output is not None:
            write_text(output, found.to_json())
        if as_json:
            click.echo(found.to_json())
        else:
            show_allocation(make_console(), found, whole)
        return DONE
    front = pareto_front(problem, over, points=points, budgets=limits, fixed=fixed, allowed=allowed)
    if plot is not None:
        plot_front(plot, front, over, whole[over], problem.model, problem.sensitivity.metric)
    text = json.dumps({"over": over, "front": [point.to_dict() for point in front]})
    if output is not None:
        write_text(output, text)
    if as_json:
        click.echo(text)
    else:
        show_front(make_console(), front, over, whole)
    return DONE


def _fixed(text: str) -> tuple[str, Candidate]:
    """A layer's name and its bits; the name may hold = itself."""
    name, sign, bits = text.rpartition("=")
    if not sign or not name:
        raise ConfigError(
            f"--fix {text!r} is not understood; write a layer's name, = and its bits, such as conv1=w8a8."
        )
    return name, parse_candidate(bits)
