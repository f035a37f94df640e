"""The .npy format: headers, and a single file as a source.

Reference: NumPy Enhancement Proposal 1, "A Simple File Format for NumPy Arrays".
"""

from __future__ import annotations

import math
import mmap
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from tokenize import TokenError
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from onnxq.data.feed import Piece, Signature
from onnxq.errors import CalibrationError

_READ = 1 << 18  # bytes asked of an unpacker at a time: what it returns is copied into place and freed
_READERS = {(1, 0): npy_format.read_array_header_1_0, (2, 0): npy_format.read_array_header_2_0}


@dataclass(frozen=True)
class Header:
    """What the head of a .npy stream says about the array behind it."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype[Any]

    @property
    def nbytes(self) -> int:
        """Bytes of the array behind the header."""
        return math.prod(self.shape) * self.dtype.itemsize

    def lifted(self) -> Header:
        """The same bytes seen as the only row of an array with one more axis in front."""
        return replace(self, shape=(1, *self.shape))


def read_header(stream: IO[bytes]) -> Header:
    """Read the head of a .npy stream and leave the stream at the first element.

    Raises:
        ValueError: not a .npy stream, or one that only Python objects (pickle) can be made from.
    """
    version = npy_format.read_magic(stream)
    # Version 3 exists for field names of structured types, and no model takes those.
    if version not in _READERS:
        raise ValueError(f"version {version[0]}.{version[1]} of the format is not supported")
    try:
        header = Header(*_READERS[version](stream))
    except (SyntaxError, TokenError) as error:  # numpy reads the header as a Python expression
        raise ValueError("its header is damaged") from error
    if header.dtype.hasobject:
        raise ValueError("it holds Python objects instead of numbers")
    return header


def mapped(stream: IO[bytes], header: Header) -> NDArray[Any]:
    """The array that starts where a file stands, mapped: only what is touched is read.

    Args:
        stream: a file on the disk; it may be closed afterwards.
        header: what lies there.

    Returns:
        A read-only array, which keeps the mapping alive.

    Raises:
        ValueError: the file ends before the array does.
    """
    if os.fstat(stream.fileno()).st_size < stream.tell() + header.nbytes:
        raise ValueError("it ends too early")
    mapping = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    order: Literal["F", "C"] = "F" if header.fortran_order else "C"
    return np.ndarray(header.shape, header.dtype, mapping, stream.tell(), order=order)


def rows_of(stream: IO[bytes], header: Header, rows: int) -> Iterator[NDArray[Any]]:
    """The array behind a header, ``rows`` of its first axis at a time."""
    length, *sample = header.shape
    if header.fortran_order and header.nbytes:
        # Column-major rows are scattered over the whole member: unpack it to the disk, not to memory.
        with TemporaryFile() as spool:
            shutil.copyfileobj(stream, spool)
            spool.flush()
            spool.seek(0)
            array = mapped(spool, header)
        yield from (array[start : start + rows] for start in range(0, length, rows))
        return
    for start in range(0, length, rows):
        block = np.empty((min(rows, length - start), *sample), header.dtype)
        _fill(stream, block.reshape(-1).view(np.uint8))
        yield block
    stream.read(1)  # at the end of the member its checksum is compared


def _fill(stream: IO[bytes], target: NDArray[np.uint8]) -> None:
    done = 0
    while done < target.size:
        got = stream.read(min(_READ, target.size - done))
        if not got:
            raise EOFError
        target[done : done + len(got)] = np.frombuffer(got, np.uint8)
        done += len(got)


def whole(stream: IO[bytes], header: Header) -> NDArray[Any]:
    """The array behind a header, all of it."""
    [block] = rows_of(stream, header.lifted(), 1)
    array: NDArray[Any] = block[0]
    return array


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, with everything that can go wrong in it told as one error that names it."""
    try:
        with path.open("rb") as stream:
            yield stream
    except EOFError as error:
        raise CalibrationError(f"{path} ends too early, or changed while it was read: write it again") from error
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{path} cannot be read as a .npy file ({error}): write it with numpy.save") from error


def read_npy(path: Path, rows: int | None = None) -> Iterator[NDArray[Any]]:
    """The array in a .npy file, so many of its rows at a time, or as a whole.

    It is read, not mapped: a file that another program makes shorter would end the process.

    Raises:
        CalibrationError: the file is missing, damaged, not a .npy file, or became shorter.
    """
    with _opened(path) as stream:
        header = read_header(stream)
        if os.fstat(stream.fileno()).st_size < stream.tell() + header.nbytes:
            raise ValueError("it ends too early")
        if rows is None or not header.shape:
            yield whole(stream, header)
        else:
            yield from rows_of(stream, header, rows)


def npy_header(path: Path) -> Header:
    """The header of a .npy file.

    Raises:
        CalibrationError: the file is missing or not a .npy file.
    """
    with _opened(path) as stream:
        return read_header(stream)


@dataclass(frozen=True)
class NpyFile:
    """A .npy file with the samples of a single-input model, first axis samples."""

    path: Path

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def pieces(self, signature: Signature, rows: int) -> Iterator[Piece]:
        """``rows`` samples at a time."""
        name = signature.only(self.name).name
        shape = npy_header(self.path).shape
        rows_or_all = rows if signature.has_sample_axis and shape and shape[0] else None
        for array in read_npy(self.path, rows_or_all):
            yield Piece(self.name, {name: array})

    def count(self, signature: Signature | None) -> int | None:
        """Length of the first axis, from the header."""
        shape = npy_header(self.path).shape
        if signature is not None and not signature.has_sample_axis:
            return 1
        return shape[0] if shape else None
