"""AdaQuant's unknowns: a layer's solution in terms that suit one learning rate, and back on its grids.

Weights count in steps of their grid, scales by their logarithm relative to the start, the bias in standard
deviations of the output.
"""

from __future__ import annotations

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from onnxq.config.optimization import Refinement
from onnxq.quant.spec import QuantParams
from onnxq.solve.gradient.fake_quantization import numbers
from onnxq.solve.problem import LayerProblem, Solution, Status, weighted_power


class Unknowns(NamedTuple):
    """What is learnt; shapes as in :class:`LayerProblem`.

    Attributes:
        weight: in steps of the grid, (G, K, N).
        log_scale: logarithm of the scale relative to its start, (G or 1, N or 1).
        bias: relative to its start, in units of the output's deviation, (G, N).
        log_input_scale: logarithm of the input's scale relative to its start, ().
        input_zero: zero point of the input relative to its start, ().
    """

    weight: jax.Array
    log_scale: jax.Array
    bias: jax.Array
    log_input_scale: jax.Array
    input_zero: jax.Array


class Setting(NamedTuple):
    """What stays fixed in a refinement; all traced.

    Attributes:
        scale: starting scales, (G, N).
        bias: starting bias, (G, N).
        deviation: of the output, ().
        bounds: lowest and highest integer of the weights, (2,).
        input: scale, zero point, lowest and highest integer of the input, (4,).
        quantize_input: whether the input is quantized at all, ().
        clipping: low and high end of what follows the layer, (2,).
        rates: learning rates, in the shape of the unknowns.
    """

    scale: jax.Array
    bias: jax.Array
    deviation: jax.Array
    bounds: jax.Array
    input: jax.Array
    quantize_input: jax.Array
    clipping: jax.Array
    rates: Unknowns


def initial(problem: LayerProblem, start: Solution) -> Unknowns:
    """The start in the unknowns' terms: each weight inside the cell of its integer, on its float value's side."""
    nearest = problem.weight / start.scale[:, None]
    weight = start.integers + np.clip(nearest - start.integers, -0.45, 0.45)
    groups, channels = start.scale.shape
    scales = (1, 1) if problem.one_scale else (1 if problem.shared_scales else groups, channels)
    return Unknowns(
        weight=jnp.asarray(weight, jnp.float32),
        log_scale=jnp.zeros(scales, jnp.float32),
        bias=jnp.zeros((groups, channels), jnp.float32),
        log_input_scale=jnp.zeros((), jnp.float32),
        input_zero=jnp.zeros((), jnp.float32),
    )


def make_setting(problem: LayerProblem, start: Solution, options: Refinement) -> Setting:
    """What a refinement leaves fixed; what is not to be learnt has rate 0."""
    grid = start.input
    fit_input = options.learn_input and problem.fit_input and grid is not None
    fixed_zero = grid is None or grid.zero_point == grid.spec.qmin or grid.spec.symmetric
    steps = 1.0 if grid is None else float(grid.spec.qmax - grid.spec.qmin)
    f = partial(jnp.asarray, dtype=jnp.float32)
    return Setting(
        scale=f(start.scale),
        bias=f(start.bias),
        deviation=f(_deviation(problem)),
        bounds=f([problem.weight_spec.qmin, problem.weight_spec.qmax]),
        input=f((1.0, 0.0, 0.0, 0.0)) if grid is None else numbers(grid),
        quantize_input=jnp.asarray(grid is not None),
        clipping=f([problem.low, problem.high]),
        rates=Unknowns(
            weight=f(options.weight_rate * options.learn_weights),
            log_scale=f(options.scale_rate * options.learn_scales),
            bias=f(options.bias_rate * problem.fit_bias),
            log_input_scale=f(options.scale_rate * fit_input),
            input_zero=f(0.0 if fixed_zero or not fit_input else options.scale_rate * steps / 8),
        ),
    )


def _deviation(problem: LayerProblem) -> float:
    """Standard deviation of the activated float output, the unit of the bias."""
    made = problem.y.clip(problem.low, problem.high)
    mean = np.average(made, axis=1, weights=problem.influence).mean(dtype=np.float64)
    return max(math.sqrt(weighted_power(made - np.float32(mean), problem.influence)), 1e-12)


def solution_of(problem: LayerProblem, start: Solution, found: Unknowns) -> Solution:
    """The unknowns put back on their grids."""
    spec, grid = problem.weight_spec, start.input
    integers = np.clip(np.round(found.weight), spec.qmin, spec.qmax).astype(np.float32)
    scale = (start.scale * np.exp(found.log_scale)).astype(np.float32)
    bias = (start.bias + _deviation(problem) * found.bias).astype(np.float32)
    if grid is not None:
        zero = int(np.clip(np.round(grid.zero_point + found.input_zero), grid.spec.qmin, grid.spec.qmax))
        grid = QuantParams(grid.spec, np.asarray(grid.scale * np.exp(found.log_input_scale), np.float32), zero)
    return Solution(integers, scale, bias, grid, 0.0, Status.REFINED)
