"""Biases, scales and integers of all layers tuned together by gradient through the whole quantised network.

    min over b, s, s_x  of  E ‖ y − ŷ(b, s, s_x) ‖² / E ‖ y ‖²        or, for class scores if asked for,
    min over b, s, s_x  of  E KL( softmax(y) ‖ softmax(ŷ(b, s, s_x)) )

y are the float network's outputs, ŷ those of the quantised network: weights are the real numbers that
their integers stand for, inputs of layers are rounded to their grids. Rounding passes gradients straight
through, clipping keeps its own. What every layer makes is held to the float network's features as well,
without which a few hundred samples say too little about the integers. A bias counts in standard deviations
of its channel's output, a scale by its logarithm and an integer in steps, so that one learning rate suits
all layers. Weights of 8 bits keep their integers: a step of theirs is too small to matter.

The backward pass is cut behind every layer: it keeps one tensor a layer and computes what lies between
again, which is cheap: roundings and additions, no layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import optax

from onnxq.config import Tuning
from onnxq.data import samples_in
from onnxq.errors import UnsupportedError
from onnxq.execute.jax.interpreter import Program, read_program, unsupported
from onnxq.ir.layer import Layer
from onnxq.quant.spec import QuantParams
from onnxq.solve.objective import Target, find_targets
from onnxq.solve.samples import Batches, Feed
from onnxq.solve.simulated import Constants, Mixing, Named, Network, Solutions, Tables, Unknowns, has_bias

Tick = Callable[[int], None]

CHECKS = 12
"""Evaluations of the hold-out in a tuning."""

PATIENCE = 6
"""Evaluations without gain after which a tuning stops."""

WORKING_TENSORS = 8
"""Tensors of the largest size that a step holds at a time beside those it keeps."""


class Outcome(Enum):
    """How a tuning ended."""

    TUNED = "biases tuned through the whole network"
    NO_GAIN = "biases left as they were: tuning did not help the hold-out"
    TOO_FEW = "biases left as they were: there are too few samples to tune and to check"
    NO_OUTPUT = "biases left as they were: the network has no floating-point output"
    DIVERGED = "biases left as they were: tuning met infinity or a value that is no number"
    UNSUPPORTED = "biases left as they were: the network cannot be differentiated"


@dataclass(frozen=True)
class BiasTuning:
    """Tuned biases.

    Attributes:
        layers: solutions by layer name, with new biases where the hold-out gained.
        loss_before, loss_after: on the hold-out; NaN where it was not evaluated.
        steps: that were made.
        outcome: how it ended.
        detail: names of the nodes in the way, when there are any.
    """

    layers: Solutions
    loss_before: float
    loss_after: float
    steps: int
    outcome: Outcome
    detail: str = ""


def tune_biases(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    solutions: Solutions,
    outputs: Mapping[str, QuantParams],
    feeds: Sequence[Feed],
    options: Tuning,
    *,
    tables: Tables | None = None,
    fixed: bool = False,
    memory_limit: int = 2**30,
    seed: int = 0,
    tick: Tick = lambda steps: None,
) -> BiasTuning:
    """Tune the biases of a solved network; the result is never worse than the start on the hold-out.

    Args:
        model: the prepared float model.
        layers: its quantised layers.
        solutions: theirs, by layer name.
        outputs: 8-bit grids of tensors that are quantised where they are made, by tensor name.
        feeds: calibration batches that can be read again; every eighth sample is held out.
        options: how long and how fast.
        tables: rows of quantised tables, by the name of their constant.
        fixed: the network takes batches of one size only.
        memory_limit: bytes that a step may take, roughly.
        seed: of the samples drawn.
        tick: called with the number of steps made since the last call.
    """
    return tune_region(
        model,
        layers,
        solutions,
        outputs,
        feeds,
        partial(find_targets, model, feeds, options.objective),
        options,
        fixed,
        tables=tables,
        memory_limit=memory_limit,
        seed=seed,
        tick=tick,
    )


def tune_region(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    solutions: Solutions,
    outputs: Mapping[str, QuantParams],
    feeds: Sequence[Feed],
    find: Callable[[], Sequence[Target]],
    options: Tuning,
    fixed: bool,
    *,
    tables: Tables | None = None,
    memory_limit: int = 2**30,
    seed: int = 0,
    tick: Tick = lambda steps: None,
) -> BiasTuning:
    """Tune a part of a network towards given values; the result is never worse than the start on the hold-out.

    Args:
        model: that part, in float.
        layers: its quantised layers.
        solutions: theirs, by layer name.
        outputs: 8-bit grids of tensors that are quantised where they are made, by tensor name.
        feeds: what the part reads in the quantised network; every eighth sample is held out.
        find: what it makes in the float network, for each feed.
        options: how long and how fast.
        fixed: the network takes batches of one size only.
        tables: rows of quantised tables, by the name of their constant.
        memory_limit: bytes that a step may take, roughly.
        seed: of the samples drawn.
        tick: called with the number of steps made since the last call.
    """
    keep = partial(BiasTuning, dict(solutions), np.nan, np.nan, 0)
    lacking = unsupported(model)
    if lacking:
        return keep(Outcome.UNSUPPORTED, "; ".join(map(str, lacking)))
    try:
        targets = find()
        if not targets or not any(has_bias(layer, solutions[layer.name]) for layer in layers):
            return keep(Outcome.NO_OUTPUT)
        program = read_program(model)
        rows = _rows(program, layers, feeds[0], options.rows, memory_limit)
        batches = Batches(feeds, [t.values for t in targets], rows, fixed, seed)
        if not batches.enough:
            return keep(Outcome.TOO_FEW)
        network = Network(program, layers, solutions, outputs, targets, options.features, tables)
        network.measure(solutions, batches)
        rates = _rates(network.start(solutions), options)
        return _descend(network, solutions, rates, batches, options, tick, jax.random.key(seed))
    except UnsupportedError as error:
        return keep(Outcome.UNSUPPORTED, str(error))


def _rates(unknowns: Unknowns, options: Tuning) -> Unknowns:
    """Learning rates in the shape of the unknowns."""
    return Unknowns(
        bias=dict.fromkeys(unknowns.bias, jnp.float32(options.rate)),
        weight=dict.fromkeys(unknowns.weight, jnp.float32(options.weight_rate)),
        integers=dict.fromkeys(unknowns.integers, jnp.float32(options.integer_rate)),
        input=dict.fromkeys(unknowns.input, jnp.float32(options.input_rate)),
    )


def _rows(program: Program, layers: Sequence[Layer], feed: Feed, wanted: int, memory_limit: int) -> int:
    """Samples that a step can take at once."""
    shapes = program.shapes({name: jnp.asarray(array) for name, array in feed.items()})
    sizes = {name: s.size * s.dtype.itemsize for name, s in shapes.items()}
    kept = sum(sizes[name] for name in program.crossing({layer.name for layer in layers}) if name in sizes)
    each = (kept + WORKING_TENSORS * max(sizes.values(), default=0)) / samples_in(feed)
    return int(np.clip(memory_limit // max(each, 1), 1, wanted))


def _descend(
    network: Network,
    start: Solutions,
    rates: Unknowns,
    batches: Batches,
    options: Tuning,
    tick: Tick,
    key: jax.Array,
) -> BiasTuning:
    forward = jax.vmap(network.losses, (None, None, 0, 0, None)) if batches.fixed else network.losses
    adam = optax.scale_by_adam(b1=0.9, b2=0.99)

    @jax.jit
    def evaluate(constants: Constants, unknowns: Unknowns, inputs: Named, teachers: Sequence[jax.Array]) -> jax.Array:
        return forward(constants, unknowns, inputs, teachers, None).reshape(batches.rows, -1).mean(axis=1)

    @jax.jit
    def step(
        constants: Constants,
        unknowns: Unknowns,
        state: optax.OptState,
        decay: jax.Array,
        inputs: Named,
        teachers: Sequence[jax.Array],
        mixing: Mixing | None,
    ) -> tuple[Unknowns, optax.OptState]:
        gradient = jax.grad(lambda u: forward(constants, u, inputs, teachers, mixing).mean())(unknowns)
        direction, state = adam.update(gradient, state)
        return jax.tree.map(lambda u, r, d: u - decay * r * d, unknowns, rates, direction), state

    def held_out(solutions: Solutions) -> float:
        constants, total, count = network.constants(solutions), 0.0, 0
        for inputs, teachers, valid in batches.held():
            found = np.asarray(evaluate(constants, nothing, inputs, teachers))
            total, count = total + float(found[:valid].sum()), count + valid
        return total / count

    constants, nothing = network.constants(start), network.start(start)
    unknowns, state = nothing, adam.init(nothing)
    best, before = start, held_out(start)
    least, waited, made = before, 0, 0
    finite = bool(np.isfinite(before))
    while finite and made < options.steps and waited < PATIENCE:
        for _ in range(min(-(-options.steps // CHECKS), options.steps - made)):
            decay = 0.5 * (1 + np.cos(np.pi * made / options.steps))
            mixing = Mixing(jax.random.fold_in(key, made), jnp.float32(options.mixing)) if options.mixing else None
            unknowns, state = step(constants, unknowns, state, jnp.float32(decay), *batches.draw(), mixing)
            made += 1
            tick(1)
        finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(unknowns))
        found = network.settled(start, unknowns) if finite else best
        loss = held_out(found)
        finite &= bool(np.isfinite(loss))
        waited = 0 if loss < least else waited + 1
        best, least = (found, loss) if loss < least else (best, least)
    outcome = Outcome.TUNED if least < before else Outcome.NO_GAIN if finite else Outcome.DIVERGED
    return BiasTuning(best, before, least, made, outcome)
