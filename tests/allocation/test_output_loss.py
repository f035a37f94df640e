"""Losses of outputs of any kind and shape, and bits chosen by them."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import build, normal

from onnxq.allocation.output_loss import OutputLoss
from onnxq.api import quantize
from onnxq.config import Config
from onnxq.errors import ModelError

RNG = np.random.default_rng(0)


def mse(exact: np.ndarray, found: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    return np.square(found - exact).mean(axis=axes) / exact.var()


@pytest.mark.parametrize(
    ("shape", "axes"),
    [((8, 3, 4), (1, 2)), ((2, 8, 3), (0, 2)), ((5, 3, 8), (0, 1)), ((16, 3, 2), None), ((3, 5), None)],
)
def test_each_sample_has_its_own_loss_wherever_its_axis_is(
    shape: tuple[int, ...], axes: tuple[int, ...] | None
) -> None:
    exact, found = RNG.normal(size=shape), RNG.normal(size=shape)
    losses = OutputLoss([{"y": exact}], "mse", samples=[8]).of(0, {"y": found})
    assert losses.shape == (8,)
    if axes is not None:
        np.testing.assert_allclose(losses, mse(exact, found, axes), rtol=1e-12)
    np.testing.assert_allclose(losses.mean(), np.square(found - exact).mean() / exact.var(), rtol=1e-12)
    if shape[0] == 3:  # no axis of samples at all: every sample has the batch's loss
        assert np.ptp(losses) == 0


def test_a_single_number_is_judged_relative_to_its_size() -> None:
    loss = OutputLoss([{"z": np.asarray(2.0)}], samples=[4])
    np.testing.assert_allclose(loss.of(0, {"z": np.asarray(3.0)}), np.full(4, 0.25))


def test_channels_of_unlike_sizes_count_alike_whichever_axis_they_lie_along() -> None:
    small, large = RNG.normal(size=(6, 4, 5)), 1e4 * RNG.normal(size=(6, 4, 5))
    noise = RNG.normal(size=(6, 4, 5))
    for axis in (1, 2):
        exact = np.concatenate([small, large], axis=axis)
        wrong_small = OutputLoss([{"y": exact}]).of(0, {"y": np.concatenate([small + noise, large], axis=axis)})
        wrong_large = OutputLoss([{"y": exact}]).of(0, {"y": np.concatenate([small, large + 1e4 * noise], axis=axis)})
        assert 0.5 < wrong_small.mean() / wrong_large.mean() < 2 and wrong_small.mean() > 0.2


def test_integers_count_by_the_share_that_differs_where_nothing_else_is_put_out() -> None:
    exact, found = np.array([[1, 2], [3, 4], [5, 6]]), np.array([[1, 2], [3, 0], [0, 0]])
    np.testing.assert_array_equal(OutputLoss([{"i": exact}]).of(0, {"i": found}), [0, 0.5, 1])
    scores = RNG.normal(size=(3, 2))
    both = OutputLoss([{"i": exact, "y": scores}], "mse").of(0, {"i": found, "y": scores})
    np.testing.assert_array_equal(both, np.zeros(3))


def test_entries_that_are_not_finite_in_both_are_left_out_and_those_of_one_count_as_wrong() -> None:
    exact = np.array([[1.0, -np.inf, 3.0, -1.0], [0.0, 2.0, -2.0, np.nan]])
    same = OutputLoss([{"y": exact}], "mse").of(0, {"y": exact})
    np.testing.assert_array_equal(same, [0, 0])
    other = exact.copy()
    other[0, 0] = np.inf
    np.testing.assert_array_equal(OutputLoss([{"y": exact}], "mse").of(0, {"y": other}), [0.25, 0])
    assert np.isfinite(OutputLoss([{"y": exact}], "kl").of(0, {"y": other})).all()


def test_rows_that_depend_on_values_are_compared_as_a_distribution() -> None:
    exact = RNG.normal(size=(50, 4))
    loss = OutputLoss([{"y": exact}], chosen={"y"}, samples=[3])
    np.testing.assert_allclose(loss.of(0, {"y": exact[::-1]}), np.zeros(3), atol=1e-12)
    np.testing.assert_allclose(loss.of(0, {"y": exact[:25]}), np.full(3, 0.25), atol=0.05)
    np.testing.assert_allclose(loss.of(0, {"y": exact + 1}), np.full(3, 1 / exact.var()), rtol=1e-6)
    assert loss.of(0, {"y": exact[:0]})[0] == 1.0


def test_parts_of_a_sequence_and_values_of_maps_count_side_by_side() -> None:
    parts, wrong = RNG.normal(size=(3, 4, 2)), RNG.normal(size=(3, 4, 2))
    loss = OutputLoss([{"s": list(parts)}], "mse", samples=[4]).of(0, {"s": list(wrong)})
    np.testing.assert_allclose(loss, np.square(parts - wrong).mean(axis=(0, 2)) / parts.var(), rtol=1e-12)
    maps, others = ([{0: a, 1: b} for a, b in p[0]] for p in (parts, wrong))
    by_map = OutputLoss([{"z": maps}], samples=[4]).of(0, {"z": others})
    np.testing.assert_allclose(by_map, OutputLoss([{"z": parts[0]}]).of(0, {"z": wrong[0]}))


def test_a_model_without_numbers_among_its_outputs_is_refused() -> None:
    with pytest.raises(ModelError, match="no output of the model holds numbers"):
        OutputLoss([{"label": np.array(["a"], object), "texts": [np.array(["a"], object)]}])


LAYERS = {"w0": normal(1, 16, 64) / 4, "b0": 0.1 * normal(2, 64), "w1": normal(3, 64, 32) / 8}


@pytest.mark.parametrize(
    ("outputs", "tail"),
    [
        ("float[N,32] b, float[M,16] z", "z = Reshape(b, sh)"),
        ("float[32,N] z", "z = Transpose<perm=[1,0]>(b)"),
        ("float z", "z = ReduceMean<keepdims=0>(b)"),
        ("int64[N] z", "z = ArgMax<axis=1,keepdims=0>(b)"),
        ("float[N,32] z", "q = Relu(b) z = Log(q)"),
        ("float[N,32] b, float[64] b0", ""),
        ("bool[N,32] z", "z = Greater(b, nil)"),
    ],
)
def test_bits_are_chosen_by_outputs_of_any_kind(outputs: str, tail: str) -> None:
    text = f"(float[N,16] x) => ({outputs}) {{ a = Gemm(x, w0, b0) r = Relu(a) b = Gemm(r, w1) {tail} }}"
    model = build(text, sh=np.array([-1, 16]), nil=np.asarray(np.float32(0)), **LAYERS)
    onnx.checker.check_model(model)
    config = Config(candidates=("w2a8", "w4a8", "w8a8"), budget=("size=0.9",), edge_bits="same")
    result = quantize(model, normal(5, 64, 16), config)
    assert result.report.ok and result.report.allocation is not None
    assert np.isfinite(result.report.allocation["measured_loss"])
