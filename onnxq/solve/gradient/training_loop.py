"""Gradient descent through a whole network, judged by samples that it does not learn from.

Adam's steps have rates relative to each unknown's unit, falling to 0 as a cosine. What is judged, and kept, is the
running mean of the iterates: a weight that swings between two integers has a mean on one side (Polyak, Juditsky,
"Acceleration of stochastic approximation by averaging", SIAM J. Control Optim. 1992).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import NDArray

from onnxq.config.optimization import Tuning
from onnxq.solve.gradient.augmentation import Augmentation, augmented
from onnxq.solve.gradient.fake_quantization import Mixing
from onnxq.solve.gradient.samples import Batches
from onnxq.solve.gradient.simulated import Constants, Named, Network, Solutions, Unknowns

CHECKS = 8
"""Evaluations of the hold-out."""

HELD_ROWS, MOST_COPIES = 128, 8
"""The hold-out is shown in changed copies, up to so many samples in all: fewer say too little."""

EARLIEST = 3
"""Evaluations after which a descent may be given up: the first ones come while its steps are longest."""

HOPELESS, SURE = -3.0, 1.0
"""What the hold-out gained, in standard errors: below the one a descent is given up, above the other it is kept."""

MEMORY = 0.98
"""What the running mean keeps of itself in a step."""


@dataclass(frozen=True)
class Descent:
    """What came of it.

    Attributes:
        layers: the solutions of least loss on the hold-out among those whose class scores diverge no more than the
            start's; those of the start unless that gain is larger than its standard error.
        before, after: mean loss of the start and of the result on the hold-out.
        gained: whether the result is another than the start.
        steps: that were made; fewer than asked for where the hold-out surely lost.
        finite: neither infinity nor a value that is no number was met.
    """

    layers: Solutions
    before: float
    after: float
    gained: bool
    steps: int
    finite: bool


def descend(
    network: Network,
    start: Solutions,
    batches: Batches,
    options: Tuning,
    steps: int,
    tick: Callable[[int], None],
    key: jax.Array,
) -> Descent:
    """Tune a network.

    Args:
        network: as a function of its unknowns.
        start: solutions to begin with.
        batches: samples to learn from, and to judge by.
        options: rates, and how samples are changed.
        steps: to make.
        tick: called with the number of steps made since the last call.
        key: of everything drawn but the samples.
    """
    run = _Compiled(network, start, batches, options)
    constants, unknowns = network.constants(start), network.start(start)
    mean, state = unknowns, run.adam.init(unknowns)
    judge = jax.random.fold_in(key, 0)
    first = run.held_out(start, judge)
    best, least, finite, made = start, first, bool(np.isfinite(first).all()), 0
    while finite and made < steps:
        for _ in range(min(-(-steps // CHECKS), steps - made)):
            made += 1
            decay = jnp.float32(0.5 * (1 + np.cos(np.pi * (made - 1) / steps)))
            kept = jnp.float32(min(MEMORY, (made - 1) / (made + 9)))
            draw = (*batches.draw(), jax.random.fold_in(key, made))
            unknowns, mean, state = run.step(constants, (unknowns, mean, state), decay, kept, *draw)
            tick(1)
        finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(mean))
        found = network.settled(start, mean) if finite else best
        losses = run.held_out(found, judge)
        finite &= bool(np.isfinite(losses).all())
        (loss, apart), (least_loss, _) = losses.mean(axis=1), least.mean(axis=1)
        if loss < least_loss and apart <= first[1].mean():
            best, least = found, losses
        if made * CHECKS >= EARLIEST * steps and in_errors(first[0] - losses[0]) < HOPELESS:
            break
    gained = in_errors(first[0] - least[0]) > SURE
    found, losses = (best, least) if gained else (start, first)
    return Descent(found, float(first[0].mean()), float(losses[0].mean()), gained, made, finite)


def in_errors(gains: NDArray[np.float64]) -> float:
    """Mean of what each held-out sample gained, in standard errors of that mean; 0 where there is but one sample."""
    error = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else np.inf
    return float(gains.mean() / max(error, 1e-30))


Carry = tuple[Unknowns, Unknowns, optax.OptState]


class _Compiled:
    """A step and an evaluation, compiled once."""

    def __init__(self, network: Network, start: Solutions, batches: Batches, options: Tuning) -> None:
        self.adam = optax.scale_by_adam(b1=0.9, b2=0.99)
        self._network, self._batches, self._options = network, batches, options
        self._nothing = network.start(start)
        self._rates = _rates(self._nothing, options)
        self._judged = jax.vmap(network.judged, (None, None, 0, 0, None)) if batches.fixed else network.judged
        self.step = jax.jit(self._step)
        self._evaluate = jax.jit(self._losses)
        held = max(batches.held_rows, 1)
        self._copies = int(np.clip(HELD_ROWS // held, 1, MOST_COPIES)) if options.augments else 1

    def held_out(self, solutions: Solutions, key: jax.Array) -> NDArray[np.float64]:
        """Mean loss and divergence of each held-out sample's copies, the same every time, (2, samples)."""
        constants, found = self._network.constants(solutions), []
        for at, (inputs, teachers, valid) in enumerate(self._batches.held()):
            total = np.zeros((2, valid))
            for copy in range(self._copies):
                drawn = jax.random.fold_in(key, copy * HELD_ROWS + at)
                total += np.asarray(self._evaluate(constants, inputs, teachers, drawn))[:, :valid]
            found.append(total / self._copies)
        return np.concatenate(found, axis=1)

    def _step(
        self,
        constants: Constants,
        carry: Carry,
        decay: jax.Array,
        kept: jax.Array,
        inputs: Named,
        teachers: Sequence[jax.Array],
        key: jax.Array,
    ) -> Carry:
        unknowns, mean, state = carry
        for_mixing, for_changes = jax.random.split(key)
        mixing = Mixing(for_mixing, jnp.float32(self._options.mixing)) if self._options.mixing else None
        inputs, wanted = self._changed(inputs, teachers, for_changes)
        gradient = jax.grad(lambda u: self._judged(constants, u, inputs, wanted, mixing)[0].mean())(unknowns)
        direction, state = self.adam.update(gradient, state)
        unknowns = jax.tree.map(lambda u, r, d: u - decay * r * d, unknowns, self._rates, direction)
        return unknowns, jax.tree.map(lambda m, u: kept * m + (1 - kept) * u, mean, unknowns), state

    def _losses(self, constants: Constants, inputs: Named, teachers: Sequence[jax.Array], key: jax.Array) -> jax.Array:
        inputs, wanted = self._changed(inputs, teachers, key)
        found = self._judged(constants, self._nothing, inputs, wanted, None)
        return jnp.stack([part.reshape(self._batches.rows, -1).mean(axis=1) for part in found])

    def _changed(
        self, inputs: Named, teachers: Sequence[jax.Array], key: jax.Array
    ) -> tuple[Named, Sequence[jax.Array] | None]:
        """Samples to be shown, and what the float network makes of them where that is known."""
        options = self._options
        if not options.augments:
            return inputs, teachers
        how = Augmentation(options.mixtures, options.mirrored, options.shift)
        return augmented(inputs, how, key, feeds=self._batches.fixed), None


def _rates(unknowns: Unknowns, options: Tuning) -> Unknowns:
    """Learning rates in the shape of the unknowns."""
    return Unknowns(
        bias=dict.fromkeys(unknowns.bias, jnp.float32(options.rate)),
        weight=dict.fromkeys(unknowns.weight, jnp.float32(options.weight_rate)),
        integers=dict.fromkeys(unknowns.integers, jnp.float32(options.integer_rate)),
        input=dict.fromkeys(unknowns.input, jnp.float32(options.input_rate)),
    )
