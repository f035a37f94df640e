"""One layer solved: from its rows to the integers that will be stored."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np

from onnxq.calibration.layer_rows import Rows
from onnxq.config import Config
from onnxq.config.targets import LayerRule, Target
from onnxq.ir.layer import Layer
from onnxq.ir.linear_form import multiplied_in_pairs, scales_are_shared, stored_weight, weight_matrix
from onnxq.quant.affine import quantize
from onnxq.quant.saturation import without_saturation
from onnxq.quant.scale_search import SMALLEST_SCALE
from onnxq.quant.solution import LayerSolution, bias_scale, on_bias_grid, smallest_weight_scale
from onnxq.quant.spec import Granularity, QuantParams, weight_spec
from onnxq.quant.tail import NO_TAILS, Tails
from onnxq.runtime.blas_threads import threads_for
from onnxq.solve.closed_form.blocked import solve_blocked
from onnxq.solve.closed_form.initial_solution import fitted_input, round_to_nearest, scored, second_order
from onnxq.solve.closed_form.normal_equations import Groundwork
from onnxq.solve.closed_form.row_weights import influence
from onnxq.solve.problem import Array, LayerProblem, Solution, Status


@dataclass(frozen=True)
class LayerTask:
    """What is asked of a layer.

    Attributes:
        bits: of the weights.
        block: inputs that share a scale of a channel; None where all do.
        target: what the runtime takes; a scale for each channel and int32 biases when None.
        fit_input: the input's grid may be fitted.
        bounded: rows of outlying power count for less.
        refit: rows held back are fitted too once a start has been chosen by them.
    """

    bits: int
    block: int | None = None
    target: Target | None = None
    fit_input: bool = False
    bounded: bool = True
    refit: bool = False


def make_problem(
    layer: Layer,
    weight: Array,
    bias: Array | None,
    task: LayerTask,
    grid: QuantParams | None,
    rows: Rows,
    tails: Tails = NO_TAILS,
) -> LayerProblem:
    """A layer and its rows in the solver's form.

    Args:
        layer: which.
        weight: float, in the stored shape.
        bias: float, (channels,); None where the layer has none.
        task: what is asked for.
        grid: of the input; None to leave it in float.
        rows: of its inputs and outputs.
        tails: what new samples bring beyond the input's values.
    """
    target, bits, block = task.target, task.bits, task.block
    rule = target.layers[layer.op] if target else LayerRule()
    one_scale = rule.one_scale and block is None
    signed_8_bit = bits == 8 and grid is not None and grid.spec.bits == 8 and not rule.unsigned
    matrix = weight_matrix(layer, weight)
    groups, _, channels = matrix.shape
    return LayerProblem(
        x=rows.x,
        x_float=rows.x_float,
        y=rows.y,
        train=rows.train,
        units=rows.units,
        influence=influence(rows.x, rows.y) if task.bounded else np.ones(len(rows.train), np.float32),
        weight=matrix,
        bias=np.zeros((groups, channels), np.float32) if bias is None else bias.reshape(groups, channels),
        low=layer.low,
        high=layer.high,
        weight_spec=weight_spec(bits, Granularity.PER_TENSOR if one_scale else Granularity.PER_CHANNEL),
        input=grid,
        shared_scales=scales_are_shared(layer),
        fit_input=task.fit_input,
        fit_bias=bias is not None or layer.op != "MatMul",
        pairs=multiplied_in_pairs(layer) if signed_8_bit else None,
        block=block,
        one_scale=one_scale,
        int32_bias=target is None or not target.float_bias,
        tails=tails,
        refit=task.refit,
    )


def solve_layer(
    layer: Layer, problem: LayerProblem, config: Config, seed: int, groundwork: Groundwork | None = None
) -> LayerSolution:
    """Quantize one layer: start, refine where the preset asks for it, settle on what will be stored.

    Args:
        layer: which.
        problem: its rows and what is asked of it.
        config: preset, second-order start.
        seed: of what is drawn at random.
        groundwork: of a problem that differs in the bits of the weights alone, whose input's grid is fitted.
    """
    with threads_for(problem.weight.shape[1]):
        if problem.block is not None:
            return solve_blocked(layer, problem, second_order=config.second_order)
        return _solve(layer, problem, config, seed, groundwork)


def _solve(
    layer: Layer, problem: LayerProblem, config: Config, seed: int, groundwork: Groundwork | None
) -> LayerSolution:
    began = time.perf_counter()
    problem = fitted_input(problem)
    plain = round_to_nearest(problem)
    solution = second_order(problem, plain, groundwork) if config.second_order else plain
    if config.refines:
        # JAX takes a second to load, and the light preset does without it.
        from onnxq.solve.gradient.adaquant import refine

        solution = refine(problem, solution, config.refinement, seed)
    settled = scored(problem, _settle(layer, problem, solution))
    columns = _stored_scales(problem, settled.scale)
    return LayerSolution(
        layer=layer.name,
        integers=stored_weight(layer, settled.integers.astype(np.int16)),  # type: ignore[arg-type]
        weight=QuantParams(problem.weight_spec, columns.astype(np.float32)),
        bias=settled.bias.reshape(-1) if problem.fit_bias else None,
        input=settled.input,
        loss_nearest=plain.loss,
        # Rows held back have been fitted since: what was found before that is the figure.
        loss=solution.loss if problem.refit else settled.loss,
        status=settled.status.value,
        seconds=time.perf_counter() - began,
        int32_bias=problem.int32_bias,
    )


def round_layer(
    layer: Layer, weight: Array, bias: Array | None, bits: int, grid: QuantParams | None, target: Target
) -> LayerSolution:
    """A layer's weights rounded to nearest on grids that reach to their extremes, and its bias as it is.

    Args:
        layer: which.
        weight: float, in the stored shape.
        bias: float, (channels,); None where the layer has none.
        bits: of the weights.
        grid: of the input; None where it stays in float.
        target: what the runtime takes.
    """
    one_scale = target.layers[layer.op].one_scale
    spec = weight_spec(bits, Granularity.PER_TENSOR if one_scale else Granularity.PER_CHANNEL)
    matrix = weight_matrix(layer, weight)
    scale = np.maximum(matrix.max(axis=1) / spec.qmax, matrix.min(axis=1) / spec.qmin)
    if one_scale:
        scale = np.full_like(scale, scale.max())
    elif scales_are_shared(layer):
        scale = np.broadcast_to(scale.max(axis=0), scale.shape)
    scale = np.maximum(scale, SMALLEST_SCALE).astype(np.float32)
    integers = quantize(matrix, scale[:, None], 0, spec.qmin, spec.qmax)
    stored = scale.reshape(-1)[:1] if one_scale else scale[0] if scales_are_shared(layer) else scale.reshape(-1)
    return LayerSolution(
        layer=layer.name,
        integers=np.asarray(stored_weight(layer, integers), np.int16),
        weight=QuantParams(spec, stored),
        bias=bias,
        input=grid,
        loss_nearest=np.nan,
        loss=np.nan,
        status=Status.NEAREST.value,
        seconds=0.0,
    )


def _stored_scales(problem: LayerProblem, scale: Array) -> Array:
    """Scales (G, N) as they are stored: one for each column of the weights, or a single one."""
    if problem.one_scale:
        return scale.reshape(-1)[:1]
    return scale[0] if problem.shared_scales else scale.reshape(-1)


def _settle(layer: Layer, problem: LayerProblem, solution: Solution) -> Solution:
    """Put weights back where a kernel computes them exactly, and the bias on its grid."""
    solution = _with_room_for_the_bias(layer, problem, solution)
    if problem.pairs is None:
        return solution
    return replace(solution, integers=without_saturation(solution.integers, problem.pairs))


def _with_room_for_the_bias(layer: Layer, problem: LayerProblem, solution: Solution) -> Solution:
    """Widen the steps of channels whose bias would overflow int32, and put the bias on its grid."""
    if solution.input is None or not problem.fit_bias:
        return solution
    if not layer.adds_integer_bias(problem.weight_spec.bits, solution.input.spec.bits):
        return solution
    groups, channels = solution.scale.shape
    columns = channels if problem.shared_scales else groups * channels
    least = smallest_weight_scale(solution.bias.reshape(-1), solution.input.scale, columns).reshape(-1, channels)
    least = np.full_like(least, least.max()) if problem.one_scale else least
    scale = np.maximum(solution.scale, least).astype(np.float32)
    integers = (solution.integers * (solution.scale / scale)[:, None]).round().astype(np.float32)
    if not problem.int32_bias:  # onnxruntime puts a float one on this grid of its own accord: it must have room there
        return replace(solution, scale=scale, integers=integers)
    grid = bias_scale(solution.input.scale, _stored_scales(problem, scale), layer.channels)
    bias = on_bias_grid(solution.bias.reshape(-1), grid).reshape(solution.bias.shape)
    return replace(solution, scale=scale, integers=integers, bias=bias)
