"""Bits of every layer for one quantisation: measured, chosen, and held against what came of them."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.allocation import BitAllocation
from onnxq.budget import Budget, parse_budgets
from onnxq.candidate import FLOAT, Candidate, parse_candidates
from onnxq.choices import make_choices
from onnxq.config import Config
from onnxq.cost.placeholder import placeholder_model
from onnxq.data import Feed
from onnxq.equalisation import equalised
from onnxq.execute.chain import Quantised
from onnxq.execute.ort import Session
from onnxq.ir.layer import find_layers
from onnxq.ir.model import Model, Remark
from onnxq.ir.save import to_proto
from onnxq.output_loss import OutputLoss
from onnxq.plan import make_plan
from onnxq.progress import Listener
from onnxq.sensitivity import Reference
from onnxq.tables import AllocationProblem
from onnxq.tabulate import Measuring, one_run, tabulate

Result = TypeVar("Result")

ROUNDS = 3
"""Times at most that sensitivities are measured again around a network that does not lose what was predicted."""

FACTOR = 2.0
"""How far predicted and measured loss may be apart."""


@dataclass(frozen=True)
class Attempt(Generic[Result]):
    """One allocation, carried out.

    Attributes:
        allocation: the bits, with their predicted loss.
        model: prepared and equalised for these bits.
        quantised: its solutions.
        loss: measured on the samples that the prediction was made from.
        result: whatever else came of it.
    """

    allocation: BitAllocation
    model: Model
    quantised: Quantised
    loss: float
    result: Result

    @property
    def as_predicted(self) -> bool:
        """Whether predicted and measured loss agree within the factor, or the noise of the prediction."""
        predicted, noise = self.allocation.loss, 2 * self.allocation.loss_error
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
    return equalised(model, make_plan(model, config, choice), feeds)


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
    ready = equalised_for(model, choice_for_all(model, candidates, config), feeds, config)
    return tabulate(ready, candidates, feeds, config, options, float_bytes=float_bytes, progress=progress, name=name)


def choose(model: Model, problem: AllocationProblem, feeds: Sequence[Feed], config: Config) -> BitAllocation:
    """The best allocation within the configuration's budgets.

    Where the latency has a budget, the choice is timed against every candidate for all layers at once, and
    gives way to the one of them that keeps all budgets and is faster.

    Raises:
        InfeasibleError: no choice keeps the budgets.
    """
    from onnxq.allocate import allocate  # it loads cvxpy

    budgets = parse_budgets(config.budget)
    found = allocate(problem, budgets)
    if all(b.quantity != "latency" for b in budgets):
        return found
    return _fastest(model, problem, found, budgets, feeds, config)


def carried_out(
    allocation: BitAllocation,
    problem: AllocationProblem | None,
    feeds: Sequence[Feed],
    config: Config,
    solve: Callable[[BitAllocation], Attempt[Result]],
    progress: Listener,
) -> tuple[Attempt[Result], tuple[tuple[float, float], ...]]:
    """An allocation solved, and chosen again around what came of it where that is not what was predicted.

    Args:
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
        measured = dataclasses.replace(problem, sensitivity=_around(last, problem, feeds, config, progress).sensitivity)
        again = choose(last.model, measured, feeds, config)
        if again.choice == last.allocation.choice:
            attempts[-1] = dataclasses.replace(last, allocation=again)
            break
        attempts.append(solve(again))
    best = min(attempts, key=lambda a: a.loss)
    return best, tuple((a.allocation.loss, a.loss) for a in attempts)


def measured_loss(model: Model, proto: onnx.ModelProto, feeds: Sequence[Feed], metric: str | None) -> float:
    """Mean loss of an emitted model on samples, as the sensitivities take it.

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
    return float(np.concatenate(parts).mean())


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
) -> AllocationProblem:
    options = Measuring(method=problem.sensitivity.method, metric=problem.sensitivity.metric)
    return tabulate(
        attempt.model,
        parse_candidates(config.candidates),
        feeds,
        config,
        options,
        float_bytes=1,
        reference=Reference(attempt.allocation.choice, attempt.quantised),
        progress=progress,
    )


def _fastest(
    model: Model,
    problem: AllocationProblem,
    found: BitAllocation,
    budgets: Sequence[Budget],
    feeds: Sequence[Feed],
    config: Config,
) -> BitAllocation:
    from onnxq.allocate import InfeasibleError, allocate
    from onnxq.cost.latency import run_times

    rivals = [found]
    names = [layer.name for layer in find_layers(model)[0]]
    for candidate in problem.candidates:
        try:
            rivals.append(allocate(problem, budgets, fixed=dict.fromkeys(names, candidate)))
        except InfeasibleError:  # it does not keep the budgets, or the first and last layers do not take it
            continue
    protos = [placeholder_model(model, config, rival.choice)[0] for rival in rivals]
    times = run_times(protos, one_run(feeds[0], model))
    fastest = min(range(len(rivals)), key=lambda i: times[i])
    return rivals[fastest] if times[fastest] < times[0] else found
