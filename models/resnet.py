"""ResNet-18, -50 and -101 as torchvision publishes them.

K. He, X. Zhang, S. Ren, J. Sun, *Deep Residual Learning for Image Recognition*, CVPR 2016, table 1; in the bottleneck
the 3 × 3 convolution has the stride, not the first 1 × 1 ("v1.5"), as in torchvision, timm and transformers.
"""

from __future__ import annotations

from onnxq.models.convolutional import IMAGE, classifier, convolution
from onnxq.models.network import Network, Writer

WIDTHS = (64, 128, 256, 512)
"""Channels inside the blocks of each stage."""

EXPANSION = 4
"""Channels that a bottleneck gives out for each channel inside it."""


def resnet18() -> Network:
    """ResNet-18: two basic blocks a stage; 11,689,512 parameters."""
    return _resnet("resnet18", (2, 2, 2, 2), bottleneck=False)


def resnet50() -> Network:
    """ResNet-50: bottlenecks; 25,557,032 parameters."""
    return _resnet("resnet50", (3, 4, 6, 3), bottleneck=True)


def resnet101() -> Network:
    """ResNet-101: bottlenecks; 44,549,160 parameters."""
    return _resnet("resnet101", (3, 4, 23, 3), bottleneck=True)


def _resnet(name: str, blocks: tuple[int, ...], *, bottleneck: bool) -> Network:
    writer = Writer()
    channels = WIDTHS[0]
    x = convolution(writer, IMAGE, ("conv1", "bn1"), (3, channels), kernel=7, stride=2)
    x = writer.node("Relu", "relu", [x])
    x = writer.node("MaxPool", "maxpool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    for stage, (width, count) in enumerate(zip(WIDTHS, blocks, strict=True)):
        for index in range(count):
            stride = 2 if stage and not index else 1
            outputs = EXPANSION * width if bottleneck else width
            x = _block(writer, x, f"layer{stage + 1}.{index}", (channels, width, outputs), stride)
            channels = outputs
    return classifier(writer, x, "fc", channels, name)


def _block(writer: Writer, x: str, name: str, channels: tuple[int, int, int], stride: int) -> str:
    """Convolutions beside a shortcut; a bottleneck where more channels come out than are inside."""
    inputs, width, outputs = channels
    plan = [(width, 3, stride), (width, 3, 1)]
    if outputs > width:
        plan = [(width, 1, 1), (width, 3, stride), (outputs, 1, 1)]
    y, before = x, inputs
    for i, (after, kernel, step) in enumerate(plan, start=1):
        last, names = i == len(plan), (f"{name}.conv{i}", f"{name}.bn{i}")
        y = convolution(writer, y, names, (before, after), kernel=kernel, stride=step, ends_branch=last)
        before = after
        if not last:
            y = writer.node("Relu", f"{name}.relu{i}", [y])
    if stride > 1 or inputs != outputs:
        module = f"{name}.downsample"
        x = convolution(writer, x, (f"{module}.0", f"{module}.1"), (inputs, outputs), kernel=1, stride=stride)
    total = writer.node("Add", f"{name}.add", [y, x])
    return writer.node("Relu", f"{name}.relu{len(plan)}", [total])
