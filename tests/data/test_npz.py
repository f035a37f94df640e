import contextlib
import io
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.data import count_samples, read_feeds, read_labels
from onnxq.errors import CalibrationError
from onnxq.ir.tensor import TensorInfo

X = TensorInfo("x", np.dtype("float32"), (None, None))
Y = TensorInfo("y", np.dtype("int64"), (None, 2))


def rows(count: int, width: int = 3) -> np.ndarray:
    return np.arange(count * width, dtype=np.float32).reshape(count, width)


def save(path: Path, compress: bool = False, **arrays: np.ndarray) -> Path:
    (np.savez_compressed if compress else np.savez)(path, **arrays)
    return path


def member(array: np.ndarray, version: tuple[int, int] | None = None) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array(stream, array, version=version)
    return stream.getvalue()


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("count", [1, 5, 7])
def test_rows_come_back_as_saved(tmp_path: Path, compress: bool, order: str, count: int) -> None:
    x, y = np.array(rows(count), order=order), np.arange(2 * count).reshape(count, 2)
    path = save(tmp_path / "a.npz", compress, y=y, x=x)
    feeds = list(read_feeds(path, [X, Y], batch=3))
    assert np.array_equal(np.concatenate([f["x"] for f in feeds]), x)
    assert np.array_equal(np.concatenate([f["y"] for f in feeds]), y)
    assert [len(f["x"]) for f in feeds] == [3] * (count // 3) + [count % 3] * (count % 3 > 0)
    assert count_samples(path) == count


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_other_compressions_are_read_too(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("x.npy", member(rows(4), (2, 0)))
    [feed] = read_feeds(tmp_path / "a.npz", [X], batch=4)
    assert np.array_equal(feed["x"], rows(4))


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("order", ["C", "F"])
def test_memory_stays_at_a_few_batches(tmp_path: Path, compress: bool, order: str) -> None:
    # 64 MiB in rows of 64 KiB, read 4 at a time: a batch is 256 KiB, as is the unpacker's buffer.
    path = save(tmp_path / "a.npz", compress, x=np.zeros((1024, 16384), np.float32, order=order))
    tracemalloc.start()
    try:
        total = sum(len(feed["x"]) for feed in read_feeds(path, [X], batch=4))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 1024
    assert peak < 4 << 20


@pytest.mark.parametrize("order", ["C", "F"])
def test_a_member_without_elements_is_an_empty_set(tmp_path: Path, order: str) -> None:
    path = save(tmp_path / "a.npz", x=np.empty((0, 3), np.float32, order=order))
    with pytest.raises(CalibrationError, match=r"the calibration set is empty: .*a\.npz holds no samples"):
        list(read_feeds(path, [X], batch=2))
    assert count_samples(path) == 0


def test_labels_may_lie_beside_the_inputs_when_ignored(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x=rows(4), labels=np.arange(5))
    [feed] = read_feeds(path, [X], batch=4, ignore={"labels"})
    assert list(feed) == ["x"]
    with pytest.raises(CalibrationError, match="holds 'labels', which the model does not know"):
        list(read_feeds(path, [X], batch=4))
    assert count_samples(path, [X]) == 4
    assert count_samples(path) is None


def test_a_wrong_key_lists_the_expected_inputs_before_reading(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", arr_0=rows(4))
    with pytest.raises(
        CalibrationError, match=r"lacks 'x'.*holds 'arr_0'.*x float32 \[\?, \?\].*rename 'arr_0' to 'x'"
    ):
        list(read_feeds(path, [X], batch=4))


def test_inputs_of_different_lengths_are_an_error(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x=rows(4), y=np.zeros((3, 2), np.int64))
    with pytest.raises(CalibrationError, match="4 of 'x', 3 of 'y'"):
        list(read_feeds(path, [X, Y], batch=4))


def test_a_model_without_a_sample_axis_gets_the_file_as_one_feed(tmp_path: Path) -> None:
    inputs = [TensorInfo("x", np.dtype("float32"), (5, 3)), TensorInfo("t", np.dtype("float32"), ())]
    path = save(tmp_path / "a.npz", x=np.asfortranarray(rows(5)), t=np.float32(2))
    [feed] = read_feeds(path, inputs, batch=1)
    assert np.array_equal(feed["x"], rows(5)) and feed["t"] == 2
    assert count_samples(path, inputs) == 1


def truncate(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flip_data(data: bytes) -> bytes:
    # The first member's array data starts 128 bytes (the padded .npy header) behind the zip's local header.
    at = data.index(b"\x93NUMPY") + 130
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def spoil_magic(data: bytes) -> bytes:
    return data.replace(b"\x93NUMPY", b"\x93NUMPX", 1)


@pytest.mark.parametrize("spoil", [truncate, flip_data, spoil_magic, lambda data: b"", lambda data: b"text" * 100])
def test_a_damaged_file_is_told_in_one_sentence(tmp_path: Path, spoil: Callable[[bytes], bytes]) -> None:
    path = save(tmp_path / "a.npz", x=rows(50))
    path.write_bytes(spoil(path.read_bytes()))
    with pytest.raises(
        CalibrationError, match=r"a\.npz cannot be read as a \.npz file \(.+\): write it again"
    ) as caught:
        list(read_feeds(path, [X], batch=7))
    assert "\n" not in str(caught.value)


@given(st.data())
def test_no_damage_surfaces_as_anything_but_a_calibration_error(data: st.DataObject) -> None:
    stream = io.BytesIO()
    np.savez_compressed(stream, x=rows(50))
    content = bytearray(stream.getvalue())
    for _ in range(3):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    # hypothesis would share one tmp_path among its examples.
    with TemporaryDirectory() as folder, contextlib.suppress(CalibrationError):
        path = Path(folder, "a.npz")
        path.write_bytes(content)
        list(read_feeds(path, [X], batch=7))


def test_a_header_that_contradicts_the_length_is_an_error(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("x.npy", member(rows(4))[:-4])
    with pytest.raises(CalibrationError, match=r"the length of x\.npy contradicts its header"):
        list(read_feeds(tmp_path / "a.npz", [X], batch=4))


def test_python_objects_are_not_unpickled(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x=np.array([[{}], [1]], dtype=object))
    with pytest.raises(CalibrationError, match="Python objects instead of numbers"):
        list(read_feeds(path, [X], batch=4))


def test_labels_are_read_as_stored(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x=rows(4), labels=np.array([3, 1, 2, 0], np.int16))
    labels = read_labels(path, "labels")
    assert labels.dtype == np.int16 and labels.tolist() == [3, 1, 2, 0]
    assert read_labels(save(tmp_path / "b.npz", y=np.empty((0,), np.int64)), "y").shape == (0,)


def test_missing_labels_list_the_keys(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x=rows(4), label=np.arange(4))
    with pytest.raises(CalibrationError, match="no labels named 'labels', only 'x', 'label'"):
        read_labels(path, "labels")


def test_a_single_value_is_no_set_of_labels(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="give one label per sample"):
        read_labels(save(tmp_path / "a.npz", y=np.int64(3)), "y")


def test_labels_in_a_missing_file_are_an_error(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"there is no file .*a\.npz"):
        read_labels(tmp_path / "a.npz", "y")


def test_labels_in_a_damaged_file_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"no zip")
    with pytest.raises(CalibrationError, match=r"cannot be read as a \.npz file"):
        read_labels(tmp_path / "a.npz", "y")
