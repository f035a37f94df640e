"""A .npz file as a source, read row by row: no member is ever unpacked whole."""

from __future__ import annotations

import lzma
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from onnxq.data.feed import Piece, Signature
from onnxq.data.npy import Header, read_header, rows_of, whole
from onnxq.data.stacked import feeds_in
from onnxq.data.validate import check, check_names
from onnxq.errors import CalibrationError
from onnxq.ir.tensor import TensorInfo


@dataclass(frozen=True)
class NpzFile:
    """A .npz file with one array per model input, first axis samples.

    For a model without a sample axis the file is one feed, or several (:mod:`onnxq.data.stacked`).
    """

    path: Path

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def pieces(self, signature: Signature, rows: int) -> Iterator[Piece]:
        """``rows`` samples at a time, all inputs in step.

        Raises:
            CalibrationError: the file is damaged, or what it holds does not fit the model.
        """
        with _unpacking(self.path) as archive, ExitStack() as stack:
            keys = _members(archive)
            check_names(keys, signature, self.name)
            headers = {info.name: _header(archive, keys[info.name]) for info in signature.inputs}
            signature = signature.settled({key: h.shape for key, h in headers.items()})
            if signature.has_sample_axis:
                check({key: TensorInfo(key, h.dtype, h.shape) for key, h in headers.items()}, signature, self.name)
            opened = {info.name: stack.enter_context(archive.open(keys[info.name])) for info in signature.inputs}
            if not signature.has_sample_axis:
                yield Piece(self.name, {name: whole(stream, read_header(stream)) for name, stream in opened.items()})
                return
            walks = [rows_of(stream, read_header(stream), rows) for stream in opened.values()]
            for arrays in zip(*walks, strict=True):
                yield Piece(self.name, dict(zip(opened, arrays, strict=True)))

    def count(self, signature: Signature | None) -> int | None:
        """Length of the first axis, from the headers, where all arrays (or all inputs) agree on it."""
        with _unpacking(self.path) as archive:
            if signature is not None:
                found = {key: _header(archive, m).shape for key, m in _members(archive).items() if signature.takes(key)}
                signature = signature.settled(found)
                if not signature.has_sample_axis:
                    return feeds_in(found, signature)
            lengths = {
                _header(archive, member).shape[:1]
                for key, member in _members(archive).items()
                if signature is None or signature.takes(key)
            }
        return lengths.pop()[0] if len(lengths) == 1 and () not in lengths else None


def read_labels(path: str | os.PathLike[str], key: str) -> NDArray[Any]:
    """The labels stored in a .npz file beside the samples.

    Args:
        path: the .npz file.
        key: name of the array of labels.

    Returns:
        The array as stored, first axis samples.

    Raises:
        CalibrationError: the file cannot be read, holds no such array, or one without a sample axis.
    """
    file = Path(path)
    with _unpacking(file) as archive:
        keys = _members(archive)
        if key not in keys:
            listed = ", ".join(repr(name) for name in keys) or "nothing"
            raise CalibrationError(f"{file} holds no labels named {key!r}, only {listed}: name one of these")
        with archive.open(keys[key]) as stream:
            labels = whole(stream, read_header(stream))
    if labels.ndim == 0:
        raise CalibrationError(f"{file} holds a single value as labels {key!r}: give one label per sample")
    return labels


@contextmanager
def _unpacking(path: Path) -> Iterator[zipfile.ZipFile]:
    """The archive, with everything that can go wrong inside told as one error that names it."""
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError as error:
        raise CalibrationError(f"there is no file {path}: give the path of a .npz file") from error
    # An encrypted member is a RuntimeError, an unknown compression a NotImplementedError.
    except (
        OSError,
        EOFError,
        ValueError,
        RuntimeError,
        zipfile.BadZipFile,
        zlib.error,
        lzma.LZMAError,
    ) as error:
        raise CalibrationError(
            f"{path} cannot be read as a .npz file ({str(error) or 'it ends too early'}): "
            "write it again with numpy.savez"
        ) from error


def _members(archive: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Members by the key that numpy gives them."""
    return {member.filename.removesuffix(".npy"): member for member in archive.infolist()}


def _header(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> Header:
    with archive.open(member) as stream:
        header = read_header(stream)
        if header.nbytes != member.file_size - stream.tell():
            raise ValueError(f"the length of {member.filename} contradicts its header")
    return header
