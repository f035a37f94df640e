"""Freed memory given back to the system."""

from __future__ import annotations

import ctypes
import functools
import gc
import sys
from collections.abc import Callable


def free_old_graphs() -> None:
    """Free the graphs that a pass has left behind, and their weights.

    Nodes and tensors refer to each other, so they wait for Python's collector, which counts objects and not bytes.
    """
    gc.collect()
    give_back_freed_memory()


def give_back_freed_memory() -> None:
    """Let the C library return what was freed.

    glibc keeps freed blocks of up to 32 MiB for later, each thread's on its own; after a stage with large
    feature maps that can be half a gigabyte which the process no longer uses but is charged for. Other
    C libraries return it by themselves.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    function: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return function
