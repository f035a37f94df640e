"""Freed memory given back to the system."""

from __future__ import annotations

import ctypes
import functools
import gc
import sys

M_MMAP_THRESHOLD = -3
"""glibc's number of the size from which a block is one of its own."""

LARGE_BLOCK = 2**20
"""Bytes of such a block."""


def free_old_graphs() -> None:
    """Free the graphs that a pass has left behind, and their weights.

    Nodes and tensors refer to each other, so they wait for Python's collector, which counts objects and not bytes.
    """
    gc.collect()
    give_back_freed_memory()


def return_large_blocks() -> None:
    """Let the C library hand large blocks back to the system as soon as they are freed.

    glibc raises the size from which it does so to that of the largest block freed so far, up to 32 MiB: feature maps of
    a few MiB then pile up, to several times what is in use at any moment.
    """
    library = _library()
    if library is not None:
        library.mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK)


def give_back_freed_memory() -> None:
    """Let the C library return what was freed.

    glibc keeps freed blocks of up to 32 MiB for later, each thread's on its own; after a stage with large
    feature maps that can be half a gigabyte which the process no longer uses but is charged for. Other
    C libraries return it by themselves.
    """
    library = _library()
    if library is not None:
        library.malloc_trim(0)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """glibc; None where the C library is another."""
    library = ctypes.CDLL(None) if sys.platform.startswith("linux") else None
    return library if hasattr(library, "malloc_trim") else None
