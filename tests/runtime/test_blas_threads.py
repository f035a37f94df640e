from __future__ import annotations

import numpy as np
import scipy.linalg  # its library of linear algebra is another one than numpy's
from threadpoolctl import ThreadpoolController

from onnxq.runtime.blas_threads import LARGE, threads_for


def threads() -> list[int]:
    np.linalg.cholesky(np.eye(3)), scipy.linalg.cholesky(np.eye(3))
    return [library["num_threads"] for library in ThreadpoolController().select(user_api="blas").info()]


def test_a_small_layer_takes_one_thread_a_large_one_all_and_the_caller_has_back_what_there_was() -> None:
    with ThreadpoolController().limit(limits=2, user_api="blas"):
        before = threads()
        assert max(before) > 1
        with threads_for(LARGE - 1):
            assert set(threads()) == {1}
        assert threads() == before
        with threads_for(LARGE):
            assert threads() == before
