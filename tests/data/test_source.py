import subprocess
import sys
import tracemalloc
from collections import UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from onnxq.data import count_samples, read_feeds
from onnxq.errors import CalibrationError, ConfigError
from onnxq.ir.tensor import TensorInfo

X = TensorInfo("x", np.dtype("float32"), (None, 3))
Y = TensorInfo("y", np.dtype("int64"), (None,))


def rows(count: int) -> np.ndarray:
    return np.arange(3 * count, dtype=np.float32).reshape(count, 3)


class Tensor:
    """What other frameworks hand over: no numpy array, but willing to become one."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return self.array


class OnDevice:
    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        raise TypeError("can't convert device tensor")


class Loader:
    """An iterable that starts anew every time, with a length in batches."""

    def __len__(self) -> int:
        return 4

    def __iter__(self) -> Iterator[Any]:
        return iter([{"x": Tensor(rows(10)[i : i + 3])} for i in range(0, 10, 3)])


class Sequence:
    """The older protocol: indices until IndexError."""

    def __getitem__(self, index: int) -> np.ndarray:
        return rows(10)[range(0, 10, 2)[index] :][:2]


KINDS: dict[str, Callable[[], object]] = {
    "array": lambda: rows(10),
    "float64 array": lambda: rows(10).astype(np.float64),
    "tensor": lambda: Tensor(rows(10)),
    "mapping": lambda: {"x": rows(10)},
    "mapping of lists": lambda: {"x": rows(10).tolist()},
    "user's mapping": lambda: UserDict(x=Tensor(rows(10))),
    "list of arrays": lambda: [rows(10)[:1], rows(10)[1:8], rows(10)[8:]],
    "tuple of mappings": lambda: ({"x": rows(10)[:4]}, {"x": rows(10)[4:]}),
    "generator": lambda: (rows(10)[i : i + 1] for i in range(10)),
    "generator with empty batches": lambda: (rows(10)[i // 2 : (i + 1) // 2] for i in range(20)),
    "loader": Loader,
    "sequence": Sequence,
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("samples", [None, 1, 7, 10, 99])
def test_every_kind_of_object_gives_the_same_feeds(kind: str, samples: int | None) -> None:
    feeds = list(read_feeds(KINDS[kind](), [X], batch=4, samples=samples))
    want = rows(10)[:samples]
    assert [f["x"].tolist() for f in feeds] == [want[i : i + 4].tolist() for i in range(0, len(want), 4)]
    assert all(f["x"].dtype == np.float32 for f in feeds)


@given(st.lists(st.integers(0, 6), min_size=1, max_size=8), st.integers(1, 7), st.integers(1, 30))
def test_feeds_do_not_depend_on_the_batching_of_the_source(sizes: list[int], batch: int, samples: int) -> None:
    x = rows(sum(sizes) + 1)
    ends = np.cumsum(sizes, dtype=int).tolist()
    cuts = [x[a:b] for a, b in zip([0, *ends], [*ends, len(x)], strict=True)]
    whole = list(read_feeds(x, [X], batch=batch, samples=samples))
    parts = list(read_feeds(cuts, [X], batch=batch, samples=samples))
    assert [f["x"].tolist() for f in whole] == [f["x"].tolist() for f in parts]


def test_a_source_is_not_asked_for_more_than_the_samples_wanted() -> None:
    def endless() -> Iterator[Any]:
        while True:
            yield rows(2)

    assert sum(len(f["x"]) for f in read_feeds(endless(), [X], batch=3, samples=8)) == 8


def test_open_axes_close_a_batch_early() -> None:
    text = TensorInfo("ids", np.dtype("int64"), (None, None))
    feeds = read_feeds([np.ones((3, 5), int), np.ones((3, 7), int)], [text], batch=2)
    assert [f["ids"].shape for f in feeds] == [(2, 5), (1, 5), (2, 7), (1, 7)]


def test_a_fixed_first_axis_drops_the_incomplete_batch() -> None:
    fixed = TensorInfo("x", np.dtype("float32"), (4, 3))
    assert [f["x"].shape for f in read_feeds(rows(10), [fixed], batch=4)] == [(4, 3), (4, 3)]


def test_fewer_samples_than_a_fixed_first_axis_are_an_error() -> None:
    fixed = TensorInfo("x", np.dtype("float32"), (4, 3))
    with pytest.raises(CalibrationError, match="the array given gives 3 samples, but the model takes exactly 4"):
        list(read_feeds(rows(3), [fixed], batch=4))


def test_a_batch_beside_a_fixed_first_axis_is_an_error() -> None:
    fixed = TensorInfo("x", np.dtype("float32"), (4, 3))
    with pytest.raises(ConfigError, match="batch is 8 where the model takes exactly 4 samples at a time: set it to 4"):
        read_feeds(rows(3), [fixed], batch=8)


@pytest.mark.parametrize(
    ("samples", "batch", "told"), [(0, 1, "samples is 0"), (-3, 1, "samples is -3"), (None, 0, "batch is 0")]
)
def test_counts_below_one_are_an_error(samples: int | None, batch: int, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read_feeds(rows(3), [X], batch=batch, samples=samples)


def test_without_a_sample_axis_feeds_pass_as_they_are() -> None:
    scalar = TensorInfo("t", np.dtype("float32"), ())
    feeds = list(read_feeds([{"t": 1.0}, {"t": 2.5}], [scalar], batch=8))
    assert [(f["t"].shape, f["t"].dtype, float(f["t"])) for f in feeds] == [
        ((), np.float32, 1.0),
        ((), np.float32, 2.5),
    ]


def test_several_inputs_stay_in_step() -> None:
    batches = [{"y": np.arange(i, i + 3), "x": rows(9)[i : i + 3]} for i in range(0, 9, 3)]
    for feed in read_feeds(batches, [X, Y], batch=2):
        assert feed["x"][:, 0].tolist() == [3 * y for y in feed["y"].tolist()]


@pytest.mark.parametrize("data", [rows(0), {"x": rows(0)}, [], [rows(0)], iter([])])
def test_no_samples_are_an_error(data: object) -> None:
    with pytest.raises(CalibrationError, match=r"the calibration set is empty: the .* given.* holds no samples"):
        list(read_feeds(data, [X], batch=2))


def test_a_generator_that_was_used_up_is_recognised() -> None:
    batches = (rows(2) for _ in range(3))
    list(read_feeds(batches, [X], batch=2))
    with pytest.raises(CalibrationError, match=r"the generator given \(which can be read only once\) holds no samples"):
        list(read_feeds(batches, [X], batch=2))


def test_nameless_samples_for_several_inputs_are_an_error() -> None:
    for data in (rows(3), [rows(3)]):
        with pytest.raises(CalibrationError, match=r"which of the model's 2 inputs \('x', 'y'\) it is for"):
            list(read_feeds(data, [X, Y], batch=2))


@pytest.mark.parametrize("batch", [(rows(2), np.arange(2)), [rows(2)], None, "text"])
def test_a_batch_that_is_no_array_is_an_error_with_advice(batch: object) -> None:
    with pytest.raises(CalibrationError, match=r"batch 1 of the list given is a \w+ where an array or a mapping"):
        list(read_feeds([rows(2), batch], [X], batch=2))


@pytest.mark.parametrize("value", [OnDevice(), [[1.0, 2.0], [3.0]]])
def test_a_value_that_cannot_become_an_array_names_the_input(value: object) -> None:
    with pytest.raises(CalibrationError, match="the mapping given, input 'x', cannot be turned into a numpy array"):
        list(read_feeds({"x": value}, [X], batch=2))
    with pytest.raises(CalibrationError, match="batch 0 of the list given, input 'x', cannot be turned"):
        list(read_feeds([{"x": value}], [X], batch=2))


def test_a_tensor_that_cannot_become_an_array_is_an_error() -> None:
    with pytest.raises(CalibrationError, match=r"the array given cannot be turned .*can't convert device tensor"):
        read_feeds(OnDevice(), [X], batch=2)


def test_errors_of_the_callers_own_iterable_pass_through() -> None:
    def failing() -> Iterator[Any]:
        yield rows(2)
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        list(read_feeds(failing(), [X], batch=1))


def test_a_wrong_batch_is_told_by_its_number() -> None:
    with pytest.raises(CalibrationError, match=r"batch 1 of the list given has x float32 \[2, 4\]"):
        list(read_feeds([rows(2), np.zeros((2, 4), np.float32)], [X], batch=1))


def test_an_object_without_samples_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="samples cannot be read from an object of type int"):
        read_feeds(3, [X], batch=1)  # type: ignore[arg-type]


def test_a_missing_path_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"there is no file or folder .*nothing\.npz"):
        read_feeds(str(tmp_path / "nothing.npz"), [X], batch=1)


def test_a_file_of_another_kind_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("1,2,3")
    with pytest.raises(CalibrationError, match=r"a\.csv is no kind of file that samples are read from"):
        read_feeds(tmp_path / "a.csv", [X], batch=1)


def test_a_model_without_inputs_is_an_error() -> None:
    with pytest.raises(CalibrationError, match="the model has no inputs"):
        read_feeds(rows(2), [], batch=1)


@pytest.mark.parametrize(
    ("data", "want"),
    [
        (rows(5), 5),
        ({"x": rows(5), "y": np.arange(5)}, 5),
        ({"x": rows(5), "y": np.arange(6)}, None),
        ({}, None),
        (np.float32(1), None),
        ([rows(5)], None),
        (iter([rows(5)]), None),
    ],
)
def test_samples_are_counted_where_it_is_cheap(data: object, want: int | None) -> None:
    assert count_samples(data) == want


def test_counting_does_not_use_up_a_generator() -> None:
    batches = (rows(1) for _ in range(3))
    count_samples(batches)
    assert len(list(batches)) == 3


def test_a_large_array_is_converted_a_batch_at_a_time() -> None:
    values = {"x": np.zeros((1 << 20, 3))}  # 24 MiB of float64
    tracemalloc.start()
    try:
        total = sum(len(feed["x"]) for feed in read_feeds(values, [X], batch=1 << 14))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert total == 1 << 20
    assert peak < 1 << 20  # a batch is 192 KiB


def test_the_image_library_loads_only_for_images() -> None:
    program = "import sys, onnxq.data; sys.exit('PIL' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
