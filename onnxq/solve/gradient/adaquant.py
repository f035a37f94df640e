"""AdaQuant: weights, scales, input grid and bias of one layer refined together by gradient.

    min over u, s, b, s_x, z_x  of  E ‖ act(Y) − act( Q_x(X) · s·clip(⌊u⌉) + b ) ‖²

u are the weights in units of their grid's step, continuous; rounding passes gradients straight through,
clipping keeps its own gradient. act is the clipping that follows the layer in the graph. Everything is
expressed relative to the grid (weights in steps, scales by their logarithm, the bias in standard
deviations of the output), so that one learning rate suits every layer and bit-width.

Rows are drawn in advance, the hold-out is evaluated at intervals and the best iterate is kept.
Bits, ranges and rates are traced: one executable serves every bit-width of a shape.

Reference: Hubara et al., "Accurate Post Training Quantization With Small Calibration Sets", ICML 2021,
eqs. 2 and 3; the mixing of quantized and float inputs is Wei et al., "QDrop", ICLR 2022.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.typing import ArrayLike
from numpy.typing import NDArray

from onnxq.config.optimization import Refinement
from onnxq.quant.affine import dequantize, quantize
from onnxq.solve.closed_form.initial_solution import scored
from onnxq.solve.gradient.adaquant_parameters import Setting, Unknowns, initial, make_setting, solution_of
from onnxq.solve.problem import Array, LayerProblem, Solution, Status

CHECKS = 12
"""Evaluations of the hold-out in a refinement."""

MOST_HELD_ROWS = 4096
"""Hold-out rows that an evaluation uses at most."""

STEP_ELEMENTS, FEWEST_ROWS = 2**19, 64
"""Inputs that a step reads: wide layers take fewer rows, down to a floor; depthwise ones are wide in this sense."""


class _Rows(NamedTuple):
    """Rows of a layer, (R, G, ·): inputs, those of the float network where they are mixed in, and outputs."""

    x: jax.Array
    x_float: jax.Array | None
    y: jax.Array


def refine(problem: LayerProblem, start: Solution, options: Refinement, seed: int) -> Solution:
    """Refine a starting solution; gives it back unless the hold-out prefers the result.

    Scales, input grid and bias are learnt first, then the weights with them: weights that move over
    their grid while the grid itself still moves do more harm than good.

    Args:
        problem: the layer and its rows.
        start: where to begin.
        options: what is learnt, how fast and how long.
        seed: of the rows drawn and of the mixing.
    """
    best = start
    for phase, learn_weights in enumerate((False, True)):
        if learn_weights and not options.learn_weights:
            break
        found = _descent(problem, best, replace(options, learn_weights=learn_weights), seed + phase)
        if found is None:
            return replace(best, status=Status.FALLEN_BACK)
        best = found if found.loss < best.loss else best
    return best


def _descent(problem: LayerProblem, start: Solution, options: Refinement, seed: int) -> Solution | None:
    """The best iterate of one descent; None when it met NaN or infinity."""
    rng = np.random.default_rng([seed, 1])
    train, held = np.flatnonzero(problem.train), np.flatnonzero(problem.held)
    held = _spread(held, problem.influence[held], MOST_HELD_ROWS)
    counts = problem.influence[train].astype(np.float64)
    each = problem.x.shape[0] * problem.x.shape[2]
    rows = int(np.clip(STEP_ELEMENTS // each, FEWEST_ROWS, options.rows))
    batches = rng.choice(train, size=(CHECKS, -(-options.steps // CHECKS), rows), p=counts / counts.sum())
    best, finite = _descend(
        initial(problem, start),
        make_setting(problem, start, options),
        _Rows(_row_major(problem.x), _row_major(problem.x_float) if options.mixing else None, _row_major(problem.y)),
        jnp.asarray(batches),
        jnp.asarray(held),
        jax.random.key(seed),
        jnp.float32(options.mixing),
    )
    refined = scored(problem, solution_of(problem, start, jax.tree.map(np.asarray, best)))
    return refined if bool(finite) and np.isfinite(refined.loss) else None


def _spread(rows: NDArray[np.intp], counts: Array, most: int) -> NDArray[np.intp]:
    """So many rows at most, evenly spread by how much they count."""
    wanted = min(len(rows), most)
    reached = np.cumsum(counts, dtype=np.float64)
    places = np.searchsorted(reached, (np.arange(wanted) + 0.5) / wanted * reached[-1])
    return np.asarray(rows[places], np.intp)


def _row_major(rows: Array) -> jax.Array:
    """Rows first, (R, G, ·): one draw is one stretch of memory."""
    return jnp.asarray(np.ascontiguousarray(rows.transpose(1, 0, 2)))


def straight_through(exact: jax.Array, smooth: jax.Array) -> jax.Array:
    """The exact value with the smooth value's gradient."""
    return smooth + lax.stop_gradient(exact - smooth)


def _fake_quantize(x: jax.Array, scale: ArrayLike, zero: ArrayLike, qmin: ArrayLike, qmax: ArrayLike) -> jax.Array:
    """Fake quantization whose rounding is straight through and whose clipping has its own gradient."""
    smooth = jnp.clip(x / scale + zero, qmin, qmax)
    return dequantize(straight_through(quantize(x, scale, jnp.round(zero), qmin, qmax), smooth), scale, zero)


def predict(
    unknowns: Unknowns, setting: Setting, x: jax.Array, keep: jax.Array | None, x_float: jax.Array | None
) -> jax.Array:
    """Activated output of the quantized layer for rows x, (G, R, N).

    Args:
        unknowns: the current iterate.
        setting: what is fixed.
        x: rows, (G, R, K).
        keep: which elements are taken quantized, for the mixing; all when None.
        x_float: rows of the float network, for the others.
    """
    scale = setting.input[0] * jnp.exp(unknowns.log_input_scale)
    zero = jnp.clip(setting.input[1] + unknowns.input_zero, setting.input[2], setting.input[3])
    zero = straight_through(jnp.round(zero), zero)
    read = jnp.where(setting.quantize_input, _fake_quantize(x, scale, zero, setting.input[2], setting.input[3]), x)
    if keep is not None and x_float is not None:
        read = jnp.where(keep, read, x_float)
    clipped = jnp.clip(unknowns.weight, setting.bounds[0], setting.bounds[1])
    integers = straight_through(jnp.round(clipped), clipped)
    weight = integers * (setting.scale * jnp.exp(unknowns.log_scale))[:, None]
    bias = setting.bias + setting.deviation * unknowns.bias
    if weight.shape[2] == 1:  # depthwise: a batch of tiny products is slow on a CPU, a weighted sum is not
        made = (read * weight.transpose(0, 2, 1)).sum(axis=2, keepdims=True)
    else:
        made = jnp.matmul(read, weight, precision=lax.Precision.HIGHEST)
    made = made + bias[:, None]
    return jnp.clip(made, setting.clipping[0], setting.clipping[1])


@jax.jit
def _descend(
    initial: Unknowns,
    setting: Setting,
    given: _Rows,
    batches: jax.Array,
    held: jax.Array,
    key: jax.Array,
    mixing: jax.Array,
) -> tuple[Unknowns, jax.Array]:
    """The best iterate on the hold-out, and whether every loss was finite."""
    x, x_float, y = given
    adam = optax.scale_by_adam(b1=0.9, b2=0.99)
    total = batches.shape[0] * batches.shape[1]

    def loss(unknowns: Unknowns, rows: jax.Array, key: jax.Array | None) -> jax.Array:
        chosen = x[rows].swapaxes(0, 1)
        wanted = jnp.clip(y[rows].swapaxes(0, 1), setting.clipping[0], setting.clipping[1])
        keep = other = None
        if key is not None and x_float is not None:
            keep = jax.random.bernoulli(key, 1 - mixing, chosen.shape)
            other = x_float[rows].swapaxes(0, 1)
        made = predict(unknowns, setting, chosen, keep, other)
        return jnp.square((made - wanted) / setting.deviation).mean()

    def step(
        carry: tuple[Unknowns, optax.OptState, jax.Array], rows: jax.Array
    ) -> tuple[tuple[Unknowns, optax.OptState, jax.Array], jax.Array]:
        unknowns, state, count = carry
        value, gradient = jax.value_and_grad(loss)(unknowns, rows, jax.random.fold_in(key, count))
        direction, state = adam.update(gradient, state)
        decay = 0.5 * (1 + jnp.cos(jnp.pi * count / total))
        unknowns = jax.tree.map(lambda p, r, d: p - decay * r * d, unknowns, setting.rates, direction)
        return (unknowns, state, count + 1), value

    def stretch(
        carry: tuple[Unknowns, optax.OptState, jax.Array, Unknowns, jax.Array], rows: jax.Array
    ) -> tuple[tuple[Unknowns, optax.OptState, jax.Array, Unknowns, jax.Array], jax.Array]:
        unknowns, state, count, best, least = carry
        (unknowns, state, count), values = lax.scan(step, (unknowns, state, count), rows)
        value = loss(unknowns, held, None)
        better = value < least
        best = jax.tree.map(lambda new, old: jnp.where(better, new, old), unknowns, best)
        return (unknowns, state, count, best, jnp.where(better, value, least)), jnp.isfinite(values).all()

    carry = (initial, adam.init(initial), jnp.int32(0), initial, loss(initial, held, None))
    (_, _, _, best, _), finite = lax.scan(stretch, carry, batches)
    return best, finite.all()
