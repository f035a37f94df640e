"""An allocation carried out, held against its prediction and uniform bits, and chosen again where it falls short."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from onnxq.allocation.bit_allocation import BitAllocation
from onnxq.allocation.choices import make_choices
from onnxq.allocation.problem import AllocationProblem
from onnxq.allocation.sensitivity import How, Reference, measure_sensitivities
from onnxq.allocation.sensitivity_table import SensitivityTable
from onnxq.allocation.uniform import best_uniform
from onnxq.config import Config
from onnxq.config.bit_widths import parse_candidates
from onnxq.config.budget import LOSS
from onnxq.data import Feed, set_apart
from onnxq.ir.model import Model, Remark
from onnxq.ir.tensor import has_fixed_batch
from onnxq.progress import Listener
from onnxq.runtime.quantized_network import QuantizedNetwork

Result = TypeVar("Result")

ROUNDS = 3
"""Times at most that sensitivities are measured again around a network that does not lose what was predicted."""

FACTOR = 2.0
"""How far predicted and measured loss may be apart, and how far a rival's prediction may be above the best."""


@dataclass(frozen=True)
class Attempt(Generic[Result]):
    """One allocation, carried out.

    Attributes:
        allocation: the bits, with their predicted loss.
        model: prepared and equalized for these bits.
        network: its solutions.
        loss: measured on samples that the solvers did not fit, where there are enough.
        result: whatever else came of it.
        error: standard error of the measured loss.
    """

    allocation: BitAllocation
    model: Model
    network: QuantizedNetwork
    loss: float
    result: Result
    error: float = 0.0

    @property
    def as_predicted(self) -> bool:
        """Whether predicted and measured loss agree within the factor, or the noise of the prediction."""
        predicted, noise = self.allocation.loss, 2 * math.hypot(self.allocation.loss_error, self.error)
        within = self.loss <= FACTOR * max(predicted, 0.0) and predicted <= FACTOR * max(self.loss, 0.0)
        return within or abs(self.loss - predicted) <= noise


def carry_out(
    allocation: BitAllocation,
    problem: AllocationProblem | None,
    feeds: Sequence[Feed],
    config: Config,
    solve: Callable[[BitAllocation], Attempt[Result]],
    choose: Callable[[AllocationProblem], BitAllocation],
    progress: Listener,
) -> tuple[Attempt[Result], tuple[tuple[float, float], ...]]:
    """An allocation solved, and chosen again around what came of it where that is not what was predicted.

    Losses that are measured layer by layer leave out what layers do to each other, so two allocations whose
    predictions are close may come out in the other order. Where the loss is what is made small, and a uniform
    allocation that keeps the budgets is predicted within a factor of the chosen one, it is solved as well; where
    it wins, the choice is made again around it.

    Args:
        allocation: the first choice.
        problem: the tables it was made from; None to take it as it is.
        feeds: samples that the tables were measured on.
        config: candidates.
        solve: carries an allocation out.
        choose: the best allocation of a problem within the budgets.
        progress: told how far a measurement is.

    Returns:
        The best attempt, and the predicted and measured loss of each in their order.
    """
    attempts = [solve(allocation)]
    around, again = attempts[0], not attempts[0].as_predicted
    rival = best_uniform(problem, choose) if problem is not None and allocation.minimised == LOSS else None
    if rival is not None and rival.choice != allocation.choice and _close(rival, allocation):
        attempts.append(solve(rival))
        around = best_of(attempts)
        again |= around is not attempts[0]
    for _ in range(ROUNDS):
        if problem is None or not again:
            break
        table = _around(around, problem, feeds, config, progress)
        found = choose(dataclasses.replace(problem, sensitivity=table))
        known = next((i for i, a in enumerate(attempts) if a.allocation.choice == found.choice), None)
        if known is not None:
            attempts[known] = dataclasses.replace(attempts[known], allocation=found)
            break
        attempts.append(solve(found))
        around, again = attempts[-1], not attempts[-1].as_predicted
    return best_of(attempts), tuple((a.allocation.loss, a.loss) for a in attempts)


def best_of(attempts: Sequence[Attempt[Result]]) -> Attempt[Result]:
    """The attempt of least measured loss; of those that keep a budget of loss, the one that spends least."""
    allocation = attempts[0].allocation
    limit = allocation.budgets.get(LOSS, -math.inf)
    kept = [a for a in attempts if a.loss <= limit]
    if kept and allocation.minimised != LOSS:
        return min(kept, key=lambda a: a.allocation.costs[allocation.minimised])
    return min(attempts, key=lambda a: a.loss)


def _close(rival: BitAllocation, best: BitAllocation) -> bool:
    """Whether the predictions leave it open which of two allocations loses less."""
    noise = 2 * math.hypot(rival.loss_error, best.loss_error)
    return rival.loss <= max(FACTOR * best.loss, best.loss + noise)


def account(best: Attempt[Any], rounds: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """What was chosen and what came of it, as plain values."""
    return {
        **best.allocation.to_dict(),
        "measured_loss": best.loss if math.isfinite(best.loss) else None,
        "rounds": [{"predicted": p if math.isfinite(p) else None, "measured": m} for p, m in rounds],
    }


def remark(best: Attempt[Any]) -> Remark:
    """The same in a sentence."""
    predicted, counts = best.allocation, Counter(map(str, best.allocation.choice.values()))
    bits = ", ".join(f"{count} at {word}" for word, count in counts.most_common())
    known = math.isfinite(predicted.loss)
    told = f"{predicted.loss:.3g} ± {predicted.loss_error:.1g} predicted, " if known else ""
    return Remark("allocation", f"{bits}; loss {told}{best.loss:.3g} measured")


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
        how=How(problem.sensitivity.method, problem.sensitivity.metric),
        reference=Reference(attempt.allocation.choice, attempt.network),
        progress=progress,
    )
