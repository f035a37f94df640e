"""Range and power of each channel of chosen tensors over a few samples."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxq.ir.external_weights import Outline
from onnxq.runtime.session import Session

LOW, HIGH, POWER = "{}/channel_low", "{}/channel_high", "{}/channel_power"


RARE = 3.0
"""Standard deviations of the samples' extremes that lie between their mean and where a channel is taken to end: one
sample in a hundred goes further if they follow Gumbel's distribution. The largest of a few samples would be a matter
of chance, and channels brought to one range by it would all be cut off by the next sample."""


@dataclass(frozen=True)
class ChannelStatistics:
    """The channels of a tensor over a few samples.

    Attributes:
        low, high: where its values end, but for one sample in a hundred, (channels,), float32; 0 lies between.
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


@dataclass(frozen=True)
class ChannelExtremes:
    """The channels of a tensor on each of a few samples.

    Attributes:
        low, high: smallest and largest value, (samples, channels), float32.
        power: mean square, (samples, channels), float32.
    """

    low: NDArray[np.float32]
    high: NDArray[np.float32]
    power: NDArray[np.float32]

    def __len__(self) -> int:
        """Samples."""
        return len(self.power)

    @property
    def reach(self) -> float:
        """Largest magnitude of all."""
        return float(max(np.abs(self.low).max(initial=0), np.abs(self.high).max(initial=0)))

    def over(self, samples: slice = slice(None), ceiling: float | None = None) -> ChannelStatistics:
        """The channels over some of the samples, none of which ends above a ceiling."""
        low, high = -_end(-self.low[samples]), _end(self.high[samples])
        if ceiling is not None:
            high = np.minimum(high, np.float32(ceiling))
        return ChannelStatistics(low=low, high=high, power=self.power[samples].mean(axis=0))


def _end(largest: NDArray[np.float32]) -> NDArray[np.float32]:
    """Where values end on one side, (channels,), from the largest of each sample, (samples, channels).

    Not before the largest value seen: tails that are heavier than Gumbel's reach further than their deviation tells.
    """
    beyond = np.maximum(largest, 0)
    smooth = beyond.mean(axis=0) + RARE * beyond.std(axis=0)
    return np.asarray(np.maximum(smooth, beyond.max(axis=0)), np.float32)


def channel_extremes(
    model: Outline, ranks: Mapping[str, int], feeds: Iterable[Mapping[str, NDArray[np.generic]]]
) -> dict[str, ChannelExtremes]:
    """Run a model and reduce tensors to the channels (axis 1) of each sample on the way, so that none is kept.

    Args:
        model: at opset 13 or newer; its outputs change.
        ranks: number of axes of the tensors wanted, by name.
        feeds: samples.
    """
    _reduce(model.proto, ranks)
    session = Session(model, "the model with its channel statistics")
    made = [session.run(feed) for feed in feeds]

    def joined(form: str, name: str) -> NDArray[np.float32]:
        return np.concatenate([m[form.format(name)].astype(np.float32) for m in made])

    return {name: ChannelExtremes(*(joined(form, name) for form in (LOW, HIGH, POWER))) for name in ranks}


def _reduce(model: onnx.ModelProto, ranks: Mapping[str, int]) -> None:
    """Make reductions of some of a model's tensors its only outputs, in place."""
    graph = model.graph
    del graph.output[:]
    modern = max(i.version for i in model.opset_import if i.domain in ("", "ai.onnx")) >= 18
    for name, rank in ranks.items():
        axes = [a for a in range(rank) if a > 1]
        squared = f"{POWER.format(name)}/each"
        graph.node.append(helper.make_node("Mul", [name, name], [squared]))
        for reduced, of, operator in (
            (LOW.format(name), name, "ReduceMin"),
            (HIGH.format(name), name, "ReduceMax"),
            (POWER.format(name), squared, "ReduceMean"),
        ):
            if not axes:
                node = helper.make_node("Identity", [of], [reduced])
            elif modern:
                graph.initializer.append(numpy_helper.from_array(np.array(axes, np.int64), f"{reduced}/axes"))
                node = helper.make_node(operator, [of, f"{reduced}/axes"], [reduced], keepdims=0)
            else:
                node = helper.make_node(operator, [of], [reduced], keepdims=0, axes=axes)
            graph.node.append(node)
            graph.output.append(helper.make_tensor_value_info(reduced, onnx.TensorProto.FLOAT, None))
