"""Bits of every layer for one quantization: measured and chosen, and the loss of what came of them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.allocation.bit_allocation import BitAllocation
from onnxq.allocation.choices import make_choices
from onnxq.allocation.cost.dummy_model import placeholder_model
from onnxq.allocation.measure import Measuring, one_run, tabulate
from onnxq.allocation.output_loss import OutputLoss
from onnxq.allocation.problem import AllocationProblem
from onnxq.calibration.hold_out import HOLD_OUT, HoldOut
from onnxq.config import Config
from onnxq.config.bit_widths import FLOAT, Candidate, parse_candidates
from onnxq.config.budget import Budget, parse_budgets
from onnxq.data import Feed, first_feeds, samples_in, set_apart
from onnxq.ir.layer import find_layers
from onnxq.ir.model import Model
from onnxq.ir.save import to_outline
from onnxq.ir.tensor import has_fixed_batch
from onnxq.plan.make_plan import make_plan
from onnxq.preprocess.cross_layer_equalization import RANGE_SAMPLES
from onnxq.preprocess.smoothquant import MIGRATED, migrate_ranges
from onnxq.progress import Listener
from onnxq.runtime.session import Session
from onnxq.validation.rewrites import Rewrite, rewritten

FEWEST_HELD = 4
"""Samples held out from fitting below which a loss is measured on all."""

SIZE_ROUNDS = 5
"""Times at most that an allocation whose file is too large is made again."""


def choice_for_all(model: Model, candidates: Sequence[Candidate], config: Config) -> dict[str, Candidate]:
    """The candidate in the middle for every part: the bits at which channels are equalized before any are chosen."""
    choices = make_choices(model, candidates, config)
    ordered = {name: sorted(c for c in choices.of(name) if c != FLOAT) for name in choices.names}
    return {name: found[len(found) // 2] if found else FLOAT for name, found in ordered.items()}


def equalize_for(model: Model, choice: Mapping[str, Candidate], feeds: Sequence[Feed], config: Config) -> Model:
    """The model with its channels equalized and ranges migrated for an allocation, where that is asked for."""
    if not config.equalise or all(choice[layer.name] == FLOAT for layer in find_layers(model)[0]):
        return model
    return rewritten(model, config, choice, feeds, Rewrite.MIGRATED)


def alike(candidates: Sequence[Candidate]) -> list[list[Candidate]]:
    """Candidates apart by whether range is migrated for them: a model is made ready for one kind or the other."""
    coarse = [c for c in candidates if c.activations <= MIGRATED]
    fine = [c for c in candidates if c.activations > MIGRATED and c != FLOAT]
    groups = [group for group in (coarse, fine) if group] or [[]]
    return [[*group, *(c for c in candidates if c == FLOAT)] for group in groups]


def tables_for(
    model: Model,
    feeds: Sequence[Feed],
    config: Config,
    options: Measuring,
    progress: Listener,
    *,
    float_bytes: int,
    name: str = "",
) -> AllocationProblem:
    """The tables of a prepared model at the configuration's candidates."""
    candidates = parse_candidates(config.candidates)
    fitted, _ = set_apart(feeds, config.table_samples, whole=has_fixed_batch(model.inputs))
    few = first_feeds(fitted, RANGE_SAMPLES)  # not those that judge
    groups = alike(candidates) if options.method == "full" else [list(candidates)]
    ready = [(equalize_for(model, choice_for_all(model, g, config), few, config), g) for g in groups]
    return tabulate(model, ready, feeds, config, options, float_bytes=float_bytes, progress=progress, name=name)


def choose(model: Model, problem: AllocationProblem, feeds: Sequence[Feed], config: Config) -> BitAllocation:
    """The best allocation within the configuration's budgets.

    The size is that of the file, which is known before anything is solved: where quantizers between layers of
    different bits, or the factors of migrated ranges, take it beyond the budget, the programme is solved again with so
    much less. Where the latency has a
    budget, the choice is timed and made again until it takes what was predicted (see
    :mod:`onnxq.allocation.latency_loop`).

    Raises:
        InfeasibleError: no choice keeps the budgets.
    """
    from onnxq.allocation.allocate import allocate  # it loads cvxpy
    from onnxq.allocation.latency_loop import allocate_timed

    budgets = parse_budgets(config.budget)
    if any(b.quantity == "latency" for b in budgets):
        return allocate_timed(model, problem, budgets, config, one_run(feeds[0], model))

    def model_for(found: BitAllocation) -> Model:
        few = first_feeds(feeds, RANGE_SAMPLES)
        return migrate_ranges(model, make_plan(model, config, found.choice), few) if config.equalise else model

    found = allocate(problem, budgets)
    size, others = found.budgets.get("size"), [b for b in budgets if b.quantity != "size"]
    for _ in range(SIZE_ROUNDS if size else 0):
        beyond = placeholder_model(model_for(found), config, found.choice)[0].ByteSize() - (size or 0)
        if beyond <= 0:
            break
        found = allocate(problem, [*others, Budget("size", found.budgets["size"] - beyond)])
    return found


def held_out(model: Model, feeds: Sequence[Feed], otherwise: Sequence[Feed]) -> Sequence[Feed]:
    """The samples that the solvers keep back from fitting, on which a measured loss is not flattered.

    Args:
        model: prepared.
        feeds: all batches of samples, in their order.
        otherwise: what to take where they are too few, or the model insists on whole batches.
    """
    if has_fixed_batch(model.inputs):
        return otherwise
    samples = sum(samples_in(feed) for feed in feeds)
    if samples < HOLD_OUT * FEWEST_HELD:
        return otherwise
    policy, found, start = HoldOut(samples), [], 0
    for feed in feeds:
        count = samples_in(feed)
        kept = ~policy.fitted(0, start, count)
        if kept.any():
            found.append({name: np.asarray(value)[kept] for name, value in feed.items()})
        start += count
    return found


def measured_loss(
    model: Model, proto: onnx.ModelProto, feeds: Sequence[Feed], metric: str | None
) -> tuple[float, float]:
    """Mean loss of an emitted model on samples, as the sensitivities take it, and its standard error.

    Args:
        model: the prepared float model.
        proto: what was emitted.
        feeds: batches of samples.
        metric: ``kl`` or ``mse``; None to choose by the outputs.
    """
    names = [t.name for t in model.outputs]
    exact = Session(to_outline(model), "the float model")
    counts = [samples_in(feed) for feed in feeds]
    made = [exact.run(feed, names) for feed in feeds]
    loss = OutputLoss(made, metric, chosen=model.not_comparable, samples=counts)
    quantized = Session(proto, "the quantised model")
    parts: list[NDArray[np.float64]] = [loss.of(i, quantized.run(feed, names)) for i, feed in enumerate(feeds)]
    each = np.concatenate(parts)
    return float(each.mean()), float(each.std() / math.sqrt(len(each)))
