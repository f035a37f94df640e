"""What the image classifiers have in common: normalized convolutions, the head, input and output."""

from __future__ import annotations

from onnx import TensorProto

from onnxq.models.network import Network, Writer

IMAGE, LOGITS = "input", "logits"
IMAGE_SIZE, CLASSES = 224, 1000
EPSILON = 1e-5
"""Added to the variance of a batch normalization: torch's default, which all networks here were trained with."""


def convolution(
    writer: Writer,
    x: str,
    names: tuple[str, str],
    channels: tuple[int, int],
    *,
    kernel: int,
    stride: int = 1,
    group: int = 1,
    ends_branch: bool = False,
) -> str:
    """A convolution without bias that keeps the size (or divides it by the stride), and its batch normalization.

    Args:
        writer: of the network.
        x: input tensor, (N, channels[0], H, W).
        names: of the two modules in the published code.
        channels: of input and output.
        kernel: odd, pixels a side.
        stride: pixels.
        group: as in ONNX; the number of input channels makes the convolution depthwise.
        ends_branch: its output is added to a shortcut.

    Returns:
        Output tensor, (N, channels[1], ⌈H / stride⌉, ⌈W / stride⌉).
    """
    name, norm = names
    inputs, outputs = channels
    weight = writer.parameter(f"{name}.weight", (outputs, inputs // group, kernel, kernel), "convolution")
    y = writer.node(
        "Conv",
        name,
        [x, weight],
        kernel_shape=[kernel] * 2,
        strides=[stride] * 2,
        pads=[kernel // 2] * 4,
        group=group,
    )
    moments = [
        writer.parameter(f"{norm}.weight", (outputs,), "last_gamma" if ends_branch else "gamma"),
        writer.parameter(f"{norm}.bias", (outputs,), "beta"),
        writer.parameter(f"{norm}.running_mean", (outputs,), "mean"),
        writer.parameter(f"{norm}.running_var", (outputs,), "variance"),
    ]
    return writer.node("BatchNormalization", norm, [y, *moments], epsilon=EPSILON)


def classifier(writer: Writer, x: str, module: str, features: int, name: str) -> Network:
    """The end of a network: the mean of each channel and one linear layer.

    Args:
        writer: of the network so far.
        x: its last tensor, (N, features, H, W).
        module: name of the linear layer in the published code.
        features: channels of ``x``.
        name: of the network.
    """
    x = writer.node("GlobalAveragePool", "avgpool", [x])
    x = writer.node("Flatten", "flatten", [x])
    weight = writer.parameter(f"{module}.weight", (CLASSES, features), "linear")
    bias = writer.parameter(f"{module}.bias", (CLASSES,), "bias")
    writer.node("Gemm", module, [x, weight, bias], LOGITS, transB=1)
    return writer.finish(
        name,
        [(IMAGE, TensorProto.FLOAT, ("batch", 3, IMAGE_SIZE, IMAGE_SIZE))],
        [(LOGITS, TensorProto.FLOAT, ("batch", CLASSES))],
    )
