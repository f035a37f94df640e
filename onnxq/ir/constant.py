"""What can be said of the constants of a graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.ir.surgeon import is_sparse


def is_plain(tensor: gs.Tensor) -> bool:
    """Whether a tensor is a dense constant of numbers that numpy knows by itself."""
    if not isinstance(tensor, gs.Constant) or is_sparse(tensor):
        return False
    # onnx-graphsurgeon gives the number of the ONNX type where it finds no numpy type.
    return not isinstance(tensor.dtype, int) and is_plain_dtype(np.dtype(tensor.dtype))


def is_plain_dtype(dtype: np.dtype[Any]) -> bool:
    """Whether numpy itself has a type of numbers, not one of its extensions (int4, bfloat16, float8)."""
    return dtype.isbuiltin == 1 and dtype.kind in "fiub"
