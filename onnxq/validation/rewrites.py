"""Rewrites that look at samples, and which of them a network is better off with on samples that it was not made from.

Cross-layer equalization and migration compute the same function in float, but their factors come from samples. So
each is judged by the plainest network that it makes: weights of 8 bits or more rounded to nearest, searched ranges, no
second-order start. What does not help there is left out. The network with the ranges from the smallest to the largest
value seen, which every quantizer makes, is judged beside them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum

from onnxq.calibration.hold_out import KeepBack
from onnxq.config import Config
from onnxq.config.bit_widths import FLOAT, Candidate
from onnxq.data import Feed, first_feeds, samples_in
from onnxq.errors import ConfigError
from onnxq.ir.model import Model
from onnxq.passes.equalize import find_groups
from onnxq.plan.make_plan import make_plan, without_chosen
from onnxq.plan.values import Plan
from onnxq.preprocess.cross_layer_equalization import equalize_layers
from onnxq.preprocess.smoothquant import migrate_ranges
from onnxq.progress import silent
from onnxq.runtime.memory import free_old_graphs
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.runtime.spool import Arrays
from onnxq.solve.checkpoint import Checkpoint
from onnxq.solve.making import Making, Ranges
from onnxq.solve.network import solve_network
from onnxq.validation.folds import Fold, Folds
from onnxq.validation.judgement import Judgement, exact_outputs, judge, together

FITTED, JUDGED = 32, 32
"""Samples at most that a plain network is made from, and that judge it."""

LARGE = 2**20
"""Weights from which on the memory of graphs that a rewrite leaves behind is worth the time to free them."""

CUTS, ENOUGH = 2, 16
"""Cuts of the calibration set on which plain networks are tried, at most, if they hold so many samples to judge by."""

ADVANTAGE = 1.03
"""A network with fewer rewrites has to err less by this factor: they also help what comes after them."""

GAIN = 0.9
"""Error, in that of the best before it, below which a network whose channels were raised through clips is better: what
a channel that seldom fires loses at the end of the grid, few samples show."""

Choice = Mapping[str, Candidate] | None


class Rewrite(Enum):
    """What is done to a network before it is quantized."""

    NONE = "nothing"
    EQUALIZED = "channels equalised"
    RAISED = "channels equalised, through clips too"
    MIGRATED = "channels equalised and ranges migrated"


@dataclass(frozen=True)
class Plainest:
    """Plain networks on samples that they were not made from.

    Attributes:
        rewrite: the one that errs least.
        judged: each rewrite's network with searched ranges at 8-bit weights or more.
        nearest: the network with no rewrite by how its ranges come about, where its weights have 8 bits or more: with
            fewer, what nearest rounding makes of it is no rival.
    """

    rewrite: Rewrite
    judged: Mapping[Rewrite, Judgement]
    nearest: Mapping[Ranges, Judgement]


def rewritten(model: Model, config: Config, choice: Choice, feeds: Sequence[Feed], rewrite: Rewrite) -> Model:
    """The same function with its channels brought together as far as a rewrite goes.

    Args:
        model: prepared; not changed.
        config: the bits.
        choice: each layer's own bits; the configuration's when None.
        feeds: samples, for the ranges of channels.
        rewrite: how far.
    """
    if rewrite is Rewrite.NONE:
        return model
    plan = make_plan(model, config, choice)
    large = sum(p.layer.parameters for p in plan.layers) > LARGE
    settled = without_chosen(model, plan)
    through_clips = rewrite is Rewrite.RAISED
    ready = equalize_layers(model, settled, feeds, second_order=config.second_order, through_clips=through_clips)
    if large:
        free_old_graphs()
    if rewrite is Rewrite.MIGRATED:
        # A weight that layers shared has a copy of another name for each now.
        ready = migrate_ranges(ready, without_chosen(ready, make_plan(ready, config, choice)), feeds)
        if large:
            free_old_graphs()
    return ready


def judge_plain(model: Model, config: Config, choice: Choice, folds: Folds) -> Plainest | None:
    """Try every rewrite on a plain network; None where there is but one sample.

    Args:
        model: prepared.
        config: the bits; without ``equalise`` there is nothing to choose from.
        choice: each layer's own bits; the configuration's when None.
        folds: of the calibration set.
    """
    if not folds.cuts:
        return None
    judged: dict[Rewrite, list[Judgement]] = {}
    nearest: dict[Ranges, list[Judgement]] = {}
    wide = _at_least_8(model, config, choice)
    rewrites = _worth_trying(model, config, choice)
    for index, cut in enumerate(folds.cuts):
        if index >= CUTS and sum(len(c.judged.indices) for c in folds.cuts[:index]) >= ENOUGH:
            break
        trial = _Trial(cut, first_feeds(cut.fitted, FITTED), exact_outputs(model, first_feeds(cut.judged, JUDGED)))
        last = None
        for rewrite in rewrites:
            ready = rewritten(model, config, choice, trial.fitted, rewrite)
            if ready is not last:
                found = trial.judged(ready, *wide)
            judged.setdefault(rewrite, []).append(found[Ranges.SEARCHED])
            if rewrite is Rewrite.NONE and wide == (config, choice):
                for ranges, judgement in found.items():
                    nearest.setdefault(ranges, []).append(judgement)
            last = ready
    errors = {rewrite: together(parts) for rewrite, parts in judged.items()}
    best = Rewrite.NONE
    for rewrite in rewrites:
        if errors[rewrite].error <= (GAIN if rewrite is Rewrite.RAISED else ADVANTAGE) * errors[best].error:
            best = rewrite
    return Plainest(best, errors, {ranges: together(parts) for ranges, parts in nearest.items()})


def _worth_trying(model: Model, config: Config, choice: Choice) -> tuple[Rewrite, ...]:
    """The rewrites that may change something, the lesser ones first."""
    if not config.equalise:
        return (Rewrite.NONE,)
    groups = find_groups(model, [p.layer for p in make_plan(model, config, choice).layers])
    clipped = any(group.clips for group in groups)
    return tuple(rewrite for rewrite in Rewrite if clipped or rewrite is not Rewrite.RAISED)


@dataclass(frozen=True)
class _Trial:
    """A cut on which plain networks are made and judged.

    Attributes:
        cut: which.
        fitted: samples to make them from.
        exact: what the float network makes of the first of those that judge.
    """

    cut: Fold
    fitted: Sequence[Feed]
    exact: Sequence[Arrays]

    def judged(self, model: Model, config: Config, choice: Choice) -> dict[Ranges, Judgement]:
        """A plain network's judgement, by how its ranges come about."""
        plan = make_plan(model, config, choice)
        making = Making(keep_back=KeepBack.NOTHING, plain=True)
        nowhere = Checkpoint(None, "", resume=False)
        network = solve_network(model, plan, plain_config(config), self.fitted, nowhere, silent, making)
        feeds = first_feeds(self.cut.judged, JUDGED)
        samples = self.cut.judged.indices[: sum(samples_in(feed) for feed in feeds)]
        return {
            Ranges.SEARCHED: judge(model, plan, network, feeds, self.exact, samples),
            Ranges.EXTREMES: judge(model, plan, network.with_extremes(), feeds, self.exact, samples),
        }


def plain_config(config: Config) -> Config:
    """The same bits by nearest rounding alone."""
    return replace(config, preset="light", second_order=False, mode="parallel", para_normalise=False)


def solve_plain(
    model: Model, config: Config, choice: Choice, ranges: Ranges, feeds: Sequence[Feed]
) -> tuple[Plan, QuantizedNetwork]:
    """The network with weights rounded to nearest."""
    plan = make_plan(model, config, choice)
    nowhere = Checkpoint(None, "", resume=False)
    return plan, solve_network(
        model, plan, plain_config(config), feeds, nowhere, silent, Making(ranges, KeepBack.NOTHING)
    )


def _at_least_8(model: Model, config: Config, choice: Choice) -> tuple[Config, Choice]:
    """The bits with weights of 8 at least, whose rounding hides nothing; as they are where the target has no such."""
    try:
        wide = replace(config, weights=max(config.weights, 8))
        bits = choice and {
            name: c if c == FLOAT else Candidate(max(c.weights, 8), c.activations) for name, c in choice.items()
        }
        make_plan(model, wide, bits)
    except ConfigError:
        return config, choice
    return wide, bits
