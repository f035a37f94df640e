"""Grids of layers' outputs that suit what is made of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxq.ir.model import Model
from onnxq.ir.pointwise import Pointwise, pointwise_behind
from onnxq.ir.subgraph import part_model, set_ends
from onnxq.quant.histogram import Histogram
from onnxq.quant.scale_search import activation_params, points_for
from onnxq.quant.spec import QuantParams, QuantSpec
from onnxq.runtime.session import Session


def output_grid(model: Model, tensor: str, histogram: Histogram, spec: QuantSpec) -> QuantParams:
    """The grid of a tensor that is quantized where it is made: of least error behind its activation function.

    Args:
        model: that makes the tensor.
        tensor: its name.
        histogram: of its values.
        spec: the grid's bits.
    """
    function = pointwise_behind(model, tensor)
    response = None if function is None else response_at(model, function, histogram.points(points_for(spec))[0])
    known = response is not None and bool(np.isfinite(response).all())  # a logarithm has no values below zero
    if not histogram.size:  # no value was seen: any grid will do
        return activation_params(histogram.update(np.zeros(1, np.float32)), spec)
    return activation_params(histogram, spec, response if known else None)


def response_at(model: Model, function: Pointwise, points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Values of a function of a model's tensor, (points,)."""
    part = part_model(model, set(function.nodes), "activation function")
    set_ends(part.proto, {function.tensor: np.dtype(np.float32)}, [function.result])
    session = Session(part, f"what is computed of {function.tensor}")
    made = session.run({function.tensor: points.astype(np.float32)})[function.result]
    return np.asarray(made, np.float64).reshape(-1)
