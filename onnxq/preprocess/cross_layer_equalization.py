"""How far to equalize: the balance between the noise of activations and that of weights.

Raising a channel of small range by s_c gives it more of the tensor's steps, but shrinks its weights in the
layers that read it, which leaves those with fewer steps of theirs. With range m_c of a channel, E[x_c²] its
power, step Δx of the tensor and Δw_n of an output channel, a layer's output noise is about

    Σ_nc W_nc²/s_c² · Δx²/12   +   Σ_n Δw_n²/12 · Σ_c s_c² E[x_c²],
    Δx = (max_c s_c x_c − min_c s_c x_c) / (2^a − 1)    (the range holding 0), and below 8 bits
    Δx = min( max_c s_c m_c, W(3·4^a) √(mean_c s_c² E[x_c²]) ) / (2^a − 1),
    Δw_n = max_c |W_nc|/s_c / (2^(w−1) − 1)

W is Lambert's function: a grid of few bits does not reach to the largest value, and b·W(3·4^a) is where it ends
best on values of Laplace's distribution with parameter b (Banner et al., "Post training 4-bit quantization of
convolutional networks for rapid-deployment", NeurIPS 2019, eq. 5, solved in closed form).

The factors s_c = ±(max m / m_c)^t are taken at the strength t of least noise relative to the layers' signal.
At 8-bit weights that is close to 1, at 4 bits and below smaller. There the second term counts for a part only: rounding
that propagates its error leaves less of it than nearest rounding, of which the formula speaks.

Where nothing but linear operators lies between, the channels whose values reach further below 0 than above it may
change sign: a tensor whose channels all lean to one side has a grid of up to half the step. Below 8 bits a grid ends
before the largest values, whose side then says little (MobileNet-V2: noise down by a tenth, and no better answers).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.special import lambertw

from onnxq.calibration.channels import ChannelExtremes, ChannelStatistics, channel_extremes
from onnxq.config import FLOAT_BITS
from onnxq.data import Feed
from onnxq.ir.ceiling import find_ceilings
from onnxq.ir.layer import Layer
from onnxq.ir.linear_form import beside_rows, weight_matrix
from onnxq.ir.model import Model
from onnxq.ir.save import to_outline
from onnxq.passes.equalize import Group, equalize, find_groups, observed_ranks
from onnxq.plan.values import LayerPlan, Plan

Array = NDArray[np.float32]

RANGE_SAMPLES = 64
"""Calibration samples over which the ranges of channels are taken."""

LARGEST = 1e15
"""Magnitude of values beyond which float32 cannot hold their power."""

STRENGTHS = np.linspace(0.0, 1.0, 9)

LARGEST_FACTOR = 32.0
"""Most that a channel is raised: the range of a nearly dead one is known too poorly to trust it further."""

UNCLIPPED_BITS = 8
"""A grid of so many bits is taken to reach to the largest value: Laplace's tails say too little of the few values that
it would clip."""

NO_CEILINGS: Mapping[str, float] = MappingProxyType({})

PROPAGATED = 0.3
"""Share of the noise of weights below 8 bits that counts: propagating the error leaves a fifth to two thirds of it in
most layers beside 16-bit inputs. Between 0.1 and 0.5 results differ little."""


def equalize_layers(
    model: Model, plan: Plan, feeds: Sequence[Feed], *, second_order: bool = True, through_clips: bool = True
) -> Model:
    """The same function with the channels of its tensors brought towards one range.

    Args:
        model: prepared; not changed.
        plan: the layers and their bits.
        feeds: a few samples, for the ranges.
        second_order: the rounding of weights will propagate its error.
        through_clips: also where an upper end has to move with its channel. The grid stays within the end that all
            had before, and cuts off what a new sample brings beyond what a raised channel showed.
    """
    groups = find_groups(model, [p.layer for p in plan.layers])
    groups = tuple(group for group in groups if through_clips or not group.clips)
    if not groups:
        return model
    extremes = channel_extremes(to_outline(model), observed_ranks(model, groups), feeds)
    planned = {p.layer.name: p for p in plan.layers}
    share = PROPAGATED if second_order else 1.0
    factors = []
    groups = tuple(g for g in groups if all(extremes[n].reach < LARGEST for n in g.quantized))
    ceilings = find_ceilings(model)
    for group in groups:
        weights = {r.name: weight_matrix(r, model.constant(r.weight)) for r in group.readers}
        factors.append(best_factors(group, extremes, planned, weights, share, ceilings))
    return equalize(model, groups, factors)


def best_factors(
    group: Group,
    extremes: Mapping[str, ChannelExtremes],
    planned: Mapping[str, LayerPlan],
    weights: Mapping[str, Array],
    share: float = PROPAGATED,
    ceilings: Mapping[str, float] = NO_CEILINGS,
) -> Array:
    """The factors of a group at the strength of least noise, (channels,).

    Which strength that is, is judged on every other sample by the factors of the others; the factors themselves are
    those of all samples.

    Args:
        group: which tensors.
        extremes: of the group's quantized tensors, by name.
        planned: bits by layer name.
        weights: of the group's readers in the solver's form, by layer name.
        share: of the noise of weights below 8 bits that counts.
        ceilings: where the grids of some tensors end at most, by name; no channel is raised beyond them.
    """
    first, second, every = slice(0, None, 2), slice(1, None, 2), slice(None)
    if min(len(extremes[name]) for name in group.quantized) < 2:
        second = first
    fitted, judged, whole = (
        {n: extremes[n].over(part, ceilings.get(n)) for n in group.quantized} for part in (first, second, every)
    )

    def noise(factors: Array) -> float:
        return sum(
            relative_noise(reader, weights[reader.name], judged[reader.input], factors, planned[reader.name], share)
            for reader in group.readers
        )

    signed = [False]
    if group.linear and all(planned[r.name].activations >= UNCLIPPED_BITS for r in group.readers):
        signed.append(True)
    trials = [(float(t), sign) for sign in signed for t in STRENGTHS]
    strength, sign = min(trials, key=lambda trial: noise(_factors(group, fitted, ceilings, *trial)))
    return _factors(group, whole, ceilings, strength, sign)


def _factors(
    group: Group,
    statistics: Mapping[str, ChannelStatistics],
    ceilings: Mapping[str, float],
    strength: float,
    signed: bool,
) -> Array:
    """Factors of a strength, with signs or without, (channels,)."""
    factors = channel_factors(group, statistics, strength)
    for name in group.quantized:
        if name in ceilings:
            reach = np.maximum(statistics[name].largest, 1e-30)
            factors = np.minimum(factors, np.maximum(np.float32(ceilings[name]) / reach, 1.0))
    return channel_signs(group, statistics) * factors if signed else factors


def channel_signs(group: Group, statistics: Mapping[str, ChannelStatistics]) -> Array:
    """−1 for each channel that reaches further below 0 than above it, in steps of the tensors' grids, (channels,)."""
    found = [statistics[name] for name in group.quantized]
    leaning = sum(((s.low + s.high) / max(float(s.largest.max()), 1e-30) for s in found), np.float32(0))
    return np.where(leaning < 0, -1, 1).astype(np.float32)


def channel_factors(group: Group, statistics: Mapping[str, ChannelStatistics], strength: float) -> Array:
    """Factors that raise each channel's range towards the largest, (channels,), at least 1."""
    reach = np.max([statistics[name].largest for name in group.quantized], axis=0)
    factors = np.where(reach > 0, (reach.max() / np.maximum(reach, 1e-30)) ** strength, 1.0)
    return np.clip(factors, 1.0, LARGEST_FACTOR).astype(np.float32)


def relative_noise(
    layer: Layer,
    weight: Array,
    statistics: ChannelStatistics,
    factors: Array,
    plan: LayerPlan,
    share: float = PROPAGATED,
) -> float:
    """Output noise of a layer behind equalized inputs, relative to its signal; the formula above.

    Args:
        layer: the reader.
        weight: in the solver's form, (G, K, N).
        statistics: of the tensor it reads.
        factors: of the tensor's channels, (channels,).
        plan: its bits.
        share: of the noise of weights below 8 bits that counts.
    """
    changed, scaled = statistics.multiplied(factors), weight / beside_rows(layer, factors)
    of_inputs = np.square(scaled).sum(axis=1) * input_step(changed, plan.activations) ** 2 / 12
    of_weights = weight_noise(scaled, beside_rows(layer, changed.power)[..., 0], plan.weights)
    counted = share if plan.weights < UNCLIPPED_BITS else 1.0
    signal = (np.square(weight) * beside_rows(layer, statistics.power)).sum()
    return float((of_inputs.sum() + counted * of_weights) / max(float(signal), 1e-30))


def input_step(statistics: ChannelStatistics, bits: int) -> float:
    """Step of a tensor's grid of so many bits; Δx above."""
    if bits == FLOAT_BITS:
        return 0.0
    if bits < UNCLIPPED_BITS:
        end = np.sqrt(statistics.power.mean()) * np.real(lambertw(3.0 * 4.0**bits))
        reach = min(float(statistics.largest.max()), float(end))
    else:
        reach = max(float(statistics.high.max()), 0.0) - min(float(statistics.low.min()), 0.0)
    return reach / float(2**bits - 1)


def weight_noise(weight: Array, power: Array, bits: int) -> float:
    """Output noise of rounding weights (G, K, N) whose inputs have so much power, (G, K); the formula above."""
    step = np.abs(weight).max(axis=1).astype(np.float64) / (2 ** (bits - 1) - 1)
    return float((np.square(step) / 12 * power.sum(axis=1, keepdims=True, dtype=np.float64)).sum())
