"""Matrices with a scale for each block of inputs, beside float inputs: weight-only quantization.

Closed forms, as for the other layers: scales of least error weighted by the diagonal of the Hessian,
error-propagating rounding towards the least-squares target, then scales refitted to the integers. With the
integers given, the error is a square in the scales of a channel; they are improved block by block,

    s_b ← s_b + q_bᵀ (H r)_b / (q_bᵀ H_bb q_b),      r = w* − Σ_b s_b q_b.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.layer_rows import selected
from onnxq.ir.layer import Layer
from onnxq.ir.linear_form import stored_weight
from onnxq.quant.affine import quantize
from onnxq.quant.scale_search import weight_scale
from onnxq.quant.solution import LayerSolution
from onnxq.quant.spec import Granularity, QuantParams, QuantSpec
from onnxq.solve.closed_form.moments import bias_correction, damped, residual_correlation
from onnxq.solve.closed_form.normal_equations import fitted_moments
from onnxq.solve.closed_form.rounding import make_target, rounded
from onnxq.solve.closed_form.significance import exceeds_chance, row_errors
from onnxq.solve.problem import LayerProblem, Status, output_error

Array = NDArray[np.float32]
Double = NDArray[np.float64]

DAMPINGS = (0.01, 0.1)
"""Ridges tried, as fractions of the mean of H's diagonal."""

SCALE_SWEEPS = 2
"""Times that the scales of all blocks are refitted."""


@dataclass(frozen=True)
class _Blocked:
    """Integers (K, N), scales (blocks, N) and bias (N,) with their loss on the hold-out."""

    integers: Array
    scale: Array
    bias: Array
    loss: float
    status: Status


def solve_blocked(layer: Layer, problem: LayerProblem, *, second_order: bool) -> LayerSolution:
    """Quantize the weights of one layer with scales of blocks; its input stays in float.

    Args:
        layer: a Gemm or MatMul.
        problem: with a block size that divides the inputs, and one group.
        second_order: propagate errors; otherwise round to nearest.
    """
    began = time.perf_counter()
    spec = replace(problem.weight_spec, granularity=Granularity.PER_BLOCK)
    weight = problem.weight[0]
    scale = block_scales(weight, _block(problem), spec)
    integers = quantize(weight, spread(scale, weight.shape[0]), 0, spec.qmin, spec.qmax)
    best = plain = _scored(problem, integers, scale, problem.bias[0], Status.NEAREST)
    if second_order:
        best = min(_propagated(problem, spec), key=lambda found: found.loss)
        if not exceeds_chance(problem, _row_errors(problem, plain) - _row_errors(problem, best)):
            best = plain
    stored = stored_weight(layer, best.integers[None].astype(np.int16))
    return LayerSolution(
        layer=layer.name,
        integers=np.asarray(stored, np.int16),
        weight=QuantParams(spec, np.ascontiguousarray(best.scale.T if layer.transposed else best.scale)),
        bias=best.bias if problem.fit_bias else None,
        input=None,
        loss_nearest=plain.loss,
        loss=best.loss,
        status=best.status.value,
        seconds=time.perf_counter() - began,
    )


def block_scales(weight: Array, block: int, spec: QuantSpec, importance: Array | None = None) -> Array:
    """Scale of least squared error for each block of inputs of each channel, (blocks, N).

    Args:
        weight: (K, N).
        block: inputs in a block; divides K.
        spec: the grid.
        importance: of each input, (K,); 1 everywhere when None.
    """
    inputs, channels = weight.shape
    rows = weight.reshape(-1, block, channels).transpose(0, 2, 1).reshape(-1, block)
    h = None if importance is None else np.repeat(importance.reshape(-1, block), channels, axis=0)
    return weight_scale(np.ascontiguousarray(rows), spec, h).reshape(inputs // block, channels)


def spread(scale: Array, inputs: int) -> Array:
    """The scale of every weight, (K, N), from those of blocks, (blocks, N)."""
    return np.repeat(scale, inputs // len(scale), axis=0)


def refitted_scales(hessian: Double, target: Double, integers: Array, scale: Array) -> Array:
    """Scales of less error for given integers, (blocks, N); the formula at the top.

    Args:
        hessian: (K, K).
        target: real weights, (K, N).
        integers: (K, N).
        scale: where to start, (blocks, N).
    """
    block = len(integers) // len(scale)
    fit = scale.astype(np.float64)
    gradient = hessian @ (target - integers * spread(scale, len(integers)))
    for _ in range(SCALE_SWEEPS):
        for b in range(len(scale)):
            rows = slice(b * block, (b + 1) * block)
            q = integers[rows]
            curvature = np.einsum("kn,kn->n", q, hessian[rows, rows] @ q)
            step = np.einsum("kn,kn->n", q, gradient[rows]) / np.maximum(curvature, 1e-30)
            moved = np.where(curvature > 0, np.clip(fit[b] + step, 0.5 * scale[b], 2 * scale[b]), fit[b])
            gradient -= hessian[:, rows] @ (q * (moved - fit[b]))
            fit[b] = moved
    return fit.astype(np.float32)


def _block(problem: LayerProblem) -> int:
    assert problem.block is not None
    return problem.block


def _propagated(problem: LayerProblem, spec: QuantSpec) -> list[_Blocked]:
    """Solutions by error propagation at several dampings, each with its scales searched and then refitted."""
    m = fitted_moments(problem)
    left = residual_correlation(m, problem.weight)
    found: list[_Blocked] = []
    for damping in DAMPINGS:
        hessian = damped(m.xx, damping)
        target = make_target(m, damping, left, problem.weight)
        scale = block_scales(
            target.weight[0].astype(np.float32), _block(problem), spec, np.diagonal(hessian[0]).astype(np.float32)
        )
        for refit in (False, True):
            if refit:
                scale = refitted_scales(hessian[0], target.weight[0], found[-1].integers, scale)
            wide = spread(scale, len(problem.weight[0]))[None]
            integers = rounded(target, wide, spec).integers
            bias = bias_correction(m, integers * wide)[0] if problem.fit_bias else problem.bias[0]
            found.append(_scored(problem, integers[0], scale, bias, Status.SECOND_ORDER))
    return found


def _row_errors(problem: LayerProblem, found: _Blocked) -> Double:
    weight = found.integers * spread(found.scale, len(found.integers))
    return row_errors(problem, weight[None], found.bias[None], None)


def _scored(problem: LayerProblem, integers: Array, scale: Array, bias: Array, status: Status) -> _Blocked:
    held = problem.held
    weight = integers * spread(scale, len(integers))
    predicted = np.matmul(selected(problem.x, held), weight[None]) + bias
    return _Blocked(integers, scale, bias, output_error(problem, predicted, held), status)
