"""Running models and parts of models with onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxq.errors import UnsupportedError
from onnxq.ir.external_weights import Outline
from onnxq.ir.save import save
from onnxq.ir.size import fits_one_message

Arrays = dict[str, NDArray[np.generic]]


class Session:
    """A loaded model.

    Args:
        model: what to run; as an outline it may be over 2 GiB.
        what: how to call it in an error message.

    Raises:
        UnsupportedError: onnxruntime cannot load it; the reason is given.
    """

    def __init__(self, model: onnx.ModelProto | Outline, what: str) -> None:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.enable_mem_pattern = False  # shapes may change from batch to batch
        # Threads that wait in a busy loop keep the cores from the work on the batch before.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_cpu_mem_arena = False  # the arena keeps its peak; memory is promised back
        try:
            with _startable(model, options) as source:
                self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
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
            given = {n: v if isinstance(v, list) else np.asarray(v) for n, v in feed.items()}
            return dict(zip(names, self._session.run(names, given), strict=True))
        except Exception as error:
            raise UnsupportedError(f"onnxruntime cannot run {self._what}: {_first_line(error)}") from error


@contextmanager
def _startable(model: onnx.ModelProto | Outline, options: ort.SessionOptions) -> Iterator[bytes | str]:
    """A model as onnxruntime takes it: its bytes, or, where they are too many, a file with the weights beside it.

    Constants of an outline are copied once, into the session.
    """
    outline = model if isinstance(model, Outline) else Outline(model, {})
    arrays = outline.arrays()
    options.add_external_initializers(list(arrays), [ort.OrtValue.ortvalue_from_numpy(a) for a in arrays.values()])
    fits = fits_one_message(outline.proto)
    if not fits:
        options.add_session_config_entry("session.disable_prepacking", "1")  # it packs a second copy of them
    if fits or arrays:
        yield outline.proto.SerializeToString()
        return
    with TemporaryDirectory(prefix="onnxq-") as folder:
        save(outline.proto, Path(folder) / "model.onnx")
        yield str(Path(folder) / "model.onnx")


def _first_line(error: Exception) -> str:
    return " ".join(str(error).strip().split("\n")[0].split())
