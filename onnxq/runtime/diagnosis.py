"""Whose fault it is when something unforeseen goes wrong: the model's, if onnxruntime cannot load it either."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from onnxq.errors import InputError, ModelError
from onnxq.ir.size import fits_one_message
from onnxq.runtime.session import Session


@contextmanager
def diagnosed(model: str | Path | onnx.ModelProto) -> Iterator[None]:
    """Turn an unforeseen exception in the block into a sentence on the model, where the model is to blame.

    Args:
        model: what the block works on.

    Raises:
        ModelError: onnxruntime refuses the model, or a name in it is no text; the reason is given.
        Exception: whatever was raised in the block, where onnxruntime takes the model.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        # protobuf takes any bytes for a name, and onnxruntime does not look at those of subgraphs.
        reason = "a name in it is not UTF-8" if isinstance(error, UnicodeDecodeError) else _refusal(model)
        if reason is None:
            raise
        name = "the model" if isinstance(model, onnx.ModelProto) else f"model {model}"
        raise ModelError(f"{name} is not sound ({reason}); export it again.") from error


def _refusal(model: str | Path | onnx.ModelProto) -> str | None:
    """Why onnxruntime does not load a model; None where it does, or where asking it takes too much."""
    if isinstance(model, onnx.ModelProto) and not fits_one_message(model):
        return None
    try:
        Session(model if isinstance(model, onnx.ModelProto) else onnx.load(model), "it")
    except Exception as error:  # of the parser and of onnxruntime
        return " ".join(str(error).strip().split("\n")[0].split())
    return None
