"""Range and power of each channel of chosen tensors over a few samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxq.execute.ort import Session
from onnxq.ir.outline import Outline

LOW, HIGH, POWER = "{}/channel_low", "{}/channel_high", "{}/channel_power"


@dataclass(frozen=True)
class ChannelStatistics:
    """The channels of a tensor over a few samples.

    Attributes:
        low, high: smallest and largest value, (channels,), float32.
        power: mean square, (channels,), float32.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    power: NDArray[np.float32]

    @property
    def largest(self) -> NDArray[np.float32]:
        """Largest magnitude, (channels,)."""
        return np.maximum(np.abs(self.low), np.abs(self.high))

    def multiplied(self, factors: NDArray[np.float32]) -> ChannelStatistics:
        """Those of the tensor with its channels multiplied by factors of either sign, (channels,)."""
        ends = np.stack([factors * self.low, factors * self.high])
        return ChannelStatistics(ends.min(axis=0), ends.max(axis=0), np.square(factors) * self.power)


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
            low=np.stack([m[LOW.format(name)].astype(np.float32) for m in made]).min(axis=0),
            high=np.stack([m[HIGH.format(name)].astype(np.float32) for m in made]).max(axis=0),
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
        squared = f"{POWER.format(name)}/each"
        graph.node.append(helper.make_node("Mul", [name, name], [squared]))
        for reduced, of, operator in (
            (LOW.format(name), name, "ReduceMin"),
            (HIGH.format(name), name, "ReduceMax"),
            (POWER.format(name), squared, "ReduceMean"),
        ):
            if modern:
                graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), f"{reduced}/axes"))
                node = helper.make_node(operator, [of, f"{reduced}/axes"], [reduced], keepdims=0)
            else:
                node = helper.make_node(operator, [of], [reduced], keepdims=0, axes=axes)
            graph.node.append(node)
            graph.output.append(helper.make_tensor_value_info(reduced, onnx.TensorProto.FLOAT, None))
