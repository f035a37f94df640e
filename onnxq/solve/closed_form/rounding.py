"""Rounding of a layer's weights: the point of their grid that is nearest to a target in the metric of the inputs.

    min over integers q of  e(q) = (s·q − W*)ᵀ H (s·q − W*)

First column by column, from the last to the first, with H = RᵀR: the error made by a column is pushed onto
those still to be rounded. That is Babai's nearest-plane algorithm, and gives the integers of GPTQ (Frantar et
al. 2022). Then one integer at a time is moved to where the error is least while the others stay,

    q_k ← clip(⌊ q_k + (H (W* − s·q))_k / (H_kk s) ⌉),

until nothing moves: each move lowers the error, which is exact for the whole calibration set (coordinate
descent; Behdin et al., "QuantEase", 2023).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from onnxq.quant.spec import QuantSpec
from onnxq.solve.closed_form.moments import Factor, Moments, damped, factorize, least_squares_target

Double = NDArray[np.float64]
Array = NDArray[np.float32]

BLOCK = 64
"""Columns rounded between two matrix products."""

SWEEPS, FIRST_SWEEPS = 3, 1
"""Times that all columns are visited again, at most: of what is kept, and of what is but compared. Later visits move
next to nothing."""

REACHES = (0.8, 0.86, 0.93, 1.07, 1.15)
"""Scales tried for each channel below 8 bits, as factors: those of least error when every weight is rounded by itself
are not those of least error when weights make up for each other."""


@dataclass(frozen=True)
class Target:
    """What is rounded.

    Attributes:
        hessian: damped, (G, K, K), float32: only differences are weighed with it.
        factor: of it, float32 as well.
        weight: real weights, (G, K, N).
        damping: of the Hessian, as a fraction of its diagonal's mean.
    """

    hessian: Array
    factor: Factor
    weight: Double
    damping: float = 0.0


def make_target(moments: Moments, damping: float, left: Double, weight: Array) -> Target:
    """What to round at a damping of the Hessian.

    Args:
        moments: of the layer's rows.
        damping: as :func:`onnxq.solve.closed_form.moments.damped` takes it.
        left: what is :func:`onnxq.solve.closed_form.moments.residual_correlation`, (G, K, N).
        weight: float weights, (G, K, N).
    """
    factor = factorize(moments.xx, damping)
    wanted = least_squares_target(factor, left, weight)
    factor = replace(factor, lower=factor.lower.astype(np.float32))
    return Target(damped(moments.xx, damping, np.float32), factor, wanted, damping)


@dataclass(frozen=True)
class Rounded:
    """Weights on a grid.

    Attributes:
        integers: (G, K, N), float32.
        scale: (G, N), or (G, K, N) where the columns of a channel differ.
        error: of each channel, (G, N).
    """

    integers: Array
    scale: Array
    error: Array


def rounded(target: Target, scale: Array, spec: QuantSpec, sweeps: int = SWEEPS) -> Rounded:
    """A target rounded at given scales, (G, N) or (G, K, N)."""
    return coordinate_descent(target, gptq_round(target, scale, spec), scale, spec, sweeps)


def gptq_round(target: Target, scale: Array, spec: QuantSpec) -> Array:
    """Integers (G, K, N) of a target rounded column by column, each making up for the errors of those before it.

    Args:
        target: what is rounded.
        scale: (G, N), or (G, K, N) where the columns of a channel differ.
        spec: the grid.
    """
    factor = target.factor
    order, upper = factor.order[:, :, None], factor.lower.transpose(0, 2, 1).astype(np.float32, copy=False)
    scales = scale[:, None] if scale.ndim == 2 else np.take_along_axis(scale, order, 1)
    wanted = (np.take_along_axis(target.weight, order, 1) / scales).astype(np.float32)
    # Errors are counted in steps; where the steps of a channel differ, in real units.
    units = np.broadcast_to(np.float32(1) if scale.ndim == 2 else scales.astype(np.float32), wanted.shape)
    integers, error = np.empty_like(wanted), np.zeros_like(wanted)
    for stop in range(wanted.shape[1], 0, -BLOCK):
        start = max(stop - BLOCK, 0)
        pushed = np.matmul(upper[:, start:stop, stop:], error[:, stop:])
        for k in range(stop - 1, start - 1, -1):
            inner = np.matmul(upper[:, k : k + 1, k + 1 : stop], error[:, k + 1 : stop])[:, 0]
            push = (pushed[:, k - start] + inner) / upper[:, k, k, None] / units[:, k]
            integers[:, k] = (wanted[:, k] + push).round().clip(spec.qmin, spec.qmax)
            error[:, k] = (wanted[:, k] - integers[:, k]) * units[:, k]
    result = np.empty_like(integers)
    np.put_along_axis(result, np.broadcast_to(order, integers.shape), integers, 1)
    return result


def coordinate_descent(target: Target, integers: Array, scale: Array, spec: QuantSpec, sweeps: int = SWEEPS) -> Rounded:
    """Integers (G, K, N) moved one at a time to where the error is least while the others of their channel stay."""
    hessian, q = target.hessian, integers.copy()
    scales = np.broadcast_to(scale[:, None] if scale.ndim == 2 else scale, q.shape)
    gradient = np.matmul(hessian, (target.weight - q * scales).astype(np.float32))
    for _ in range(sweeps):
        before = q.copy()
        for start in range(0, q.shape[1], BLOCK):
            block = slice(start, start + BLOCK)
            change = _visited(q[:, block], gradient[:, block], hessian[:, block, block], scales[:, block], spec)
            if change.any():
                gradient -= np.matmul(hessian[:, :, block], change * scales[:, block])
        if np.array_equal(before, q):
            break
    gap = target.weight - q * scales
    return Rounded(q, scale, np.einsum("gkn,gkn->gn", gap, gradient).astype(np.float32))


def _visited(q: Array, gradient: Array, hessian: Array, scales: Array, spec: QuantSpec) -> Array:
    """Visit the columns of a block, (G, B, N), in place; how far each moved, in steps."""
    change, left = np.zeros_like(q), gradient.copy()
    units = np.einsum("gkk->gk", hessian)[:, :, None] * scales
    for k in range(q.shape[1]):
        change[:, k] = (q[:, k] + left[:, k] / units[:, k]).round().clip(spec.qmin, spec.qmax) - q[:, k]
        if change[:, k].any():
            q[:, k] += change[:, k]
            left[:, k + 1 :] -= hessian[:, k, k + 1 :, None] * (change[:, k] * scales[:, k])[:, None]
    return change


def rescaled(target: Target, start: Rounded, spec: QuantSpec) -> Rounded:
    """The target at the scales that suit each channel's integers best; no channel's error is larger than at the start.

    Args:
        target: what is rounded.
        start: at scales that channels have of their own, (G, N).
        spec: the grid.
    """
    best = start
    for reach in REACHES if spec.bits < 8 else ():
        best = _better(best, rounded(target, np.float32(reach) * start.scale, spec, FIRST_SWEEPS))
    for sweeps in (FIRST_SWEEPS, SWEEPS):
        scale = fitted_scale(target, best)
        best = _better(best, rounded(target, scale, spec, FIRST_SWEEPS))
        best = _better(best, coordinate_descent(target, best.integers, fitted_scale(target, best), spec, sweeps))
    return best


def _better(one: Rounded, other: Rounded) -> Rounded:
    """Of each channel the one of less error."""
    less = other.error < one.error
    return Rounded(
        np.where(less[:, None], other.integers, one.integers),
        np.where(less, other.scale, one.scale),
        np.where(less, other.error, one.error),
    )


def fitted_scale(target: Target, found: Rounded) -> Array:
    """Scales of least error for given integers: s = (qᵀHw*) / (qᵀHq), a channel at a time, (G, N)."""
    weighted = np.matmul(target.hessian, found.integers)
    above = np.einsum("gkn,gkn->gn", weighted, target.weight)
    below = np.einsum("gkn,gkn->gn", weighted, found.integers, dtype=np.float64)
    fit = np.where(below > 0, above / np.maximum(below, 1e-30), found.scale)
    return np.where((fit > 0.5 * found.scale) & (fit < 2 * found.scale), fit, found.scale).astype(np.float32)
