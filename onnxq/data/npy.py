"""The .npy format: headers, and a single file as a source.

Reference: NumPy Enhancement Proposal 1, "A Simple File Format for NumPy Arrays".
"""

from __future__ import annotations

import math
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from onnxq.data.feed import Piece, Signature
from onnxq.errors import CalibrationError

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


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file, with everything that can go wrong in it told as one error that names it."""
    try:
        with path.open("rb") as stream:
            yield stream
    except (OSError, ValueError) as error:
        raise CalibrationError(f"{path} cannot be read as a .npy file ({error}): write it with numpy.save") from error


def open_npy(path: Path) -> NDArray[Any]:
    """The array in a .npy file, mapped.

    Raises:
        CalibrationError: the file is missing, damaged or not a .npy file.
    """
    with _opened(path) as stream:
        return mapped(stream, read_header(stream))


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
        """The mapped file, whole: whoever cuts it reads it."""
        yield Piece(self.name, {signature.only(self.name).name: open_npy(self.path)})

    def count(self, signature: Signature | None) -> int | None:
        """Length of the first axis, from the header."""
        shape = npy_header(self.path).shape
        if signature is not None and not signature.has_sample_axis:
            return 1
        return shape[0] if shape else None
