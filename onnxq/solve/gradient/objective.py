"""What a whole network is judged by: its outputs beside those of the float network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from numpy.typing import NDArray

from onnxq.runtime.session import Session

Feed = Mapping[str, NDArray[np.generic]]

SMALLEST_POWER = 1e-30
"""Stands for the power of an output that is 0 throughout."""


class Objective(Enum):
    """How an output is compared."""

    KL = "divergence of the softmax, in nats"
    MSE = "squared error relative to the output's power"


@dataclass(frozen=True)
class Target:
    """A tensor that the quantized network should reproduce.

    Attributes:
        tensor: its name; the class scores before a final Softmax stand for its output.
        objective: how it is compared.
        values: what the float network makes of each feed.
        power: mean square of those values.
        scores: whether they are scores of classes, which end in a softmax.
    """

    tensor: str
    objective: Objective
    values: Sequence[NDArray[np.generic]]
    power: float
    scores: bool = False

    def loss(self, wanted: jax.Array, made: jax.Array) -> jax.Array:
        """Loss of each sample, (B,)."""
        if self.objective is Objective.KL:
            return divergence(wanted, made)
        error = jnp.square(made - wanted) / self.power
        return error.reshape(error.shape[0], -1).mean(axis=1) if error.ndim else error[None]


def divergence(wanted: jax.Array, made: jax.Array) -> jax.Array:
    """Divergence of the softmax of scores (B, classes) for each sample, (B,)."""
    log_p, log_q = jax.nn.log_softmax(wanted), jax.nn.log_softmax(made)
    return jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1)


def make_target(
    tensor: str, objective: Objective, values: Sequence[NDArray[np.generic]], *, scores: bool = False
) -> Target:
    """A target of values that are gone through once for their power."""
    power = float(np.mean([np.square(v.astype(np.float64)).mean() for v in values]))
    return Target(tensor, objective, values, max(power, SMALLEST_POWER), scores)


def find_targets(model: onnx.ModelProto, feeds: Sequence[Feed], objective: Literal["mse", "kl"]) -> tuple[Target, ...]:
    """The floating-point outputs of a model, and what the float network makes of the feeds.

    Raises:
        UnsupportedError: onnxruntime cannot run the model.
    """
    names = list(dict.fromkeys(_scores(model, o.name) for o in model.graph.output))
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    del probe.graph.output[:]
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    session = Session(probe, "the float network")
    made = [session.run(feed, names) for feed in feeds]
    targets = []
    for name in names:
        values = [m[name] for m in made]
        if np.issubdtype(values[0].dtype, np.floating):
            scores = values[0].ndim == 2 and values[0].shape[1] > 1
            chosen = Objective.KL if objective == "kl" and scores else Objective.MSE
            targets.append(make_target(name, chosen, values, scores=scores))
    return tuple(targets)


def _scores(model: onnx.ModelProto, output: str) -> str:
    """The operand of a Softmax or LogSoftmax over the last of two axes that makes an output, else the output."""
    ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in (*model.graph.value_info, *model.graph.output)}
    for node in model.graph.node:
        if output in node.output and node.op_type in ("Softmax", "LogSoftmax") and ranks.get(output) == 2:
            axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
            return node.input[0] if axis in (-1, 1) else output
    return output
