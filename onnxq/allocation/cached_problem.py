"""Tables kept in a work directory, so that another budget does not measure again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from onnxq.allocation.measure import Measuring
from onnxq.allocation.problem import AllocationProblem, read_problem
from onnxq.config import Config
from onnxq.data import Feed
from onnxq.ir.model import Model
from onnxq.ir.save import write_text
from onnxq.solve.checkpoint import Checkpoint, fingerprint_of

TABLE = "table.json"


def kept_problem(
    folder: Path | None,
    resume: bool,
    model: Model,
    feeds: Sequence[Feed],
    config: Config,
    options: Measuring,
    measure: Callable[[], AllocationProblem],
) -> AllocationProblem:
    """The tables in a folder; they are measured and written there where it holds none.

    Args:
        folder: where they are kept; None to keep them nowhere.
        resume: use what is there.
        model: prepared.
        feeds: samples that are measured on.
        config: candidates, container and whatever else the tables depend on; budgets may change.
        options: what is measured.
        measure: makes the tables.

    Raises:
        ConfigError: the folder holds tables of something else, or tables although no resume was asked for.
        OutputError: the folder cannot be written.
    """
    if folder is None:
        return measure()
    mark = fingerprint_of(model, _measured(config), feeds, dataclasses.asdict(options))
    Checkpoint(folder, mark, resume=resume)
    path = folder / TABLE
    if path.exists():
        return read_problem(path)
    found = measure()
    write_text(path, found.to_json())
    return found


def _measured(config: Config) -> Config:
    """The configuration with what tables do not depend on as it is by default."""
    plain = Config()
    return dataclasses.replace(
        config,
        budget=(),
        samples=None,
        preset=plain.preset,
        mode=plain.mode,
        refine=plain.refine,
        refinement=plain.refinement,
        tune=plain.tune,
        tuning=plain.tuning,
        reconstruct=plain.reconstruct,
        reconstruction=plain.reconstruction,
        para_normalise=plain.para_normalise,
    )
