from __future__ import annotations

import threading
from dataclasses import replace

import numpy as np
import pytest

from onnxq.calibration.hold_out import HOLD_OUT
from onnxq.calibration.layer_rows import Rows, join
from onnxq.runtime.prefetch import one_ahead


def parts(sizes: list[int], *, ordered: bool, with_float: bool) -> list[Rows]:
    """Random rows of batches of some sizes, a sixth of them held back, side by side or scattered."""
    rng = np.random.default_rng(len(sizes))
    found = []
    for size in sizes:
        x, y = rng.normal(size=(2, size, 3)).astype(np.float32), rng.normal(size=(2, size, 4)).astype(np.float32)
        train = rng.uniform(size=size) > 1 / 6
        train = np.sort(train)[::-1] if ordered else train
        found.append(Rows(x, x + 1 if with_float else x, y, train, np.arange(size) // 4))
    return found


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("with_float", [True, False])
def test_joined_rows_are_those_of_all_batches_the_fitted_ones_first(ordered: bool, with_float: bool) -> None:
    given = parts([40, 0, 17, 1], ordered=ordered, with_float=with_float)
    train = np.concatenate([p.train for p in given])
    order = np.concatenate([np.flatnonzero(train), np.flatnonzero(~train)])
    wanted = {
        name: np.concatenate([getattr(p, name) for p in given], axis=1)[:, order] for name in ("x", "x_float", "y")
    }
    wanted["units"] = np.concatenate([p.units for p in given])[order]
    found = join(given)
    for name, values in wanted.items():
        np.testing.assert_array_equal(getattr(found, name), values)
    np.testing.assert_array_equal(found.train, np.arange(len(train)) < train.sum())
    assert not given and (found.x_float is found.x) is not with_float


def test_float_rows_are_kept_where_those_of_some_batches_alone_are_another_array() -> None:
    """As where a batch of the graph's inputs lies in memory, one array for both networks, and the next one on disk."""
    given = parts([40, 17], ordered=True, with_float=False)
    given[1] = replace(given[1], x_float=given[1].x.copy())
    found = join(given)
    np.testing.assert_array_equal(found.x_float, found.x)


def test_every_eighth_row_is_held_back_where_no_sample_is() -> None:
    given = [replace(p, train=np.ones(p.x.shape[1], bool)) for p in parts([40, 17], ordered=True, with_float=False)]
    x = np.concatenate([p.x for p in given], axis=1)
    found = join(given)
    np.testing.assert_array_equal(found.x[:, ~found.train], x[:, HOLD_OUT - 1 :: HOLD_OUT])


def test_the_next_one_is_made_while_the_last_is_used() -> None:
    begun = [threading.Event() for _ in range(4)]

    def make(index: int) -> int:
        begun[index].set()
        return index

    for index in one_ahead(make, 4):
        assert index == 3 or begun[index + 1].wait(timeout=60)
        assert index >= 2 or not begun[index + 2].is_set()


def test_what_making_raises_is_raised_in_its_turn() -> None:
    def make(index: int) -> int:
        if index == 2:
            raise OSError("the disk is full")
        return index

    found = one_ahead(make, 5)
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(OSError, match="the disk is full"):
        next(found)
    assert list(one_ahead(make, 0)) == []
