"""Threads of the linear algebra behind NumPy and SciPy, for the size of what they work on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

from threadpoolctl import ThreadpoolController

LARGE = 2048
"""Inputs of a layer from which on its factorization is worth more than one thread. Those of a smaller one wait for each
other in busy loops longer than they work: where the cores are shared, five times the processor's time for nothing."""


def threads_for(inputs: int) -> AbstractContextManager[object]:
    """A block in which the linear algebra of a layer takes one thread, or all that there are; as before behind it.

    Args:
        inputs: of one output of the layer.
    """
    if inputs >= LARGE:
        return nullcontext()
    limited: AbstractContextManager[object] = ThreadpoolController().limit(limits=1, user_api="blas")
    return limited
