"""Padding: how its mask is found in a graph, and what it leaves out of ranges and rows."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import build, normal
from small_transformer import encoder, sentences

from onnxq.calibration.padding import read_mask, real_positions, real_values, token_axis
from onnxq.calibration.token_sampling import rows_of_tensors
from onnxq.ir.load import load
from onnxq.ir.mask import find_mask

REAL = np.array([[True, True, False], [True, False, False]])


@pytest.mark.parametrize("name", ["attention_mask", "padding", "m"])
def test_mask_is_found_by_its_path_whatever_its_name(name: str) -> None:
    assert find_mask(load(encoder(mask=name))) == name


def test_a_model_without_attention_has_no_mask() -> None:
    model = build(
        "(int64[a, b] ids, float[a, b] x) => (float y) { r = Gather(table, ids)  s = MatMul(x, r)  y = Softmax(s) }",
        table=normal(0, 20, 16),
    )
    assert find_mask(load(model)) is None


def test_two_candidates_are_none() -> None:
    model = build(
        """(float[a, b] x, float[a, b] m, float[a, b] n) => (float y) {
            t = Transpose(x)  s = MatMul(x, t)  u = Add(s, m)  v = Add(u, n)  y = Softmax(v) }""",
    )
    assert find_mask(load(model)) is None


def test_mask_of_a_batch_is_read_where_it_can_be() -> None:
    np.testing.assert_array_equal(read_mask({"m": REAL.astype(np.int64)}, "m"), REAL)
    assert read_mask({"m": np.zeros((2, 3))}, "m") is None  # nothing would be left
    assert read_mask({"m": REAL[:, :, None]}, "m") is None
    assert read_mask({"m": REAL}, "other") is None
    assert read_mask({"m": REAL}, None) is None


@pytest.mark.parametrize(
    ("shape", "axis"),
    [
        ((2, 3, 5), 1),
        ((2, 3, 3), 1),
        ((2, 4, 3, 5), 2),  # heads before tokens
        ((2, 4, 3, 3), 2),  # scores: the tokens that ask
        ((2, 4, 5, 3), 3),  # keys, transposed
        ((2, 3, 3, 5), None),  # as many heads as tokens
        ((2, 5), None),
        ((3, 3, 5), None),  # other samples
        ((2,), None),
    ],
)
def test_axis_of_tokens(shape: tuple[int, ...], axis: int | None) -> None:
    assert token_axis(shape, REAL) == axis


def test_values_of_padding_are_left_out() -> None:
    values = np.where(REAL[..., None], 1, 9).astype(np.float32) * np.ones((2, 3, 4), np.float32)
    assert real_values(values, REAL).size == 12
    assert (real_values(values, REAL) == 1).all()
    assert real_values(values, None) is values
    heads = np.moveaxis(np.stack([values] * 2, axis=1), 2, 3)
    assert (real_values(heads, REAL) == 1).all()


def test_numbers_that_stand_for_never_are_left_out() -> None:
    values = np.array([[1, np.finfo(np.float32).min, -2, -np.inf]], np.float32)
    np.testing.assert_array_equal(real_values(values, None), [1, -2])


@pytest.mark.parametrize("axes", [(2, 3), (2, 3, 4), (6,)])
def test_real_positions_in_the_shape_of_a_layer(axes: tuple[int, ...]) -> None:
    found = real_positions(REAL, axes)
    assert found is not None and found.shape == axes
    assert found.sum() == REAL.sum() * (np.prod(axes) // REAL.size)


def test_positions_that_are_no_tokens_are_all_real() -> None:
    assert real_positions(REAL, (2, 5)) is None
    assert real_positions(np.ones((2, 3), bool), (2, 3)) is None
    assert real_positions(None, (2, 3)) is None


def test_rows_of_tensors_are_those_of_real_tokens() -> None:
    model, feed = encoder(), sentences(40)
    table = next(t for t in model.graph.initializer if t.name == "table")
    rows = rows_of_tensors(load(model), {"words": -1}, [feed], "attention_mask", 10_000)["words"]
    wanted = onnx.numpy_helper.to_array(table)[feed["input_ids"][feed["attention_mask"] == 1]]
    np.testing.assert_array_equal(rows, wanted)
    assert len(rows_of_tensors(load(model), {"words": -1}, [feed], "attention_mask", 50)["words"]) <= 50


def test_rows_of_feature_maps_are_their_channels_at_positions_of_every_sample() -> None:
    model = onnx.parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N, 3, 5, 4] x) => (float[N, 3, 5, 4] y) { y = Neg(x) }'
    )
    x = np.arange(20 * 3 * 5 * 4, dtype=np.float32).reshape(20, 3, 5, 4)
    rows = rows_of_tensors(load(model), {"y": 1}, [{"x": x[:6]}, {"x": x[6:]}], None, 100)["y"]
    sample, place = np.divmod(-rows[:, 0].astype(int), 60)
    # 5 of each sample; of samples run together, as many in all, at 20 places each.
    assert len(sample) == 100 and np.bincount(sample).min() >= 3
    assert len(np.unique(rows[:, 0])) == 100
    np.testing.assert_array_equal(rows, -x.reshape(20, 3, 20)[sample, :, place])
    every = rows_of_tensors(load(model), {"y": 1}, [{"x": x}], None, 10_000)["y"]
    np.testing.assert_array_equal(np.sort(every, axis=0), np.sort(-np.moveaxis(x, 1, 3).reshape(-1, 3), axis=0))
