"""Samples set apart: none lost, none in both parts, at most half to judge by."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from onnxq.data import first_feeds, set_apart

SIZES = st.lists(st.integers(1, 5), min_size=1, max_size=6)


def feeds_of(sizes: list[int]) -> list[dict[str, np.ndarray]]:
    numbers = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
    return [{"x": part, "twice": 2 * part} for part in numbers]


@given(sizes=SIZES, count=st.integers(1, 20))
def test_of_a_free_batch_the_first_samples_judge_and_the_others_are_fitted(sizes: list[int], count: int) -> None:
    fitted, judged = set_apart(feeds_of(sizes), count, whole=False)
    later, first = (np.concatenate([f["x"] for f in part]).tolist() for part in (list(fitted), judged))
    total = sum(sizes)
    if total == 1:
        assert first == later == [0]
    else:
        assert len(first) == min(count, total // 2)
        assert first + later == list(range(total))


@given(sizes=st.integers(1, 6), count=st.integers(1, 20))
def test_of_a_fixed_batch_no_feed_is_cut(sizes: int, count: int) -> None:
    feeds = feeds_of([4] * sizes)
    fitted, judged = set_apart(feeds, count, whole=True)
    kept = list(fitted)
    if sizes == 1:
        assert kept == judged == feeds
    else:
        assert judged + kept == feeds
        assert len(judged) == min(-(-count // 4), sizes // 2)


def test_all_inputs_are_cut_alike() -> None:
    fitted, judged = set_apart(feeds_of([3, 4]), 2, whole=False)
    for feed in (*fitted, *judged):
        np.testing.assert_array_equal(feed["twice"], 2 * feed["x"])


@given(sizes=SIZES, count=st.integers(0, 40))
def test_first_feeds_hold_what_is_asked_for_and_no_feed_more(sizes: list[int], count: int) -> None:
    feeds = feeds_of(sizes)
    found = first_feeds(feeds, count)
    assert found and found == feeds[: len(found)]
    assert sum(sizes[: len(found)]) >= min(count, sum(sizes))
    assert len(found) == 1 or sum(sizes[: len(found) - 1]) < count
