"""Samples of models whose inputs have no axis of samples in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_models import build, normal

import onnxq
from onnxq.data import count_samples, read_feeds
from onnxq.errors import CalibrationError
from onnxq.ir.tensor import TensorInfo

F32 = np.dtype(np.float32)
FIXED = (TensorInfo("x", F32, (1, 16)), TensorInfo("h", F32, (2, 1, 8)))
OPEN = (TensorInfo("x", F32, (None, None, 3)), TensorInfo("h", F32, (1, None, 4)))


def feeds(data: Any, inputs: tuple[TensorInfo, ...], batch: int = 1) -> list[dict[str, np.ndarray]]:
    return [dict(feed) for feed in read_feeds(data, inputs, batch=batch)]


@pytest.mark.parametrize("form", ["an axis in front", "one behind the other", "an iterable"])
@pytest.mark.parametrize("file", [False, True])
def test_many_complete_feeds_come_in_one_array_an_input(form: str, file: bool, tmp_path: Path) -> None:
    x, h = normal(1, 5, 1, 16), normal(2, 5, 2, 1, 8)
    data: Any = {"x": x, "h": h}
    if form == "one behind the other":
        data = {"x": x[:, 0], "h": h.reshape(10, 1, 8)}
    if file:
        np.savez(tmp_path / "s.npz", **data)
        data = tmp_path / "s.npz"
        assert count_samples(data, FIXED) == 5
    elif form == "an iterable":
        data = [{"x": x[i], "h": h[i]} for i in range(5)]
    found = feeds(data, FIXED)
    assert len(found) == 5
    for i, feed in enumerate(found):
        np.testing.assert_array_equal(feed["x"], x[i])
        np.testing.assert_array_equal(feed["h"], h[i])


def test_a_single_feed_stays_one_and_what_does_not_fit_is_told_how() -> None:
    (one,) = feeds({"x": normal(1, 1, 16), "h": normal(2, 2, 1, 8)}, FIXED)
    assert one["h"].shape == (2, 1, 8)
    with pytest.raises(CalibrationError, match="all with one more axis in front of every input that counts them"):
        feeds({"x": normal(1, 3, 16), "h": normal(2, 2, 1, 8)}, FIXED)


def test_the_state_of_a_network_of_one_layer_is_no_sample() -> None:
    batches = [{"x": normal(i, 12, 4, 3), "h": normal(i, 1, 4, 4)} for i in range(3)]
    assert [f["x"].shape for f in feeds(batches, OPEN)] == [(12, 4, 3)] * 3
    assert [f["x"].shape for f in feeds(batches[0], OPEN)] == [(12, 4, 3)]
    # where the first axes agree they count samples, one at a time, as the model asks for
    assert [f["x"].shape for f in feeds({"x": normal(1, 6, 4, 3), "h": normal(2, 6, 4, 4)}, OPEN)] == [(1, 4, 3)] * 6


@pytest.mark.parametrize("layers", [1, 2])
def test_a_recurrent_network_with_its_state_as_an_input_is_quantised(layers: int) -> None:
    states = "h0" if layers == 1 else "g"
    split = "" if layers == 1 else "g = Slice(h0, nil, one, nil)"
    model = build(
        f"(float[T,N,8] x, float[{layers},N,6] h0) => (float[T,N,5] y, float[1,N,6] h) {{ {split} "
        f"l, h = GRU<hidden_size=6>(x, w, u, b, , {states}) s = Squeeze(l, one) y = MatMul(s, v) }}",
        w=normal(1, 1, 18, 8) / 3,
        u=normal(2, 1, 18, 6) / 3,
        b=normal(3, 1, 36) / 9,
        v=normal(4, 6, 5) / 3,
        one=np.array([1]),
        nil=np.array([0]),
    )
    batches = [{"x": normal(i, 12, 4, 8), "h0": normal(i, layers, 4, 6)} for i in range(6)]
    assert onnxq.quantize(model, batches).report.ok
