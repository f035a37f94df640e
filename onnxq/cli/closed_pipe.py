"""Output to a pipe whose reader may leave early, such as ``head -1``: what it does not want is dropped."""

from __future__ import annotations

import os
from typing import IO, Any, cast


def unbreakable(stream: IO[str]) -> IO[str]:
    """The stream, without errors from the moment on that its reader is gone."""
    return cast("IO[str]", _Unbreakable(stream))


class _Unbreakable:
    """A text stream whose reader may leave; everything else is the stream's own."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write what somebody reads."""
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._drop()
            return len(text)

    def flush(self) -> None:
        """Hand on what somebody reads."""
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._drop()

    def _drop(self) -> None:
        """Lead the file nowhere: what is buffered would break again when the interpreter ends."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
