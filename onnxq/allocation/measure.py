"""From a model and samples to everything an allocation is made from."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxq.allocation.choices import Choices, make_choices
from onnxq.allocation.cost.operations import read_energy
from onnxq.allocation.cost.table import cost_table
from onnxq.allocation.problem import AllocationProblem
from onnxq.allocation.sensitivity import How, measure_sensitivities
from onnxq.allocation.sensitivity_table import SensitivityTable, as_matrix
from onnxq.config import Config
from onnxq.config.bit_widths import Candidate, parse_candidates
from onnxq.data import Feed, set_apart
from onnxq.ir.model import Model
from onnxq.ir.tensor import has_fixed_batch
from onnxq.progress import Listener, Progress, silent


@dataclass(frozen=True)
class Measuring:
    """How the tables are made.

    Attributes:
        method: ``full`` runs the rest of the network for every candidate, ``scaled`` for one a layer.
        metric: ``kl`` or ``mse``; None to choose by the outputs.
        latency: measure it here.
        latency_table: CSV file with latencies measured elsewhere.
        energy_table: TOML file with energies of elementary steps; the bundled one when None.
    """

    method: str = "full"
    metric: str | None = None
    latency: bool = False
    latency_table: Path | None = None
    energy_table: Path | None = None


def tabulate(
    model: Model,
    ready: Sequence[tuple[Model, Sequence[Candidate]]],
    feeds: Sequence[Feed],
    config: Config,
    options: Measuring,
    *,
    float_bytes: int,
    progress: Listener = silent,
    name: str = "",
) -> AllocationProblem:
    """Sensitivities and costs of every layer at every candidate.

    Args:
        model: prepared; not changed.
        ready: the same network made ready for some of the candidates, and which these are. What is measured is the
            network's loss at each of them, so each may have its own factors of channels.
        feeds: batches of samples, the first ``config.table_samples`` of them to judge by.
        config: container, edge bits, memory limit, seed.
        options: what to measure and how.
        float_bytes: size of the original file.
        progress: told after each layer.
        name: of the model, for people.

    Raises:
        ConfigError: a table that was given cannot be used.
        CalibrationError: a layer reads or makes NaN or infinity in the float network.
    """
    choices = make_choices(model, parse_candidates(config.candidates), config)
    progress(Progress("costs", 0, None))
    costs = cost_table(
        model,
        choices,
        config,
        float_bytes=float_bytes,
        energy=read_energy(options.energy_table),
        latency=options.latency_table or (one_run(feeds[0], model) if options.latency else None),
    )
    parts = [_measured(prepared, some, feeds, config, options, progress) for prepared, some in ready]
    sensitivity = merged(choices, [(part, some) for part, (_, some) in zip(parts, ready, strict=True)])
    return AllocationProblem(sensitivity, costs, choices.agreements, choices.edges, name)


def _measured(
    model: Model,
    candidates: Sequence[Candidate],
    feeds: Sequence[Feed],
    config: Config,
    options: Measuring,
    progress: Listener,
) -> SensitivityTable:
    fitted, judged = set_apart(feeds, config.table_samples, whole=has_fixed_batch(model.inputs))
    return measure_sensitivities(
        model,
        make_choices(model, candidates, config),
        fitted,
        config,
        judged=judged,
        how=How(options.method, options.metric),
        progress=progress,
    )


def merged(choices: Choices, measured: Sequence[tuple[SensitivityTable, Sequence[Candidate]]]) -> SensitivityTable:
    """One table of several.

    Args:
        choices: its rows and columns.
        measured: tables of the same rows, and the candidates that each was made for. Where two hold an entry, as at
            first and last layers, that of the table made for its candidate counts, else the first.
    """
    loss, error = (np.full(choices.open.shape, np.nan) for _ in range(2))
    for j, candidate in enumerate(choices.candidates):
        for table, _ in sorted(measured, key=lambda pair: candidate not in pair[1]):
            if candidate in table.candidates:
                column = table.candidates.index(candidate)
                wanted = np.isnan(loss[:, j])
                loss[wanted, j] = np.array(table.loss)[wanted, column]
                error[wanted, j] = np.array(table.error)[wanted, column]
    return dataclasses.replace(
        measured[0][0], candidates=choices.candidates, loss=as_matrix(loss), error=as_matrix(error)
    )


def one_run(feed: Feed, model: Model) -> Mapping[str, NDArray[np.generic]]:
    """The first sample of a batch; the whole batch where the model insists on its size."""
    return feed if has_fixed_batch(model.inputs) else {name: np.asarray(value)[:1] for name, value in feed.items()}
