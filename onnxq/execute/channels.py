"""Magnitude and power of each channel of chosen tensors over a few samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxq.execute.ort import Session
from onnxq.ir.outline import Outline

MAGNITUDE, POWER = "{}/channel_magnitude", "{}/channel_power"


@dataclass(frozen=True)
class ChannelStatistics:
    """The channels of a tensor over a few samples.

    Attributes:
        largest: largest magnitude, (channels,), float32.
        power: mean square, (channels,), float32.
    """

    largest: NDArray[np.float32]
    power: NDArray[np.float32]


def channel_statistics(
    model: Outline, ranks: Mapping[str, int], feeds: Iterable[Mapping[str, NDArray[np.generic]]]
) -> dict[str, ChannelStatistics]:
    """Run a model and reduce tensors to their channels (axis 1) on the way, so that none is kept.

    Args:
        model: at opset 13 or newer; its outputs change.
        ranks: number of axes of the tensors wanted, by name.
        feeds: samples.
    """
    _reduce(model.proto, ranks)
    session = Session(model, "the model with its channel statistics")
    made = [session.run(feed) for feed in feeds]
    return {
        name: ChannelStatistics(
            largest=np.stack([m[MAGNITUDE.format(name)].astype(np.float32) for m in made]).max(axis=0),
            power=np.stack([m[POWER.format(name)].astype(np.float32) for m in made]).mean(axis=0),
        )
        for name in ranks
    }


def _reduce(model: onnx.ModelProto, ranks: Mapping[str, int]) -> None:
    """Make reductions of some of a model's tensors its only outputs, in place."""
    graph = model.graph
    del graph.output[:]
    modern = max(i.version for i in model.opset_import if i.domain in ("", "ai.onnx")) >= 18
    for name, rank in ranks.items():
        axes = [a for a in range(rank) if a != 1]
        for reduced, first, second in (
            (MAGNITUDE.format(name), ("Abs", [name]), "ReduceMax"),
            (POWER.format(name), ("Mul", [name, name]), "ReduceMean"),
        ):
            graph.node.append(helper.make_node(*first, [f"{reduced}/each"]))
            if modern:
                graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), f"{reduced}/axes"))
                node = helper.make_node(second, [f"{reduced}/each", f"{reduced}/axes"], [reduced], keepdims=0)
            else:
                node = helper.make_node(second, [f"{reduced}/each"], [reduced], keepdims=0, axes=axes)
            graph.node.append(node)
            graph.output.append(helper.make_tensor_value_info(reduced, onnx.TensorProto.FLOAT, None))
