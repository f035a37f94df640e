"""onnx-graphsurgeon without its remarks, which it prints on stdout, where a program may be reading JSON."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from onnx_graphsurgeon.logger import G_LOGGER


@contextmanager
def quiet() -> Iterator[None]:
    """Keep onnx-graphsurgeon from printing anything but errors that end a program, for as long as a block lasts."""
    before = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.CRITICAL
    try:
        yield
    finally:
        G_LOGGER.severity = before
