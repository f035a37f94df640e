import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.data import count_samples, read_feeds
from onnxq.data.npy import read_npy
from onnxq.data.order import natural_key
from onnxq.errors import CalibrationError
from onnxq.ir.tensor import TensorInfo

X = TensorInfo("x", np.dtype("float32"), (None, 3))
Y = TensorInfo("y", np.dtype("int64"), (None,))

UNCLOSED = b"\x93NUMPY\x01\x00\x40\x00" + b"{'descr': '<f4', 'shape': (".ljust(64) + bytes(64)


def rows(count: int, start: int = 0) -> np.ndarray:
    return np.arange(3 * start, 3 * (start + count), dtype=np.float32).reshape(count, 3)


def save(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(exist_ok=True)
    np.save(path, array)
    return path


def values(data: object, *inputs: TensorInfo, name: str = "x") -> list[Any]:
    return [row for feed in read_feeds(data, inputs, batch=4) for row in feed[name].tolist()]


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_file_is_read_as_saved(tmp_path: Path, order: str) -> None:
    path = save(tmp_path / "x.npy", np.array(rows(9), order=order))
    assert values(path, X) == rows(9).tolist()
    assert count_samples(path) == 9


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_file_is_read_some_rows_at_a_time(order: str, tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", np.asarray(rows(9), order=order))
    pieces = list(read_npy(path, 4))
    assert [len(p) for p in pieces] == [4, 4, 1]
    np.testing.assert_array_equal(np.concatenate(pieces), rows(9))


@pytest.mark.parametrize("folder", [False, True])
def test_a_file_that_becomes_shorter_while_it_is_read_is_an_error_and_not_the_end_of_the_process(
    folder: bool, tmp_path: Path
) -> None:
    path = save(tmp_path / "x.npy", np.zeros((50_000, 3), np.float32))
    feeds = read_feeds(tmp_path if folder else path, [X], batch=1000)
    next(feeds)
    os.truncate(path, 100_000)
    with pytest.raises(CalibrationError, match="changed while it was read"):
        list(feeds)


def test_a_file_needs_a_model_with_one_input(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", rows(9))
    with pytest.raises(CalibrationError, match=r"which of the model's 2 inputs \('x', 'y'\) it is for"):
        list(read_feeds(path, [X, Y], batch=4))


def test_an_empty_file_is_an_empty_set(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", rows(0))
    with pytest.raises(CalibrationError, match="the calibration set is empty"):
        list(read_feeds(path, [X], batch=4))


@pytest.mark.parametrize(
    "content", [b"", b"text" * 40, b"\x93NUMPY\x01\x00", b"\x93NUMPY\x09\x00" + bytes(200), UNCLOSED]
)
def test_a_file_of_another_kind_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.npy").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"x\.npy cannot be read as a \.npy file \(.+\): write it with"):
        list(read_feeds(tmp_path / "x.npy", [X], batch=4))


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", rows(9))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CalibrationError, match="it ends too early"):
        list(read_feeds(path, [X], batch=4))


def test_python_objects_are_not_unpickled(tmp_path: Path) -> None:
    path = save(tmp_path / "x.npy", np.array([[{}, 1, 2]], dtype=object))
    with pytest.raises(CalibrationError, match="Python objects"):
        list(read_feeds(path, [X], batch=4))


def test_files_of_samples_are_read_in_natural_order(tmp_path: Path) -> None:
    for i in (10, 2, 1, 0):
        save(tmp_path / f"s{i}.npy", rows(1, i)[0])
    save(tmp_path / ".s3.npy", rows(1, 3)[0])
    (tmp_path / "readme.txt").write_text("not a sample")
    assert values(tmp_path, X) == [rows(1, i)[0].tolist() for i in (0, 1, 2, 10)]
    assert count_samples(tmp_path, [X]) == 4


def test_files_of_samples_and_of_batches_mix(tmp_path: Path) -> None:
    save(tmp_path / "0.npy", rows(5))
    save(tmp_path / "1.npy", rows(1, 5)[0])
    save(tmp_path / "2.npy", rows(2, 6))
    assert values(tmp_path, X) == rows(8).tolist()
    assert count_samples(tmp_path, [X]) == 8
    assert count_samples(tmp_path) is None


def test_sub_folders_feed_the_inputs_of_their_names(tmp_path: Path) -> None:
    for i in range(12):
        save(tmp_path / "x" / f"{i}.npy", rows(1, i)[0])
        save(tmp_path / "y" / f"{i}.npy", np.array([i]))
    assert values(tmp_path, X, Y) == rows(12).tolist()
    assert values(tmp_path, X, Y, name="y") == list(range(12))
    assert count_samples(tmp_path, [X, Y]) == 12


def test_a_missing_or_unknown_sub_folder_is_an_error(tmp_path: Path) -> None:
    save(tmp_path / "x" / "0.npy", rows(1))
    save(tmp_path / "z" / "0.npy", rows(1))
    with pytest.raises(CalibrationError, match="sub-folders 'x', 'z' where the model has the inputs 'x', 'y'"):
        list(read_feeds(tmp_path, [X, Y], batch=4))


def test_a_sub_folder_may_be_ignored(tmp_path: Path) -> None:
    save(tmp_path / "x" / "0.npy", rows(1))
    save(tmp_path / "labels" / "0.npy", rows(1))
    assert len(list(read_feeds(tmp_path, [X], batch=4, ignore={"labels"}))) == 1


def test_sub_folders_with_different_files_are_an_error(tmp_path: Path) -> None:
    save(tmp_path / "x" / "0.npy", rows(1))
    save(tmp_path / "y" / "0.npy", np.array([0]))
    save(tmp_path / "y" / "1.npy", np.array([1]))
    with pytest.raises(CalibrationError, match=r"has 1\.npy in only one of the sub-folders 'x' and 'y'"):
        list(read_feeds(tmp_path, [X, Y], batch=4))


def test_files_beside_sub_folders_are_an_error(tmp_path: Path) -> None:
    save(tmp_path / "0.npy", rows(1))
    save(tmp_path / "x" / "0.npy", rows(1))
    with pytest.raises(CalibrationError, match=r"both directly and in sub-folders \(x\)"):
        list(read_feeds(tmp_path, [X], batch=4))


def test_a_flat_folder_needs_a_model_with_one_input(tmp_path: Path) -> None:
    save(tmp_path / "0.npy", rows(1))
    with pytest.raises(CalibrationError, match="which of the model's 2 inputs"):
        list(read_feeds(tmp_path, [X, Y], batch=4))


def test_a_folder_without_files_is_an_empty_set(tmp_path: Path) -> None:
    with pytest.raises(
        CalibrationError, match=r"set is empty: .* holds no \.npy files, and images would need a preproc"
    ):
        list(read_feeds(tmp_path, [X], batch=4))


def test_a_wrong_shape_names_the_file(tmp_path: Path) -> None:
    save(tmp_path / "0.npy", rows(1))
    save(tmp_path / "1.npy", np.zeros((2, 4), np.float32))
    with pytest.raises(
        CalibrationError, match=r"1\.npy has x float32 \[2, 4\] where the model takes x float32 \[\?, 3\]"
    ):
        list(read_feeds(tmp_path, [X], batch=4))


def test_a_damaged_file_in_a_folder_is_named(tmp_path: Path) -> None:
    save(tmp_path / "0.npy", rows(1))
    (tmp_path / "1.npy").write_bytes(b"text")
    with pytest.raises(CalibrationError, match=r"1\.npy cannot be read"):
        list(read_feeds(tmp_path, [X], batch=4))


def test_without_a_sample_axis_each_file_is_a_feed(tmp_path: Path) -> None:
    fixed = [TensorInfo("x", np.dtype("float32"), (2, 3)), TensorInfo("t", np.dtype("float32"), ())]
    for i in range(3):
        save(tmp_path / "x" / f"{i}.npy", rows(2, i))
        save(tmp_path / "t" / f"{i}.npy", np.float32(i))
    feeds = list(read_feeds(tmp_path, fixed, batch=1))
    assert [float(f["t"]) for f in feeds] == [0, 1, 2]
    assert all(np.array_equal(f["x"], rows(2, i)) for i, f in enumerate(feeds))
    assert count_samples(tmp_path, fixed) == 3


@given(st.lists(st.text("ab019._", max_size=6), unique=True))
def test_natural_order_is_total(names: list[str]) -> None:
    assert sorted(names, key=natural_key) == sorted(reversed(names), key=natural_key)


@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_numbers_in_names_order_by_value(a: int, b: int) -> None:
    assert (natural_key(f"img_{a}.png") < natural_key(f"img_{b}.png")) == (a < b)
