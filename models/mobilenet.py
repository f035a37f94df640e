"""MobileNet-V2 1.0 as torchvision publishes it.

M. Sandler, A. Howard, M. Zhu, A. Zhmoginov, L.-C. Chen, *MobileNetV2: Inverted Residuals and Linear Bottlenecks*,
CVPR 2018, table 2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from onnxq.models.convolutional import IMAGE, classifier, convolution
from onnxq.models.network import Network, Writer

FIRST, LAST = 32, 1280
"""Channels of the first and of the last convolution."""

STAGES = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
"""Expansion, channels, blocks and stride of the first block: rows of table 2."""


@dataclass(frozen=True)
class InvertedResidual:
    """A block: expand (unless the expansion is 1), filter each channel, project.

    Attributes:
        module: its name in torchvision.
        stage, index: where it stands.
        inputs, outputs: channels.
        expansion: hidden channels for each input channel.
        stride: of the depthwise convolution.
    """

    module: str
    stage: int
    index: int
    inputs: int
    outputs: int
    expansion: int
    stride: int


def inverted_residuals() -> Iterator[InvertedResidual]:
    """The 17 blocks in order."""
    inputs, position = FIRST, 1
    for stage, (expansion, outputs, count, stride) in enumerate(STAGES):
        for index in range(count):
            step = 1 if index else stride
            yield InvertedResidual(f"features.{position}", stage, index, inputs, outputs, expansion, step)
            inputs, position = outputs, position + 1


def mobilenet_v2() -> Network:
    """MobileNet-V2 at width 1: 3,504,872 parameters."""
    writer = Writer()
    x = _clipped(writer, IMAGE, "features.0", (3, FIRST), kernel=3, stride=2)
    channels = FIRST
    for block in inverted_residuals():
        x = _block(writer, x, block)
        channels = block.outputs
    x = _clipped(writer, x, f"features.{1 + sum(count for _, _, count, _ in STAGES)}", (channels, LAST), kernel=1)
    return classifier(writer, x, "classifier.1", LAST, "mobilenet_v2")


def _block(writer: Writer, x: str, block: InvertedResidual) -> str:
    module = f"{block.module}.conv"
    hidden = block.inputs * block.expansion
    y, position = x, 0
    if block.expansion > 1:
        y = _clipped(writer, y, f"{module}.0", (block.inputs, hidden), kernel=1)
        position = 1
    y = _clipped(writer, y, f"{module}.{position}", (hidden, hidden), kernel=3, stride=block.stride, group=hidden)
    names = (f"{module}.{position + 1}", f"{module}.{position + 2}")
    residual = block.stride == 1 and block.inputs == block.outputs
    y = convolution(writer, y, names, (hidden, block.outputs), kernel=1, ends_branch=residual)
    if residual:
        return writer.node("Add", f"{block.module}.add", [x, y])
    return y


def _clipped(
    writer: Writer, x: str, module: str, channels: tuple[int, int], *, kernel: int, stride: int = 1, group: int = 1
) -> str:
    """Convolution, batch normalization, ReLU6."""
    names = (f"{module}.0", f"{module}.1")
    y = convolution(writer, x, names, channels, kernel=kernel, stride=stride, group=group)
    bounds = [writer.constant("relu6.min", 0.0), writer.constant("relu6.max", 6.0)]
    return writer.node("Clip", f"{module}.2", [y, *bounds])
