from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import numpy_helper, parser
from scipy import optimize

from onnxq.quant.affine import dequantize, fake_quantize, quantize
from onnxq.quant.histogram import HALF_BINS, Histogram
from onnxq.quant.saturation import exact_scale, without_saturation
from onnxq.quant.scale_search import CLIP_RATIOS, SMALLEST_SCALE, activation_params, extreme_params, weight_scale
from onnxq.quant.solution import (
    INT32_ROOM,
    LayerSolution,
    bias_integers,
    bias_scale,
    free_bias_scale,
    on_bias_grid,
    smallest_weight_scale,
)
from onnxq.quant.spec import Granularity, QuantParams, QuantSpec, activation_spec, weight_spec
from onnxq.quant.tail import find_tail
from onnxq.verify.session import start_session

FLOATS = st.floats(-1e6, 1e6, width=32)
TYPES = {
    np.uint8: QuantSpec(8, signed=False),
    np.int8: QuantSpec(8, signed=True),
    np.uint16: QuantSpec(16, signed=False),
    np.int16: QuantSpec(16, signed=True),
    ml_dtypes.uint4: QuantSpec(4, signed=False),
    ml_dtypes.int4: QuantSpec(4, signed=True),
}


def through_onnxruntime(x: np.ndarray, scale: np.ndarray, zero: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Integers (as int32) and real numbers that QuantizeLinear and DequantizeLinear make, along axis 0."""
    model = parser.parse_model(
        """<ir_version: 10, opset_import: ["": 21]> g (float[N,M] x) => (int32[N,M] i, float[N,M] y) {
        q = QuantizeLinear<axis=0>(x, s, z) y = DequantizeLinear<axis=0>(q, s, z) i = Cast<to=6>(q) }"""
    )
    model.graph.initializer.extend([numpy_helper.from_array(scale, "s"), numpy_helper.from_array(zero, "z")])
    integers, real = start_session(model.SerializeToString(), "disable").run(None, {"x": x})
    return integers, real


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("zero", [-8, 0, 5])
def test_quantisation_is_that_of_onnxruntime_bit_for_bit(dtype: type, zero: int) -> None:
    spec = TYPES[dtype]
    zero = max(zero, spec.qmin)
    scale = np.float32(0.037)
    rng = np.random.default_rng(0)
    ties = (np.arange(-40, 40) + 0.5).astype(np.float32) * scale
    x = np.concatenate([ties, rng.normal(0, 40, 2000), [0, -0.0, 1e30, -1e30]]).astype(np.float32)[None]
    integers, real = through_onnxruntime(x, np.asarray(scale), np.asarray(zero).astype(dtype))
    ours = quantize(x, scale, np.float32(zero), np.float32(spec.qmin), np.float32(spec.qmax))
    np.testing.assert_array_equal(ours, integers)
    np.testing.assert_array_equal(dequantize(ours, scale, np.float32(zero)), real)
    np.testing.assert_array_equal(fake_quantize(x, QuantParams(spec, np.asarray(scale), zero)), real)


def test_fake_quantisation_by_channel_is_that_of_onnxruntime() -> None:
    x = np.random.default_rng(1).normal(0, 3, (5, 400)).astype(np.float32)
    scale = np.array([0.1, 0.013, 2.0, 0.5, 0.029], np.float32)
    _, real = through_onnxruntime(x, scale, np.zeros(5, np.int8))
    params = QuantParams(QuantSpec(8, signed=True, granularity=Granularity.PER_CHANNEL), scale)
    np.testing.assert_array_equal(fake_quantize(x, params), real)
    np.testing.assert_array_equal(fake_quantize(x.T, params, axis=-1), real.T)


@pytest.mark.parametrize(("value", "integer"), [(0.5, 0), (1.5, 2), (2.5, 2), (-0.5, 0), (-1.5, -2), (3.5, 4)])
def test_rounding_is_half_to_even(value: float, integer: int) -> None:
    assert quantize(np.float32(value), 1, 0, -8, 7) == integer


@given(x=hnp.arrays(np.float32, 50, elements=FLOATS), scale=st.floats(2.0**-10, 2.0**10, width=32))
def test_fake_quantisation_is_idempotent_and_errs_by_half_a_step_inside_the_range(x: np.ndarray, scale: float) -> None:
    params = QuantParams(QuantSpec(8, signed=False), np.float32(scale), 100)
    once = fake_quantize(x, params)
    np.testing.assert_array_equal(fake_quantize(once, params), once)
    inside = (x >= params.lowest) & (x <= params.highest)
    assert (np.abs(once - x)[inside] <= 0.5001 * scale).all()  # the product integer · scale is rounded to float32


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8, 16])
def test_grids_have_two_to_the_bits_integers_and_weights_of_5_bits_on_leave_one_unused(bits: int) -> None:
    activations, weights = activation_spec(bits), weight_spec(bits)
    assert (activations.qmin, activations.qmax) == (0, 2**bits - 1)
    assert weights.qmax == 2 ** (bits - 1) - 1
    assert weights.qmin == (-weights.qmax if bits > 4 else -weights.qmax - 1)


@given(
    batches=st.lists(hnp.arrays(np.float32, st.integers(0, 20), elements=FLOATS), min_size=1, max_size=6),
    seed=st.randoms(use_true_random=False),
)
@example(batches=[np.float32([2.0**-149]), np.float32([-(2.0**-149)]), np.float32([1])], seed=None)
@example(batches=[np.float32([0, 0]), np.float32([2, -2])], seed=None)
def test_a_histogram_does_not_depend_on_the_order_of_batches_nor_on_how_they_are_cut(
    batches: list[np.ndarray], seed: object
) -> None:
    forward, whole = Histogram(), Histogram().update(np.concatenate(batches))
    for batch in batches:
        forward = forward.update(batch)
    shuffled = Histogram()
    order = list(range(len(batches)))
    (seed.shuffle if seed else list.reverse)(order)  # type: ignore[attr-defined]
    for index in order:
        shuffled = shuffled.update(batches[index])
    assert (shuffled.low, shuffled.high, shuffled.size) == (forward.low, forward.high, forward.size)
    assert (whole.low, whole.high, whole.size) == (forward.low, forward.high, forward.size)
    for one, other in zip(forward.points(), shuffled.points(), strict=True):
        np.testing.assert_array_equal(one, other)
    assert forward.tails == shuffled.tails


@given(values=hnp.arrays(np.float32, st.integers(1, 50), elements=FLOATS), samples=st.integers(1, 5))
def test_a_histogram_counts_every_value_in_the_bin_that_holds_it(values: np.ndarray, samples: int) -> None:
    histogram = Histogram().update(values, samples)
    assert sum(int(kind.counts.sum()) for kind in histogram.kinds.values()) == values.size == histogram.size
    assert histogram.low <= values.min() and histogram.high >= values.max()
    for kind in histogram.kinds.values():
        centres = np.repeat(kind.centres, kind.counts)
        nearest = np.abs(centres[:, None] - values[None].astype(np.float64)).min(axis=1)
        assert (nearest <= kind.limit / HALF_BINS / 2).all()


@given(values=hnp.arrays(np.float32, 30, elements=st.floats(0.25, 1, width=32)), most=st.integers(4, 40))
def test_bins_taken_together_keep_counts_and_places(values: np.ndarray, most: int) -> None:
    histogram = Histogram().update(values)
    (points, counts), (exact, every) = histogram.points(most), histogram.points()
    assert len(points) <= most and counts.sum() == every.sum() == 30
    assert abs(counts @ points - every @ exact) / 30 <= max(np.diff(points).min(initial=1), 2.0 / most)


def test_one_sample_of_far_more_power_counts_for_little_and_the_range_is_that_of_the_others() -> None:
    x = np.random.default_rng(0).normal(0, 1, (64, 500)).astype(np.float32)
    regular = activation_params(Histogram().update(np.delete(x, 17, axis=0), 63), activation_spec(8))
    for factor in (255.0, 1e4, 1e6):
        x[17] *= np.float32(factor)
        found = activation_params(Histogram().update(x, 64), activation_spec(8))
        assert float(found.scale) == pytest.approx(float(regular.scale), rel=0.1)
        x[17] /= np.float32(factor)
    # Twice the values are no mistake: loud samples among quiet ones.
    x[17] *= 2
    assert float(activation_params(Histogram().update(x, 64), activation_spec(8)).scale) > 1.1 * float(regular.scale)


@pytest.mark.parametrize(("samples", "values"), [(8, 16), (64, 16), (16, 1000)])
def test_expected_losses_beyond_the_values_seen_are_those_of_new_samples(samples: int, values: int) -> None:
    """Laplace's distribution, whose tail is what the formula takes it to be; over 400 sets of samples."""
    rng, gone, expected = np.random.default_rng(0), [], []
    for _ in range(400):
        seen, new = (rng.laplace(size=(samples, values)) for _ in range(2))
        tail = find_tail(np.maximum(seen, 0).max(axis=1), values)
        gone.append(np.square(np.maximum(new - 1.05 * tail.edge, 0)).mean())
        expected.append(tail.lost(1.05 * tail.edge))
    # The mean of rare losses is known to a quarter here, and the excess of few samples is held towards a prior.
    assert 0.5 < np.mean(expected) / np.mean(gone) < 2.5


def test_a_bound_that_two_samples_meet_needs_no_head_room() -> None:
    bounded = np.minimum(np.random.default_rng(0).exponential(3, (16, 50)), 6).astype(np.float32)
    assert not Histogram().update(bounded, 16).tails.known
    assert float(activation_params(Histogram().update(bounded, 16), activation_spec(8)).highest) <= 6.001


@pytest.mark.parametrize("bits", [8, 16])
def test_ranges_of_few_samples_have_head_room_and_those_of_many_values_next_to_none(bits: int) -> None:
    rng = np.random.default_rng(bits)
    spec, few, many = activation_spec(bits), rng.normal(size=(16, 16)), rng.normal(size=(64, 50_000))
    new = rng.normal(size=(4000, 16)).astype(np.float32)

    def error(params: QuantParams) -> float:
        return squared_error(new, params)

    seen = Histogram().update(few.astype(np.float32), 16)
    assert error(activation_params(seen, spec)) < 0.5 * error(extreme_params(seen, spec))
    wide = activation_params(Histogram().update(many.astype(np.float32), 64), spec)
    assert bits == 16 or float(wide.highest) < 1.05 * many.max()


def seen_twice(x: np.ndarray) -> Histogram:
    """Values of two samples that end alike: none are expected beyond them."""
    return Histogram().update(np.stack([x, x]), 2)


def squared_error(x: np.ndarray, params: QuantParams) -> float:
    return float(np.square(fake_quantize(x, params).astype(np.float64) - x).mean())


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("kind", ["normal", "heavy", "relu", "one-sided", "constant"])
def test_the_range_of_activations_is_within_5_percent_of_the_best_there_is(kind: str, bits: int) -> None:
    rng = np.random.default_rng(bits)
    x = {
        "normal": rng.normal(0, 1, 4000),
        "heavy": rng.standard_t(3, 4000),
        "relu": rng.normal(0, 1, 4000).clip(0),
        "one-sided": rng.uniform(-5, -4, 4000),
        "constant": np.full(4000, 2.5),
    }[kind].astype(np.float32)
    spec = activation_spec(bits)
    params = activation_params(seen_twice(x), spec)
    assert 0 <= params.zero_point <= spec.qmax
    assert params.zero_point == 0 or x.min() < 0

    def error(ends: np.ndarray) -> float:
        low, high = min(ends[0], 0.0), max(ends[-1], 0.0)
        scale = np.float32(max((high - low) / spec.qmax, 1e-9))
        return squared_error(x, QuantParams(spec, scale, int(np.clip(np.rint(-low / scale), 0, spec.qmax))))

    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    span = slice(0.02, 1.04, 0.02)
    best = optimize.brute(lambda r: error(np.array([low * r[0], high * r[1]])), (span, span), full_output=True)[1]
    assert squared_error(x, params) <= 1.05 * best + 1e-7


def test_a_16_bit_range_clips_nothing() -> None:
    x = np.random.default_rng(0).normal(0, 1, 10_000).astype(np.float32)
    params = activation_params(Histogram().update(x), activation_spec(16))
    assert squared_error(x, params) <= 1.3 * float(params.scale) ** 2 / 12
    # Head-room costs it little: twice the range is one of its bits.
    assert float(params.scale) <= 4 * (x.max() - x.min()) / 65535


def test_a_tensor_of_zeros_has_a_usable_grid() -> None:
    params = activation_params(Histogram().update(np.zeros(10, np.float32)), activation_spec(8))
    assert params.scale >= SMALLEST_SCALE and params.zero_point == 0
    assert not fake_quantize(np.zeros(3, np.float32), params).any()
    assert (weight_scale(np.zeros((2, 5), np.float32), weight_spec(8)) == SMALLEST_SCALE).all()


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_weight_scale_is_within_5_percent_of_a_dense_search(bits: int, weighted: bool) -> None:
    rng = np.random.default_rng(bits)
    w = (rng.standard_t(4, (6, 200)) * np.logspace(-3, 3, 6)[:, None]).astype(np.float32)
    h = rng.uniform(0, 1, (6, 200)).astype(np.float32) ** 4 if weighted else None
    spec = weight_spec(bits)
    found = weight_scale(w, spec, h)
    assert found.dtype == np.float32 and found.shape == (6,)

    def error(channel: int, scale: float) -> float:
        gap = dequantize(quantize(w[channel].astype(np.float64), scale, 0, spec.qmin, spec.qmax), scale, 0) - w[channel]
        return float((gap * gap * (1 if h is None else h[channel])).sum())

    for channel in range(6):
        reach = np.abs(w[channel]).max() / spec.qmax
        best = min(error(channel, float(s)) for s in np.geomspace(0.02, 1, 4000) * reach)
        assert error(channel, float(found[channel])) <= 1.05 * best


@pytest.mark.parametrize("power", [-90, -60, 60, 100])
def test_the_weight_scale_of_weights_whose_squares_no_float_holds_is_that_of_ordinary_ones(power: int) -> None:
    w = np.random.default_rng(1).standard_t(4, (4, 64)).astype(np.float32)
    ordinary = weight_scale(w, weight_spec(4))
    with np.errstate(over="raise"):
        found = weight_scale(np.ldexp(w, power), weight_spec(4))
    np.testing.assert_array_equal(found, np.ldexp(ordinary, power))  # a power of two moves no rounding


@given(
    w=hnp.arrays(np.float32, (3, 12), elements=st.floats(-100, 100, width=16)),
    h=hnp.arrays(np.float32, (3, 12), elements=st.floats(0, 10, width=16)),
    bits=st.integers(2, 8),
    floor=st.sampled_from([None, 0.01, 3.0]),
)
def test_no_candidate_that_is_left_out_would_have_been_better(
    w: np.ndarray, h: np.ndarray, bits: int, floor: float | None
) -> None:
    spec, least = weight_spec(bits), None if floor is None else np.full(3, floor, np.float32)
    found = weight_scale(w, spec, h, least)
    reach = np.maximum(w.max(axis=1) / spec.qmax, w.min(axis=1) / spec.qmin)

    def error(scale: np.ndarray) -> np.ndarray:
        gap = dequantize(quantize(w, scale[:, None], 0, spec.qmin, spec.qmax), scale[:, None], 0) - w
        return (h * gap * gap).sum(axis=1, dtype=np.float64)

    for ratio in CLIP_RATIOS:
        scale = np.maximum((reach * ratio).astype(np.float32), SMALLEST_SCALE if least is None else least)
        assert (error(found) <= error(scale)).all()


@given(w=hnp.arrays(np.float32, (3, 8), elements=st.floats(-100, 100, width=16)), power=st.integers(-8, 8))
def test_the_weight_scale_grows_with_the_weights(w: np.ndarray, power: int) -> None:
    assume((np.abs(w).max(axis=1) > 1e-3).all())
    factor = np.float32(2.0**power)
    np.testing.assert_array_equal(weight_scale(w * factor, weight_spec(4)), weight_scale(w, weight_spec(4)) * factor)


@given(
    bias=hnp.arrays(np.float32, 4, elements=FLOATS),
    scale=hnp.arrays(np.float32, 4, elements=st.floats(2.0**-9, 1, width=32)),
)
def test_the_bias_grid_errs_by_half_a_step_and_is_idempotent(bias: np.ndarray, scale: np.ndarray) -> None:
    stored = on_bias_grid(bias, scale)
    np.testing.assert_array_equal(on_bias_grid(stored, scale), stored)
    assert (np.abs(stored - bias.astype(np.float64)) <= 0.5 * scale + 1e-7 * np.abs(bias)).all()  # float32 rounding
    np.testing.assert_array_equal(bias_integers(bias, scale), np.rint(bias / scale.astype(np.float64)))


@given(
    bias=hnp.arrays(np.float32, 6, elements=FLOATS),
    weight=hnp.arrays(np.float32, 3, elements=st.floats(2.0**-99, 1, width=32)),
    x=st.floats(2.0**-20, 2, width=32),
)
def test_weight_scales_raised_to_the_smallest_leave_room_for_the_bias(
    bias: np.ndarray, weight: np.ndarray, x: float
) -> None:
    raised = np.maximum(weight, smallest_weight_scale(bias, np.float32(x), 3))
    assert (
        np.abs(bias_integers(bias, bias_scale(np.float32(x), raised, 6)).astype(np.int64)).max() <= 1.001 * INT32_ROOM
    )


def test_groups_that_share_scales_repeat_them_in_the_bias_scale() -> None:
    scale = bias_scale(np.float32(0.5), np.array([1, 2, 4], np.float32), 6)
    np.testing.assert_array_equal(scale, np.array([0.5, 1, 2, 0.5, 1, 2], np.float32))


@given(bias=hnp.arrays(np.float32, 5, elements=FLOATS))
def test_a_bias_on_a_scale_of_its_own_is_kept_to_the_last_bits(bias: np.ndarray) -> None:
    scale = free_bias_scale(bias)
    assert (np.abs(bias_integers(bias, scale).astype(np.int64)) <= INT32_ROOM).all()
    np.testing.assert_allclose(on_bias_grid(bias, scale), bias, rtol=2e-7, atol=2.0**-90)


def test_integers_come_back_as_weights_along_their_channel_axis() -> None:
    integers = np.arange(6, dtype=np.int16).reshape(2, 3)
    params = QuantParams(weight_spec(8), np.array([1, 10, 100], np.float32))
    solution = LayerSolution("layer", integers, params, None, None, 0.0, 0.0, "", 0.0)
    np.testing.assert_array_equal(solution.dequantized(1), [[0, 10, 200], [3, 40, 500]])


@given(
    hnp.arrays(np.float32, (2, 9, 3), elements=st.integers(-127, 127).map(float)),
    st.permutations(range(9)),
)
def test_no_pair_saturates_after_repair_and_pairs_with_room_stay(integers: np.ndarray, order: list[int]) -> None:
    pairs = np.array(order[:8]).reshape(4, 2)
    exact = without_saturation(integers, pairs)
    first, second = exact[:, pairs[:, 0]], exact[:, pairs[:, 1]]
    products = 255 * np.stack([first.clip(min=0) + second.clip(min=0), first.clip(max=0) + second.clip(max=0)])
    assert products.max() <= 32767 and products.min() >= -32768
    before = integers[:, pairs[:, 0]] + integers[:, pairs[:, 1]]
    changed = (first != integers[:, pairs[:, 0]]) | (second != integers[:, pairs[:, 1]])
    np.testing.assert_array_equal(changed, (np.abs(before) > 128) & (first * second >= 0))
    assert (np.abs(exact) <= np.abs(integers)).all()


def test_the_exact_scale_leaves_the_largest_pair_just_inside() -> None:
    weight = np.array([[[0.9, -0.2], [0.7, -0.1], [-0.8, 0.3]]], np.float32)
    pairs = np.array([[0, 1]])
    scale = exact_scale(weight, pairs)
    np.testing.assert_allclose(scale, [[1.6 / 128, 0.3 / 128]], rtol=1e-6)
    assert (exact_scale(weight, np.array([[0, 2]])) == 0).all()  # of two signs: they cannot add up
