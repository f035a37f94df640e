from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.data.feed import Feed, samples_in
from onnxq.data.rebatch import full_batches, rebatch
from onnxq.errors import CalibrationError

SIZES = st.lists(st.integers(0, 9), max_size=12)
BATCH = st.integers(1, 11)


def cut(values: np.ndarray, sizes: list[int]) -> list[Feed]:
    """The rows of an array as feeds of the given sizes, with a second input that can be told apart."""
    ends = np.cumsum(sizes, dtype=int)
    return [{"a": values[e - s : e], "b": -values[e - s : e, :1]} for s, e in zip(sizes, ends, strict=True)]


def rows(count: int, width: int = 3) -> np.ndarray:
    return np.arange(count * width, dtype=np.float32).reshape(count, width)


@given(SIZES, BATCH)
def test_concatenation_survives_any_batching_of_the_source(sizes: list[int], batch: int) -> None:
    values = rows(sum(sizes))
    feeds = list(rebatch(cut(values, sizes), batch))
    if sum(sizes):
        assert np.array_equal(np.concatenate([f["a"] for f in feeds]), values)
        assert np.array_equal(np.concatenate([f["b"] for f in feeds]), -values[:, :1])
    else:
        assert feeds == []


@given(SIZES, BATCH)
def test_all_feeds_but_the_last_are_full(sizes: list[int], batch: int) -> None:
    lengths = [samples_in(f) for f in rebatch(cut(rows(sum(sizes)), sizes), batch)]
    assert all(length == batch for length in lengths[:-1])
    assert all(1 <= length <= batch for length in lengths)


@given(st.lists(st.integers(1, 3), max_size=20), BATCH)
def test_changing_shapes_close_batches_at_the_same_places_however_they_arrive(widths: list[int], batch: int) -> None:
    singles = [{"a": np.full((1, width), i, np.float32)} for i, width in enumerate(widths)]
    grouped: list[Feed] = []
    for feed in singles:
        if grouped and grouped[-1]["a"].shape[1] == feed["a"].shape[1]:
            grouped[-1] = {"a": np.concatenate([grouped[-1]["a"], feed["a"]])}
        else:
            grouped.append(feed)
    one, other = list(rebatch(singles, batch)), list(rebatch(grouped, batch))
    assert [f["a"].tolist() for f in one] == [f["a"].tolist() for f in other]
    assert [row for f in one for row in f["a"].tolist()] == [[i] * width for i, width in enumerate(widths)]


def test_feeds_own_their_memory_though_the_source_reuses_its_buffer() -> None:
    buffer = np.zeros((2, 1), np.float32)

    def source() -> Iterator[Any]:
        for i in range(3):
            buffer[:] = i
            yield {"a": buffer}

    feeds = list(rebatch(source(), 3))
    assert [f["a"].ravel().tolist() for f in feeds] == [[0, 0, 1], [1, 2, 2]]


def test_feeds_are_contiguous_whatever_the_order_of_the_source() -> None:
    column_major = np.asfortranarray(rows(4))
    [feed] = rebatch([{"a": column_major}], 4)
    assert feed["a"].flags.c_contiguous


def test_nothing_is_asked_of_the_source_before_it_is_needed() -> None:
    asked = []

    def source() -> Iterator[Any]:
        for i in range(10):
            asked.append(i)
            yield {"a": rows(2)}

    next(rebatch(source(), 4))
    assert asked == [0, 1]


def test_a_last_incomplete_batch_is_dropped_for_a_fixed_batch() -> None:
    feeds = full_batches(rebatch([{"a": rows(7)}], 3), 3, "x.npz")
    assert [samples_in(f) for f in feeds] == [3, 3]


def test_an_incomplete_batch_that_is_the_only_one_is_an_error() -> None:
    with pytest.raises(CalibrationError, match=r"x\.npz gives 2 samples, but the model takes exactly 3 at a time"):
        list(full_batches(rebatch([{"a": rows(2)}], 3), 3, "x.npz"))


def test_a_fixed_batch_cut_short_by_a_change_of_shape_is_an_error() -> None:
    feeds = rebatch([{"a": rows(5, 3)}, {"a": rows(3, 4)}], 3)
    with pytest.raises(CalibrationError, match="changes the shape of its samples after 5"):
        list(full_batches(feeds, 3, "x.npz"))
