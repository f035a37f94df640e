"""Bits of every layer for one quantisation: measured, chosen, and held against what came of them."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.allocation.bit_allocation import BitAllocation
from onnxq.allocation.choices import find_agreements, make_choices
from onnxq.allocation.cost.placeholder import placeholder_model
from onnxq.allocation.output_loss import OutputLoss
from onnxq.allocation.problem import AllocationProblem
from onnxq.allocation.sensitivity import Reference, measure_sensitivities
from onnxq.allocation.tables import SensitivityTable
from onnxq.allocation.tabulate import Measuring, one_run, tabulate
from onnxq.budget import Budget, parse_budgets
from onnxq.calibrate import HOLD_OUT
from onnxq.candidate import FLOAT, Candidate, parse_candidates
from onnxq.config import Config
from onnxq.data import Feed, first_feeds, samples_in, set_apart
from onnxq.equalisation import equalised
from onnxq.execute.chain import Quantised
from onnxq.execute.ort import Session
from onnxq.ir.layer import find_layers
from onnxq.ir.model import Model, Remark
from onnxq.ir.save import to_proto
from onnxq.ir.tensor import has_fixed_batch
from onnxq.plan import make_plan
from onnxq.progress import Listener

Result = TypeVar("Result")

ROUNDS = 3
"""Times at most that sensitivities are measured again around a network that does not lose what was predicted."""

FEWEST_HELD = 8
"""Samples held out from fitting below which a loss is measured on all."""

SIZE_ROUNDS = 5
"""Times at most that an allocation whose file is too large is made again."""

FACTOR = 2.0
"""How far predicted and measured loss may be apart."""


@dataclass(frozen=True)
class Attempt(Generic[Result]):
    """One allocation, carried out.

    Attributes:
        allocation: the bits, with their predicted loss.
        model: prepared and equalised for these bits.
        quantised: its solutions.
        loss: measured on samples that the solvers did not fit, where there are enough.
        result: whatever else came of it.
        error: standard error of the measured loss.
    """

    allocation: BitAllocation
    model: Model
    quantised: Quantised
    loss: float
    result: Result
    error: float = 0.0

    @property
    def as_predicted(self) -> bool:
        """Whether predicted and measured loss agree within the factor, or the noise of the prediction."""
        predicted, noise = self.allocation.loss, 2 * math.hypot(self.allocation.loss_error, self.error)
        within = self.loss <= FACTOR * max(predicted, 0.0) and predicted <= FACTOR * max(self.loss, 0.0)
        return within or abs(self.loss - predicted) <= noise


def choice_for_all(model: Model, candidates: Sequence[Candidate], config: Config) -> dict[str, Candidate]:
    """The candidate in the middle for every layer: the bits at which channels are equalised before any are chosen."""
    choices = make_choices(model, candidates, config)
    ordered = {la.name: sorted(c for c in choices.of(la.name) if c != FLOAT) for la in choices.layers}
    return {name: found[len(found) // 2] if found else FLOAT for name, found in ordered.items()}


def equalised_for(model: Model, choice: Mapping[str, Candidate], feeds: Sequence[Feed], config: Config) -> Model:
    """The model with its channels equalised for an allocation, where the configuration asks for it."""
    if not config.equalise or all(candidate == FLOAT for candidate in choice.values()):
        return model
    return equalised(model, make_plan(model, config, choice), feeds, second_order=config.second_order)


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
    few = first_feeds(feeds, config.table_samples)
    ready = equalised_for(model, choice_for_all(model, candidates, config), few, config)
    found = tabulate(ready, candidates, feeds, config, options, float_bytes=float_bytes, progress=progress, name=name)
    shared = find_agreements(model, find_layers(model)[0])  # equalising gives each owner of a weight its own copy
    return dataclasses.replace(found, agreements=shared)


def choose(model: Model, problem: AllocationProblem, feeds: Sequence[Feed], config: Config) -> BitAllocation:
    """The best allocation within the configuration's budgets.

    The size is that of the file, which is known before anything is solved: where quantisers between layers of
    different bits take it beyond the budget, the programme is solved again with so much less. Where the latency has a
    budget, the choice is timed and made again until it takes what was predicted (see :mod:`onnxq.allocation.timed`).

    Raises:
        InfeasibleError: no choice keeps the budgets.
    """
    from onnxq.allocation.allocate import allocate  # it loads cvxpy
    from onnxq.allocation.timed import allocate_timed

    budgets = parse_budgets(config.budget)
    if any(b.quantity == "latency" for b in budgets):
        return allocate_timed(model, problem, budgets, config, one_run(feeds[0], model))
    found = allocate(problem, budgets)
    size, others = found.budgets.get("size"), [b for b in budgets if b.quantity != "size"]
    for _ in range(SIZE_ROUNDS if size else 0):
        beyond = placeholder_model(model, config, found.choice)[0].ByteSize() - (size or 0)
        if beyond <= 0:
            break
        found = allocate(problem, [*others, Budget("size", found.budgets["size"] - beyond)])
    return found


def carried_out(
    prepared: Model,
    allocation: BitAllocation,
    problem: AllocationProblem | None,
    feeds: Sequence[Feed],
    config: Config,
    solve: Callable[[BitAllocation], Attempt[Result]],
    progress: Listener,
) -> tuple[Attempt[Result], tuple[tuple[float, float], ...]]:
    """An allocation solved, and chosen again around what came of it where that is not what was predicted.

    Args:
        prepared: the model, not equalised.
        allocation: the first choice.
        problem: the tables it was made from; None to take it as it is.
        feeds: samples that the tables were measured on.
        config: candidates and budgets.
        solve: carries an allocation out.
        progress: told how far a measurement is.

    Returns:
        The attempt of least measured loss, and the predicted and measured loss of each in their order.
    """
    attempts = [solve(allocation)]
    while problem is not None and not attempts[-1].as_predicted and len(attempts) <= ROUNDS:
        last = attempts[-1]
        around = _around(last, problem, feeds, config, progress)
        again = choose(prepared, dataclasses.replace(problem, sensitivity=around), feeds, config)
        if again.choice == last.allocation.choice:
            attempts[-1] = dataclasses.replace(last, allocation=again)
            break
        attempts.append(solve(again))
    best = min(attempts, key=lambda a: a.loss)
    return best, tuple((a.allocation.loss, a.loss) for a in attempts)


def held_out(model: Model, feeds: Iterable[Feed], otherwise: Sequence[Feed]) -> Sequence[Feed]:
    """The samples that the solvers keep back from fitting, on which a measured loss is not flattered.

    Args:
        model: prepared.
        feeds: all batches of samples, in their order.
        otherwise: what to take where they are too few, or the model insists on whole batches.
    """
    if has_fixed_batch(model.inputs):
        return otherwise
    found, start = [], 0
    for feed in feeds:
        count = samples_in(feed)
        kept = np.arange(start, start + count) % HOLD_OUT == HOLD_OUT - 1
        if kept.any():
            found.append({name: np.asarray(value)[kept] for name, value in feed.items()})
        start += count
    return found if start >= HOLD_OUT * FEWEST_HELD else otherwise


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
    exact = Session(to_proto(model), "the float model")
    loss = OutputLoss([exact.run(feed, names) for feed in feeds], metric)
    quantised = Session(proto, "the quantised model")
    parts: list[NDArray[np.float64]] = [loss.of(i, quantised.run(feed, names)) for i, feed in enumerate(feeds)]
    each = np.concatenate(parts)
    return float(each.mean()), float(each.std() / math.sqrt(len(each)))


def account(best: Attempt[Any], rounds: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """What was chosen and what came of it, as plain values."""
    return {
        **best.allocation.to_dict(),
        "measured_loss": best.loss if math.isfinite(best.loss) else None,
        "rounds": [{"predicted": p, "measured": m} for p, m in rounds],
    }


def remark(best: Attempt[Any]) -> Remark:
    """The same in a sentence."""
    predicted, counts = best.allocation, Counter(map(str, best.allocation.choice.values()))
    bits = ", ".join(f"{count} at {word}" for word, count in counts.most_common())
    return Remark(
        "allocation",
        f"{bits}; loss {predicted.loss:.3g} ± {predicted.loss_error:.1g} predicted, {best.loss:.3g} measured",
    )


def _around(
    attempt: Attempt[Any], problem: AllocationProblem, feeds: Sequence[Feed], config: Config, progress: Listener
) -> SensitivityTable:
    """The sensitivities of the network that an attempt made, in the columns of those it was chosen by."""
    choices = make_choices(attempt.model, parse_candidates(config.candidates), config)
    fitted, judged = set_apart(feeds, config.table_samples, whole=has_fixed_batch(attempt.model.inputs))
    return measure_sensitivities(
        attempt.model,
        choices,
        fitted,
        config,
        judged=judged,
        method=problem.sensitivity.method,
        metric=problem.sensitivity.metric,
        reference=Reference(attempt.allocation.choice, attempt.quantised),
        progress=progress,
    )
