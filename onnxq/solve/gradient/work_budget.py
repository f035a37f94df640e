"""How many samples a step of a tuning shows, and how many steps there are, within memory and work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from onnxq.config.optimization import Tuning
from onnxq.data import samples_in
from onnxq.ir.layer import Layer
from onnxq.jax_graph.interpreter import Program
from onnxq.solve.gradient.samples import Feed

FEATURES_KEPT = 2
"""Copies of what the backward pass keeps that are held besides where every layer is compared."""

WORKING_TENSORS = 8
"""Tensors of the largest size that a step holds at a time beside those it keeps."""


@dataclass(frozen=True)
class Effort:
    """What a tuning may take.

    Attributes:
        rows: samples in a step, or feeds where the network takes batches of one size only.
        steps: that it makes.
    """

    rows: int
    steps: int


def find_effort(
    program: Program, layers: Sequence[Layer], feed: Feed, options: Tuning, memory_limit: int, *, whole: bool = False
) -> Effort:
    """Rows and steps for a network, from shapes alone: the same on every machine.

    Args:
        program: of the network.
        layers: its layers; they do nearly all of the work and of what the backward pass keeps.
        feed: a batch, for the shapes.
        options: what is wished for, and the work.
        memory_limit: bytes that a step may take, roughly.
        whole: rows are feeds.
    """
    shapes = program.shapes({name: jnp.asarray(array) for name, array in feed.items()})
    sizes = {name: s.size * s.dtype.itemsize for name, s in shapes.items()}
    count = 1 if whole else samples_in(feed)
    kept = sum(sizes[name] for name in program.crossing({layer.name for layer in layers}) if name in sizes)
    beside = FEATURES_KEPT if options.features else 0  # the float network's, and the errors' gradients
    memory = (kept * (1 + beside) + WORKING_TENSORS * max(sizes.values(), default=0)) / count
    rows = int(np.clip(memory_limit // max(memory, 1), 1, options.rows))
    made = ((layer, shapes[layer.output]) for layer in layers if layer.output in shapes)
    macs = sum(int(np.prod(layer.weight_shape)) * s.size // layer.channels for layer, s in made) / count
    values = sum(s.size for s in shapes.values()) / count
    return Effort(*options.within_work(macs, values, rows))
