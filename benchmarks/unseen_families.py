"""Families of small networks made up from a seed, each with the law of its data: as many new samples as one wants.

    model, draw = build("cnn", 3)
    draw(np.random.default_rng(0), 16)          {input: array of 16 samples}

Another seed is another network of the family: other widths, weights and data. Weights are random, but what decides over
quantization is as in trained networks: batch normalization knows the statistics of the data, channels have sizes of
their own, some channels hardly ever wake, and some features of a transformer are far larger than the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
import unseen_data as data
from numpy.typing import NDArray
from onnx import TensorProto, checker
from unseen_net import Net

Draw = Callable[[np.random.Generator, int], dict[str, NDArray[Any]]]


def build(family: str, seed: int) -> tuple[onnx.ModelProto, Draw]:
    """A network of a family and the law of its data.

    Args:
        family: one of :data:`FAMILIES`.
        seed: which network of it.
    """
    rng = np.random.default_rng([list(FAMILIES).index(family), seed])
    model, law = FAMILIES[family](rng)
    checker.check_model(model, full_check=True)
    return model, lambda numbers, samples: {Net.input: law(numbers, samples)}


def _one_of(rng: np.random.Generator, *choices: int) -> int:
    return int(rng.choice(choices))


def mlp(rng: np.random.Generator) -> tuple[onnx.ModelProto, data.Law]:
    """Two or three dense layers on the columns of a table."""
    wide = _one_of(rng, 16, 32, 64, 128)
    law = data.features(rng, wide)
    net = Net(rng, law)
    at = net.input
    for _ in range(_one_of(rng, 1, 2)):
        out = _one_of(rng, 16, 32, 64, 128, 256)
        at, wide = net.add("Relu", net.dense(at, wide, out)), out
    return net.answers(at, wide, _one_of(rng, 2, 4, 10)), law


def cnn(rng: np.random.Generator) -> tuple[onnx.ModelProto, data.Law]:
    """Depthwise separable blocks, each channel gated by the means of all, on small pictures."""
    law = data.pictures(rng, 3, 32)
    net = Net(rng, law)

    def conv(source: str, inputs: int, out: int, size: int, stride: int = 1, group: int = 1) -> str:
        kernel = net.weight(out, inputs // group, size, size, inputs=inputs // group * size**2, axis=0)
        pads = [size // 2] * 4
        made = net.add("Conv", source, kernel, kernel_shape=[size] * 2, strides=[stride] * 2, pads=pads, group=group)
        return net.batch_norm(made, out)

    def relu6(source: str) -> str:
        return net.add("Clip", source, np.float32(0), np.float32(6))

    wide = _one_of(rng, 12, 16, 24)
    at = relu6(conv(net.input, 3, wide, 3, stride=2))
    for i in range(_one_of(rng, 2, 3, 4)):
        stride = 2 if i in (0, 2) else 1
        out = 2 * wide if stride == 2 else wide
        before, at = at, relu6(conv(at, wide, wide, 3, stride=stride, group=wide))
        means, few = net.add("GlobalAveragePool", at), max(4, wide // 4)
        squeezed = net.add(
            "Relu", net.add("Conv", means, net.weight(few, wide, 1, 1, inputs=wide, axis=0), net.bias(few))
        )
        gate = net.add("Conv", squeezed, net.weight(wide, few, 1, 1, inputs=few, axis=0), net.bias(wide))
        at = conv(net.add("Mul", at, net.add("Sigmoid", gate)), wide, out, 1)
        at = relu6(at) if out != wide else net.add("Add", at, before)
        wide = out
    at = net.add("Flatten", net.add("GlobalAveragePool", at))
    return net.answers(at, wide, 10), law


def attention(rng: np.random.Generator) -> tuple[onnx.ModelProto, data.Law]:
    """A transformer of one to three blocks on short texts."""
    length, known, heads = _one_of(rng, 16, 24, 32), 400, _one_of(rng, 2, 4)
    wide = heads * _one_of(rng, 8, 16)
    law = data.words(rng, length, known)
    net = Net(rng, law)
    at = net.add("Gather", rng.standard_normal((known, wide)), net.input)
    at = net.add("Add", at, 0.3 * rng.standard_normal((length, wide)))

    def split(source: str, order: Sequence[int]) -> str:
        parts = net.add("Reshape", net.matrix(source, wide, wide), np.array([0, length, heads, wide // heads]))
        return net.add("Transpose", parts, perm=order)

    for _ in range(_one_of(rng, 1, 2, 3)):
        normal = net.layer_norm(at, wide)
        scores = net.add("MatMul", split(normal, [0, 2, 1, 3]), split(normal, [0, 2, 3, 1]))
        shares = net.add("Softmax", net.add("Mul", scores, np.float32(0.5 * (wide // heads) ** -0.5)), axis=-1)
        mixed = net.add("Transpose", net.add("MatMul", shares, split(normal, [0, 2, 1, 3])), perm=[0, 2, 1, 3])
        joined = net.add("Reshape", mixed, np.array([0, length, wide]))
        at = net.add("Add", at, net.matrix(joined, wide, wide))
        inner = net.gelu(net.matrix(net.layer_norm(at, wide), wide, 4 * wide))
        at = net.add("Add", at, net.matrix(inner, 4 * wide, wide))
    at = net.add("ReduceMean", net.layer_norm(at, wide), axes=[1], keepdims=0)
    return net.answers(at, wide, 8), law


def recurrent(rng: np.random.Generator) -> tuple[onnx.ModelProto, data.Law]:
    """A convolution over time or a matrix for each step, an LSTM, and its last state judged."""
    steps, bands, wide, hidden = _one_of(rng, 16, 32, 48), _one_of(rng, 16, 24, 40), _one_of(rng, 16, 32), 32
    law = data.sounds(rng, steps, bands)
    net = Net(rng, law)
    if rng.random() < 0.5:
        turned = net.add("Transpose", net.input, perm=[0, 2, 1])
        kernel = net.weight(wide, bands, 3, inputs=3 * bands, axis=0)
        found = net.add("Relu", net.add("Conv", turned, kernel, net.bias(wide), kernel_shape=[3], pads=[1, 1]))
        at = net.add("Transpose", found, perm=[2, 0, 1])
    else:
        at = net.add("Transpose", net.add("Relu", net.matrix(net.input, bands, wide)), perm=[1, 0, 2])
    reading = 1.5 * rng.standard_normal((1, 4 * hidden, wide)) / np.sqrt(wide)
    going = 1.2 * rng.standard_normal((1, 4 * hidden, hidden)) / np.sqrt(hidden)
    bias = 0.3 * rng.standard_normal((1, 8 * hidden))
    state = net.add("LSTM", at, reading, going, bias, outputs=2, hidden_size=hidden)
    return net.answers(net.add("Squeeze", state, np.array([0])), hidden, 6), law


def one_hot(rng: np.random.Generator) -> tuple[onnx.ModelProto, data.Law]:
    """Bytes as rows of noughts and a one, embedded by a matrix; blocks of them judged together, the strongest kept."""
    length, wide, block = _one_of(rng, 64, 128), _one_of(rng, 16, 32), _one_of(rng, 4, 8)
    law = data.files(rng, length)
    net = Net(rng, law)
    ones = net.add(
        "OneHot",
        net.add("Cast", net.input, to=TensorProto.INT64),
        np.array([data.PADDING + 1]),
        np.array([0, 1], np.float32),
        axis=-1,
    )
    table = rng.standard_normal((data.PADDING + 1, wide))
    at = net.gelu(net.add("Add", net.add("MatMul", ones, table), net.bias(wide)))
    at = net.add("Reshape", at, np.array([0, length // block, block * wide]))
    inner = _one_of(rng, 64, 96)
    at = net.gelu(net.matrix(net.layer_norm(at, block * wide), block * wide, inner))
    at = net.add("ReduceMax", at, axes=[1], keepdims=0)
    return net.answers(net.layer_norm(at, inner), inner, 12), law


FAMILIES: dict[str, Callable[[np.random.Generator], tuple[onnx.ModelProto, data.Law]]] = {
    "mlp": mlp,
    "cnn": cnn,
    "attention": attention,
    "recurrent": recurrent,
    "one-hot": one_hot,
}
