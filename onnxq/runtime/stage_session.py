"""A stage of a network as a session of onnxruntime."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.ir.model import Model
from onnxq.ir.stage import Stage, stage_model
from onnxq.ir.subgraph import kind_of
from onnxq.quant.spec import QuantParams
from onnxq.runtime.session import Session
from onnxq.runtime.spool import Arrays

NOTHING: Mapping[Any, Any] = MappingProxyType({})


def stage_session(
    model: Model,
    stage: Stage,
    outputs: Iterable[str],
    feed: Arrays,
    constants: Mapping[tuple[str, str], NDArray[np.float32]] = NOTHING,
    quantizers: Mapping[str, QuantParams] = NOTHING,
) -> Session:
    """A session of a stage's model.

    Args:
        model: prepared.
        stage: which part of it.
        outputs: names of the tensors that it gives back.
        feed: of its model, whose element types it takes.
        constants: values to put in place of its own, by the constant's and the layer's or node's name.
        quantizers: grids of tensors to quantize where they are made.
    """
    types = {name: kind_of(value) for name, value in feed.items()}
    part = stage_model(model, stage, list(outputs), types, constants, quantizers)
    return Session(part, f"the part of the model from {stage.nodes[0]} to {stage.nodes[-1]}")
