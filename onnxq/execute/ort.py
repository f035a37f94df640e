"""Running models and parts of models with onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxq.errors import UnsupportedError

Arrays = dict[str, NDArray[np.generic]]


class Session:
    """A loaded model.

    Args:
        model: what to run.
        what: how to call it in an error message.

    Raises:
        UnsupportedError: onnxruntime cannot load it; the reason is given.
    """

    def __init__(self, model: onnx.ModelProto, what: str) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.enable_mem_pattern = False  # shapes may change from batch to batch
        options.enable_cpu_mem_arena = False  # the arena keeps its peak; memory is promised back
        try:
            self._session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's exceptions have no common public base
            raise UnsupportedError(f"onnxruntime cannot load {what}: {_first_line(error)}") from error
        self._what = what
        self._outputs = [o.name for o in self._session.get_outputs()]

    def run(self, feed: Mapping[str, NDArray[np.generic]], outputs: Sequence[str] | None = None) -> Arrays:
        """Outputs by name for one batch.

        Raises:
            UnsupportedError: the run fails inside onnxruntime; the reason is given.
        """
        names = list(self._outputs if outputs is None else outputs)
        try:
            return dict(zip(names, self._session.run(names, {n: np.asarray(v) for n, v in feed.items()}), strict=True))
        except Exception as error:
            raise UnsupportedError(f"onnxruntime cannot run {self._what}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return " ".join(str(error).strip().split("\n")[0].split())
