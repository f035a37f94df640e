"""Nodes that map each channel by itself: z = scale·y + shift. BatchNormalization, and scattered pieces of one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxq.passes.graph_editor import Draft, op_of


@dataclass(frozen=True)
class BatchNorm:
    """A BatchNormalization in inference form.

    Attributes:
        gamma, beta, mean, variance: (C,), float64.
        epsilon: added to the variance.
    """

    gamma: NDArray[np.float64]
    beta: NDArray[np.float64]
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    epsilon: float

    @property
    def scale(self) -> NDArray[np.float64]:
        """γ / √(σ² + ε), (C,)."""
        return np.asarray(self.gamma / np.sqrt(self.variance + self.epsilon))

    @property
    def shift(self) -> NDArray[np.float64]:
        """β − μ·scale, (C,)."""
        return np.asarray(self.beta - self.mean * self.scale)


def read_batchnorm(draft: Draft, node: gs.Node) -> BatchNorm | str:
    """The map of a BatchNormalization node, or the reason why it cannot be told (to stand behind "because")."""
    if node.attrs.get("training_mode", 0) or sum(not t.is_empty() for t in node.outputs) > 1:
        return "it is in training mode, where it follows the statistics of each batch: export the model for inference"
    values = []
    for tensor in node.inputs[1:5]:
        value = draft.value(tensor)
        if value is None:
            return draft.why_no_value(tensor)
        values.append(value.astype(np.float64))
    epsilon = float(node.attrs.get("epsilon", 1e-5))
    if not np.all(values[3] + epsilon > 0) or not all(np.isfinite(v).all() for v in values):
        return "its constants hold a negative variance or a value that is not finite"
    gamma, beta, mean, variance = values
    return BatchNorm(gamma, beta, mean, variance, epsilon)


def read_arithmetic(draft: Draft, node: gs.Node, data: gs.Tensor, channels: int, rank: int) -> tuple[Any, Any] | None:
    """Scale and shift, both (channels,) float64, of an Add, Sub, Mul or Div with a constant per channel.

    Args:
        draft: the pass at work.
        node: the node that reads `data`.
        data: a tensor whose axis 1 counts channels.
        channels: their number.
        rank: number of axes of `data`.
    """
    if op_of(node) not in ("Add", "Sub", "Mul", "Div"):
        return None
    first = node.inputs[0] is data
    stored = draft.value(node.inputs[1 if first else 0])
    if stored is None or (op_of(node) == "Div" and (not first or not stored.all())):
        return None
    shape = (1,) * (rank - stored.ndim) + stored.shape
    if len(shape) != rank or any(d != 1 for i, d in enumerate(shape) if i != 1) or shape[1] not in (1, channels):
        return None
    value = np.broadcast_to(stored.astype(np.float64).reshape(-1), (channels,))
    one, zero = np.ones(channels), np.zeros(channels)
    forms = {"Mul": (value, zero), "Add": (one, value), "Sub": (one, -value) if first else (-one, value)}
    return forms[op_of(node)] if op_of(node) != "Div" else (1 / value, zero)
