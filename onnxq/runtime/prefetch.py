"""Work on one batch beside the work that prepares the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def one_ahead(make: Callable[[int], T], count: int) -> Iterator[T]:
    """``make(0)``, ``make(1)``, … in order, each made in a thread while the one before it is used.

    onnxruntime and numpy let other threads run while they compute. At most two of what is made are alive, besides
    what the reader keeps; what ``make`` raises is raised when its turn comes.

    Example:
        >>> list(one_ahead(lambda i: i * i, 4))
        [0, 1, 4, 9]
    """
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming = thread.submit(make, 0) if count else None
        for index in range(1, count + 1):
            assert coming is not None
            made = coming.result()
            coming = thread.submit(make, index) if index < count else None
            yield made
            del made
