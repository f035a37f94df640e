"""Tensors of which the quantised network may hold other rows than the float one."""

from __future__ import annotations

from onnxq.ir.model import Model
from onnxq.ir.outline import outline_of
from onnxq.selection import chosen_tensors


def chosen_in(model: Model) -> frozenset[str]:
    """Names of the tensors whose length or choice of rows depends on what layers make."""
    return frozenset(chosen_tensors(outline_of(model.graph).proto.graph))
