"""The network tuned as a whole behind the solution of its layers, where that is affordable."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from onnxq.config import Config
from onnxq.data import Feed
from onnxq.ir.model import Model, Remark
from onnxq.ir.save import to_proto
from onnxq.ir.tensor import has_fixed_batch
from onnxq.plan.inspection import pass_work
from onnxq.plan.values import Plan
from onnxq.progress import Listener, Progress
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.solve.gradient.circumstances import Circumstances
from onnxq.solve.stage_report import StageReport, judged_stage


def affordable(config: Config, model: Model, plan: Plan, feed: Feed) -> tuple[Config, tuple[Remark, ...]]:
    """The configuration without a tuning that the network is too large for; its layers are refined instead.

    Args:
        config: as asked for.
        model: prepared.
        plan: its layers.
        feed: samples, for the sizes that the model leaves open.
    """
    if not config.tunes:
        return config, ()
    apart = [
        f"output {t.name}: {model.not_comparable[t.name]}" for t in model.outputs if t.name in model.not_comparable
    ]
    if apart:
        return replace(config, tune=False), (Remark("network", f"not tuned as a whole ({'; '.join(apart)})"),)
    macs, values = pass_work(model, [p.layer for p in plan.layers], feed)
    if config.tuning.affords(macs, values):
        return config, ()
    told = (
        f"not tuned as a whole: with {macs / 1e9:.2g} G multiply-adds a sample it is too large for [tuning] work of "
        f"{config.tuning.work:.2g}"
    )
    changed = replace(config, tune=False)
    instead = "; its layers are refined one by one instead" if changed.refines > config.refines else ""
    return changed, (Remark("network", told + instead),)


def tune(
    model: Model,
    plan: Plan,
    network: QuantizedNetwork,
    feeds: Sequence[Feed],
    config: Config,
    progress: Listener,
) -> tuple[QuantizedNetwork, StageReport]:
    """The network tuned as a whole, and what came of it."""
    from onnxq.solve.gradient.tuning import Outcome, tune_network  # they load JAX

    options, done = config.tuning, 0

    def tick(steps: int) -> None:
        nonlocal done
        done += steps
        progress(Progress("tune", done, options.steps))

    if any(place.like and place.like not in network.outputs for place in plan.outputs):
        options = replace(options, input_rate=0.0)  # grids that others share stay where they are
    tuning = tune_network(
        to_proto(model),
        [p.layer for p in plan.layers],
        network,
        feeds,
        options,
        Circumstances(has_fixed_batch(model.inputs), config.memory_limit, config.seed, tick),
    )
    did = f"{tuning.outcome.value}{': ' if tuning.detail else ''}{tuning.detail}"
    told = judged_stage("tune", did, "loss on held-out samples", tuning.loss_before, tuning.loss_after)
    moved = tuning.outcome is Outcome.TUNED
    return replace(network, layers=tuning.layers, sqnr_db={} if moved else network.sqnr_db), told
