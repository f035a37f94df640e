"""Tensors of a whole calibration set, batch by batch: in memory up to a limit, beyond it on disk.

What is no tensor of numbers (a sequence, a map, text) stays in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import OutputError

Arrays = dict[str, NDArray[np.generic]]


class Spool:
    """A table of arrays by batch and name.

    Args:
        limit: bytes to hold in memory; what goes beyond is written to a temporary folder.
        folder: where to make that folder; the system's place when None.
    """

    def __init__(self, limit: int, folder: Path | None = None) -> None:
        self._limit, self._held = limit, 0
        self._memory: dict[tuple[int, str], NDArray[np.generic]] = {}
        self._files: dict[tuple[int, str], Path] = {}
        self._folder = tempfile.TemporaryDirectory(prefix="onnxq-", dir=folder)
        self._written = 0

    def __enter__(self) -> Spool:
        """The spool itself; its folder goes when the block ends."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove the folder."""
        self._folder.cleanup()

    def close(self) -> None:
        """Remove the folder."""
        self._folder.cleanup()

    def put(self, batch: int, arrays: Mapping[str, NDArray[np.generic]]) -> None:
        """Store arrays of one batch, replacing those of the same names.

        Raises:
            OutputError: the disk is full.
        """
        for name, array in arrays.items():
            self.drop([(batch, name)])
            size = bytes_of(array)
            if self._held + size <= self._limit or not _is_plain(array):
                self._memory[batch, name] = array
                self._held += size
                continue
            self._written += 1
            path = Path(self._folder.name) / f"{self._written}.npy"
            try:
                np.save(path, array)
            except OSError as error:
                raise OutputError(
                    f"temporary folder {self._folder.name} cannot take the calibration tensors ({error.strerror}); "
                    "free space there, set TMPDIR to another disk, or use fewer samples."
                ) from error
            self._files[batch, name] = path

    def get(self, batch: int, names: Iterable[str]) -> Arrays:
        """Stored arrays of one batch."""
        return {
            n: self._memory[batch, n] if (batch, n) in self._memory else np.load(self._files[batch, n]) for n in names
        }

    def drop(self, keys: Iterable[tuple[int, str]]) -> None:
        """Forget arrays; keys that are not there are passed over."""
        for key in keys:
            array = self._memory.pop(key, None)
            self._held -= 0 if array is None else bytes_of(array)
            path = self._files.pop(key, None)
            if path is not None:
                path.unlink()

    def keep_only(self, names: Iterable[str]) -> None:
        """Forget every tensor but these."""
        wanted = set(names)
        self.drop([key for key in (*self._memory, *self._files) if key[1] not in wanted])


def bytes_of(value: Any) -> int:
    """Memory that a value of onnxruntime takes, its parts included."""
    if isinstance(value, np.ndarray):
        return value.nbytes if _is_plain(value) else sum(len(str(item)) for item in value.flat)
    if isinstance(value, dict):
        return 16 * len(value)
    return sum(map(bytes_of, value)) if isinstance(value, list) else 0


def _is_plain(value: Any) -> bool:
    return isinstance(value, np.ndarray) and not value.dtype.hasobject
