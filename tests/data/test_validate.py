from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from onnxq.data.feed import Piece, Signature
from onnxq.data.validate import validated
from onnxq.errors import CalibrationError
from onnxq.ir.tensor import TensorInfo

IMAGE = TensorInfo("image", np.dtype("float32"), (None, 3, 4, 5))
IDS = TensorInfo("ids", np.dtype("int64"), (None, None))
MASK = TensorInfo("mask", np.dtype("int64"), (None, None))


def check(
    arrays: Mapping[str, np.ndarray],
    *inputs: TensorInfo,
    rows: int = 100,
    limit: int | None = None,
    ignored: Sequence[str] = (),
) -> Any:
    return list(validated([Piece("here", arrays)], Signature(inputs, ignored), rows, limit))


def message(arrays: Mapping[str, np.ndarray], *inputs: TensorInfo) -> str:
    with pytest.raises(CalibrationError) as caught:
        check(arrays, *inputs)
    text = str(caught.value)
    assert text.startswith("here ")
    assert "\n" not in text
    return text


def image(*shape: int, dtype: str = "float32") -> np.ndarray:
    return np.zeros(shape, dtype)


def test_a_misspelt_name_is_told_with_the_expected_one() -> None:
    text = message({"img": image(2, 3, 4, 5)}, IMAGE)
    assert "lacks 'image'" in text and "holds 'img'" in text
    assert "image float32 [?, 3, 4, 5]" in text and "rename 'img' to 'image'" in text


def test_a_missing_input_is_told() -> None:
    text = message({"ids": np.ones((2, 3), np.int64)}, IDS, MASK)
    assert "lacks 'mask'" in text and "ids int64 [?, ?], mask int64 [?, ?]" in text


def test_an_unknown_name_is_an_error_unless_ignored() -> None:
    arrays = {"image": image(2, 3, 4, 5), "labels": np.zeros(2)}
    assert "holds 'labels', which the model does not know" in message(arrays, IMAGE)
    [feed] = check(arrays, IMAGE, ignored={"labels"})
    assert list(feed) == ["image"]


@pytest.mark.parametrize(
    ("shape", "advice"),
    [
        ((3, 4, 5), "add a first axis"),
        ((2, 4, 5, 3), r"transpose with (0, 3, 1, 2)"),
        ((2, 3, 4, 6), "bring the samples into that shape"),
        ((2, 60), "bring the samples into that shape"),
        ((), "bring the samples into that shape"),
    ],
)
def test_a_wrong_shape_is_told_with_found_and_expected(shape: tuple[int, ...], advice: str) -> None:
    text = message({"image": image(*shape)}, IMAGE)
    assert f"has image float32 {list(shape)} where the model takes image float32 [?, 3, 4, 5]" in text
    assert advice in text


def test_channels_first_for_a_channels_last_model_is_recognised() -> None:
    info = TensorInfo("image", np.dtype("float32"), (None, 4, 5, 3))
    assert "transpose with (0, 2, 3, 1)" in message({"image": image(2, 3, 4, 5)}, info)


@pytest.mark.parametrize("first", [1, 2, 7])
def test_any_first_axis_is_accepted_where_the_model_fixes_it(first: int) -> None:
    info = TensorInfo("image", np.dtype("float32"), (2, 3))
    [feed] = check({"image": image(first, 3)}, info)
    assert feed["image"].shape == (first, 3)


def test_a_scalar_has_no_sample_axis_even_where_the_rank_is_unknown() -> None:
    info = TensorInfo("x", np.dtype("float32"), None)
    assert "x float32 [] where the model takes x float32 [?]" in message({"x": image()}, info)


def test_inputs_of_different_lengths_are_an_error() -> None:
    text = message({"ids": np.ones((2, 3), np.int64), "mask": np.ones((4, 3), np.int64)}, IDS, MASK)
    assert "2 of 'ids', 4 of 'mask'" in text


@pytest.mark.parametrize("dtype", ["float64", "float16", ">f4", "longdouble"])
def test_floats_are_converted(dtype: str) -> None:
    values = np.arange(60, dtype=dtype).reshape(1, 3, 4, 5)
    [feed] = check({"image": values}, IMAGE)
    assert feed["image"].dtype == np.float32
    assert np.array_equal(feed["image"], values.astype(np.float64))


def test_bfloat16_inputs_take_floats() -> None:
    info = TensorInfo("x", np.dtype(ml_dtypes.bfloat16), (None, 2))
    [feed] = check({"x": np.array([[1.0, 0.5]])}, info)
    assert feed["x"].dtype == ml_dtypes.bfloat16 and feed["x"].astype(float).tolist() == [[1.0, 0.5]]
    with pytest.raises(CalibrationError, match="holds nan"):
        check({"x": np.array([[1.0, np.nan]])}, info)


@given(hnp.arrays(hnp.integer_dtypes() | hnp.unsigned_integer_dtypes(), (3, 2)), st.sampled_from("bBhHiIqQ"))
def test_integers_are_converted_exactly_or_refused(values: np.ndarray, code: str) -> None:
    info = TensorInfo("ids", np.dtype(code), (None, None))
    limits = np.iinfo(code)
    fits = all(limits.min <= value <= limits.max for value in values.ravel().tolist())
    if fits:
        [feed] = check({"ids": values}, info)
        assert feed["ids"].dtype == np.dtype(code) and feed["ids"].tolist() == values.tolist()
    else:
        assert "too large" in message({"ids": values}, info)


def test_booleans_serve_as_integers() -> None:
    [feed] = check({"ids": np.array([[True, False]])}, IDS)
    assert feed["ids"].dtype == np.int64 and feed["ids"].tolist() == [[1, 0]]


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool"])
def test_integers_for_a_float_input_are_an_error_with_advice(dtype: str) -> None:
    text = message({"image": image(2, 3, 4, 5, dtype=dtype)}, IMAGE)
    assert f"image {dtype} [2, 3, 4, 5]" in text and "scale and normalise" in text and "preprocess.toml" in text


def test_floats_for_an_integer_input_are_an_error() -> None:
    assert "cast with astype('int64')" in message({"ids": np.ones((2, 3))}, IDS)


@pytest.mark.parametrize("dtype", ["complex64", "U3", "datetime64[s]", "O"])
def test_types_that_are_no_numbers_of_the_model_are_an_error(dtype: str) -> None:
    assert "convert the values to float32" in message({"image": np.zeros((1, 3, 4, 5), dtype)}, IMAGE)


@pytest.mark.parametrize(("value", "told"), [(np.nan, "nan"), (np.inf, "inf"), (-np.inf, "-inf")])
def test_a_value_that_is_not_finite_is_told_with_input_and_sample(value: float, told: str) -> None:
    arrays = {"image": image(9, 3, 4, 5)}
    arrays["image"][7, 1, 2, 3] = value
    for rows in (1, 4, 100):
        with pytest.raises(CalibrationError, match=rf"holds {told}, in input 'image', sample 7 \(counted from 0\)"):
            check(arrays, IMAGE, rows=rows)


def test_samples_are_counted_across_pieces() -> None:
    pieces = [Piece("one", {"image": image(4, 3, 4, 5)}), Piece("two", {"image": np.full((1, 3, 4, 5), np.nan)})]
    with pytest.raises(CalibrationError, match="two holds nan, in input 'image', sample 4"):
        list(validated(pieces, Signature((IMAGE,)), 3))


def test_a_value_beyond_float32_is_told_instead_of_becoming_infinite() -> None:
    values = np.zeros((1, 3, 4, 5))
    values[0, 0, 0, 0] = 1e300
    assert "1e+300, too large for float32" in message({"image": values}, IMAGE)


def test_samples_past_the_limit_are_not_looked_at() -> None:
    values = image(9, 3, 4, 5)
    values[5:] = np.nan
    feeds = check({"image": values}, IMAGE, rows=2, limit=5)
    assert [len(f["image"]) for f in feeds] == [2, 2, 1]


def test_pieces_past_the_limit_are_not_asked_for() -> None:
    def pieces() -> Iterator[Any]:
        yield Piece("one", {"image": image(4, 3, 4, 5)})
        raise AssertionError("the second piece was asked for")

    assert len(list(validated(pieces(), Signature((IMAGE,)), 4, 4))) == 1


def test_feeds_come_in_the_order_of_the_inputs() -> None:
    ones = np.ones((1, 2), np.int64)
    [feed] = check({"mask": ones, "ids": ones}, IDS, MASK)
    assert list(feed) == ["ids", "mask"]


SCALAR = TensorInfo("threshold", np.dtype("float32"), ())


def test_without_a_sample_axis_a_piece_is_one_feed() -> None:
    info = TensorInfo("image", np.dtype("float32"), (6, 3))
    [feed] = check(
        {"image": image(6, 3, dtype="float64"), "threshold": np.float64(0.5).reshape(())}, info, SCALAR, rows=2
    )
    assert feed["image"].shape == (6, 3) and feed["threshold"].shape == () and feed["threshold"] == np.float32(0.5)


def test_without_a_sample_axis_shapes_match_in_full() -> None:
    info = TensorInfo("image", np.dtype("float32"), (6, 3))
    text = message({"image": image(5, 3), "threshold": image()}, info, SCALAR)
    assert "image float32 [5, 3] where the model takes image float32 [6, 3]" in text


def test_without_a_sample_axis_the_limit_counts_feeds() -> None:
    pieces = [Piece("here", {"threshold": np.float32(i).reshape(())}) for i in range(4)]
    feeds = list(validated(pieces, Signature((SCALAR,)), 1, 2))
    assert [float(f["threshold"]) for f in feeds] == [0.0, 1.0]


@pytest.mark.parametrize(
    ("shapes", "fixed", "axis"),
    [
        ([(None, 3)], None, True),
        ([(1, 3)], 1, True),
        ([(None, 3), (2, 5)], 2, True),
        ([(None, None), (2, None, 5)], None, False),
        ([(None, None), (1, None, 5)], 1, True),
        ([(2, None), (2, None, 5)], 2, True),
        ([None], None, True),
        ([(4, 3), (2, 5)], None, False),
        ([(1, 3), ()], None, False),
    ],
)
def test_the_sample_axis_is_read_off_the_first_axes(shapes: list[Any], fixed: int | None, axis: bool) -> None:
    signature = Signature(tuple(TensorInfo(f"x{i}", np.dtype("float32"), s) for i, s in enumerate(shapes)))
    assert (signature.fixed_batch, signature.has_sample_axis) == (fixed, axis)
