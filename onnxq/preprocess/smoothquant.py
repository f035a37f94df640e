"""How far to migrate range from activations into weights: the balance of their noises, measured on tokens.

With s_c = m_c^t, m_c the range of channel c, the noise that a layer's quantized input brings is measured on rows
of real tokens, on the grid of least squared error that these would get; that of its weights is estimated from
the step their largest entries ask for (see :mod:`onnxq.preprocess.cross_layer_equalization`). The strength t of least
sum is taken, relative to the layers' signal. A division that no normalization takes in costs a multiplication at
inference, so it has to gain more.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.token_sampling import rows_of_tensors
from onnxq.config import FLOAT_BITS
from onnxq.data import Feed
from onnxq.ir.layer import Layer
from onnxq.ir.linear_form import beside_rows, weight_matrix
from onnxq.ir.model import Model
from onnxq.passes.equalize import find_groups
from onnxq.passes.migrate import Site, find_sites, migrate
from onnxq.plan.values import LayerPlan, Plan
from onnxq.preprocess.cross_layer_equalization import LARGEST, weight_noise
from onnxq.quant.affine import fake_quantize
from onnxq.quant.scale_search import range_params
from onnxq.quant.spec import activation_spec

Array = NDArray[np.float32]

STRENGTHS = (0.0, 0.25, 0.4, 0.55, 0.7, 0.85, 1.0)

LARGEST_FACTOR = 64.0
"""Most that one channel's factor differs from the median one: nearly dead channels are known too poorly."""

ENOUGH_GAIN = {True: 0.98, False: 0.8}
"""Noise left, as a fraction, from which on a migration is worth it: with the division taken in, and without."""

CLIP_RATIOS = (1.0, 0.9, 0.8, 0.7, 0.55, 0.4)
"""Ranges of the trial grids, as fractions of the rows' range."""

MIGRATED = 8
"""Bits of inputs at most for which their range is migrated: finer grids have room for every channel."""

SEEN = 8
"""Rows in which a channel is not zero, from which on its range is known."""

RARE = 5.0
"""Standard deviations of a channel's magnitudes that lie between their mean and where it is taken to end: four of its
values' own, if they are normal. The largest of a few rows would be a matter of chance."""

ROWS = 512
"""Tokens on which noise is measured."""


def migrate_ranges(model: Model, plan: Plan, feeds: Sequence[Feed]) -> Model:
    """The same function with ranges moved from the inputs of layers into their weights, where that pays.

    Args:
        model: prepared and equalized; not changed.
        plan: the layers and their bits.
        feeds: a few samples.
    """
    planned = {p.layer.name: p for p in plan.layers}
    settled = _settled(model, plan)
    sites = [
        site
        for site in find_sites(model, [p.layer for p in plan.layers])
        if site.tensor not in settled and all(planned[la.name].activations <= MIGRATED for la in site.readers)
    ]
    if not sites:
        return model
    rows = rows_of_tensors(model, {s.tensor: s.axis for s in sites}, feeds, plan.mask, ROWS)
    chosen, factors = [], []
    for site in sites:
        found = best_factors(model, site, rows[site.tensor], planned)
        if found is not None:
            chosen.append(site)
            factors.append(found)
    return migrate(model, chosen, factors) if chosen else model


def _settled(model: Model, plan: Plan) -> set[str]:
    """Tensors whose channels have been equalized, or that are quantized where they are made, before any division."""
    layers = [p.layer for p in plan.layers]
    equalised = {name for group in find_groups(model, layers) for name in group.tensors}
    return equalised | {name for q in plan.outputs for name in (q.tensor, q.like) if name is not None}


def best_factors(model: Model, site: Site, rows: Array, planned: Mapping[str, LayerPlan]) -> Array | None:
    """The factors of a site at the strength of least noise, (channels,); None where it gains too little.

    Noise is measured on the second half of the rows, which are of other samples, with the factors of the first half.

    Args:
        model: for the weights.
        site: which tensor.
        rows: tokens of it, (R, channels).
        planned: bits by layer name.
    """
    weights = [weight_matrix(layer, model.constant(layer.weight)) for layer in site.readers]
    fitted, judged = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    if not len(fitted) or np.abs(rows).max(initial=0) > LARGEST:
        return None
    power = np.square(judged).mean(axis=0)
    signals = [max(_power_at_output(layer, power, w), 1e-30) for layer, w in zip(site.readers, weights, strict=True)]

    def noise(factor: Array) -> float:
        total = 0.0
        for layer, weight, signal in zip(site.readers, weights, signals, strict=True):
            plan = planned[layer.name]
            scaled = weight * beside_rows(layer, factor)
            gap = _rounding_error(judged / factor, plan.activations)
            lessened = beside_rows(layer, power / np.square(factor))[..., 0]
            total += (noise_of_inputs(layer, gap, scaled) + weight_noise(scaled, lessened, plan.weights)) / signal
        return total

    noises = [noise(channel_factors(fitted, strength)) for strength in STRENGTHS]
    best = int(np.argmin(noises))
    if noises[best] >= ENOUGH_GAIN[site.absorbed] * noises[0]:
        return None
    return channel_factors(rows, STRENGTHS[best])


def noise_of_inputs(layer: Layer, gap: Array, weight: Array) -> float:
    """Power that errors of a layer's inputs have at its output, summed over the output channels.

    Args:
        layer: whose.
        gap: errors at some positions, (R, channels). The taps of a window see errors of positions of their own, taken
            to have nothing to do with each other; nor have those of its channels.
        weight: in the solver's form, (G, K, N).
    """
    if layer.window is None:
        return float(np.square(gap @ weight[0]).mean(axis=0, dtype=np.float64).sum())
    return _power_at_output(layer, np.square(gap).mean(axis=0), weight)


def _power_at_output(layer: Layer, power: Array, weight: Array) -> float:
    """Summed power at a layer's output of independent channels with so much at its input, (channels,)."""
    return float(np.einsum("gk,gkn,gkn->", beside_rows(layer, power)[..., 0], weight, weight))


def channel_factors(rows: Array, strength: float) -> Array:
    """What to divide each channel by, (channels,); the median of those that were seen is 1.

    A channel that holds nothing but zero in nearly all rows is left alone: little is known of its range.
    """
    size = np.abs(rows)
    known = np.count_nonzero(size, axis=0) >= min(SEEN, len(rows))
    reach = size.mean(axis=0) + RARE * size.std(axis=0)
    if not known.any():
        return np.ones(rows.shape[1], np.float32)
    typical = max(float(np.median(reach[known])), 1e-30)
    factors = np.clip(reach / typical, 1 / LARGEST_FACTOR, None) ** strength
    return np.where(known, factors, 1).astype(np.float32)


def _rounding_error(rows: Array, bits: int) -> Array:
    """What rounding adds to rows on the best of a few grids."""
    if bits == FLOAT_BITS:
        return np.zeros_like(rows)
    low, high = min(float(rows.min()), 0.0), max(float(rows.max()), 0.0)
    grids = (range_params(low * ratio, high * ratio, activation_spec(bits)) for ratio in CLIP_RATIOS)
    return min((fake_quantize(rows, grid) - rows for grid in grids), key=lambda gap: float(np.square(gap).mean()))
