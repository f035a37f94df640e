"""A solved network on samples that it was not made from, and the plain network that takes its place where it loses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnxq.config import Config
from onnxq.data import Feed, first_feeds
from onnxq.ir.model import Model, Remark
from onnxq.plan.make_plan import make_plan
from onnxq.plan.values import Plan
from onnxq.preprocess.cross_layer_equalization import RANGE_SAMPLES
from onnxq.progress import silent
from onnxq.quant.decibels import decibels
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.solve.checkpoint import Checkpoint
from onnxq.solve.making import Making, Ranges
from onnxq.solve.network import solve_network
from onnxq.validation.folds import Folds
from onnxq.validation.judgement import Judgement, exact_outputs, judge, together
from onnxq.validation.rewrites import Choice, Plainest, Rewrite, rewritten, solve_plain

ROOM = {Ranges.SEARCHED: 1.06, Ranges.EXTREMES: 2.0}
"""Error of a network, in that of a plain one, up to which it is not said to lose: a quarter of a decibel, and three
where the plain one has no head-room, which costs up to that."""

SURE = 2.0
"""Standard errors by which it has to lose."""


FEWEST = {Ranges.SEARCHED: 16, Ranges.EXTREMES: 64}
"""Samples by which it can be said to lose, at least; fewer show how finely ranges without head-room round, and seldom
what they cut off."""


@dataclass(frozen=True)
class Made:
    """A quantized network and what is known of it.

    Attributes:
        model: as it was quantized.
        plan: of its layers.
        network: their solutions.
        judgement: on samples that it was not made from; None where there is one sample.
        remarks: what was left out, or took whose place, and why.
    """

    model: Model
    plan: Plan
    network: QuantizedNetwork
    judgement: Judgement | None
    remarks: tuple[Remark, ...] = ()


def prepare_network(
    model: Model, config: Config, choice: Choice, feeds: Sequence[Feed], folds: Folds, plainest: Plainest | None
) -> tuple[Model, Plan]:
    """The network with the rewrites that were found to help, and its plan.

    Args:
        model: without rewrites.
        config: the bits.
        choice: each layer's own bits; the configuration's when None.
        feeds: the calibration set.
        folds: of it.
        plainest: what was found.
    """
    fitted = first_feeds(fitted_samples(feeds, folds), RANGE_SAMPLES)
    ready = rewritten(model, config, choice, fitted, plainest.rewrite if plainest else Rewrite.NONE)
    return ready, make_plan(ready, config, choice)


def fitted_samples(feeds: Sequence[Feed], folds: Folds) -> Sequence[Feed]:
    """The samples that the last network is made from: all, but for those that are kept back for good."""
    return feeds if folds.crossed or not folds.cuts else folds.cuts[0].fitted


def cross_fitted(
    model: Model, config: Config, choice: Choice, folds: Folds, rewrite: Rewrite, tell: Callable[[], None]
) -> Judgement:
    """What networks made from parts of the calibration set do on the rest of it.

    Args:
        model: without rewrites.
        config: as the network is made; by closed forms alone where it would be tuned or refined besides.
        choice: each layer's own bits; the configuration's when None.
        folds: several.
        rewrite: what is done first.
        tell: called after each.
    """
    light = replace(config, preset="light")
    parts = []
    for cut in folds.cuts:
        ready = rewritten(model, light, choice, first_feeds(cut.fitted, RANGE_SAMPLES), rewrite)
        plan = make_plan(ready, light, choice)
        nowhere = Checkpoint(None, "", resume=False)
        network = solve_network(ready, plan, light, cut.fitted, nowhere, silent, Making(keep_back=folds.keep_back))
        parts.append(judge(ready, plan, network, cut.judged, exact_outputs(model, cut.judged), cut.judged.indices))
        del ready, plan, network
        tell()
    return together(parts)


def better_of(
    made: Made,
    model: Model,
    config: Config,
    choice: Choice,
    feeds: Sequence[Feed],
    folds: Folds,
    plainest: Plainest | None,
) -> Made:
    """A network, or the plain one that errs less than it on samples neither was made from.

    Args:
        made: the network.
        model: without rewrites.
        config: the bits.
        choice: each layer's own bits; the configuration's when None.
        feeds: the calibration set.
        folds: of it.
        plainest: the plain networks; None where there was nothing to judge them by.
    """
    if made.judgement is None or plainest is None:
        return made
    remarks = (*made.remarks, *_left_out(config, plainest))
    rivals = [r for r, judgement in plainest.nearest.items() if len(judgement.samples) >= FEWEST[r]]
    if not rivals:
        return replace(made, remarks=remarks)
    ranges = min(rivals, key=lambda r: ROOM[r] * plainest.nearest[r].error)
    rival = plainest.nearest[ranges]
    ours = made.judgement.of(rival.samples)
    if not _loses(ours, rival, ROOM[ranges]):
        return replace(made, remarks=remarks)
    plan, network = solve_plain(model, config, choice, ranges, fitted_samples(feeds, folds))
    told = Remark(
        "network",
        f"weights are rounded to nearest and ranges are {ranges.value}: on {len(rival.samples)} samples that were not "
        f"fitted this keeps {_decibels(rival)} of signal to noise, and the network as solved {_decibels(ours)}",
    )
    return Made(model, plan, replace(network, remarks=made.network.remarks), rival, (*made.remarks, told))


def _loses(ours: Judgement, rival: Judgement, room: float) -> bool:
    """Whether a network errs more than a plain one, beyond chance."""
    count = len(rival.samples)
    if ours.error <= room * rival.error:
        return False
    gap = np.log(np.maximum(ours.errors, 1e-30) / np.maximum(rival.errors, 1e-30))
    return bool(gap.mean() > SURE * gap.std(ddof=1) / np.sqrt(count))


def _left_out(config: Config, plainest: Plainest) -> Iterator[Remark]:
    """What a rewrite that was asked for and left out would have cost."""
    if not config.equalise or plainest.rewrite in (Rewrite.RAISED, Rewrite.MIGRATED):
        return
    without = plainest.judged[plainest.rewrite]
    beside = plainest.judged[Rewrite.MIGRATED]
    what = "channels are not equalised" if plainest.rewrite is Rewrite.NONE else "ranges are not migrated"
    yield Remark(
        "network",
        f"{what}: on {len(without.samples)} samples that were not fitted a plain network keeps {_decibels(without)} of "
        f"signal to noise without that, and {_decibels(beside)} with it",
    )


def _decibels(judgement: Judgement) -> str:
    db = decibels(1.0, judgement.error)
    return "all" if db is None else f"{db:.1f} dB"
