"""A network put together node by node, which can be asked on the way what its tensors hold."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from unseen_data import Law

Array = NDArray[Any]
OPSET = 17
PROBED = 256
"""Samples from which batch normalization takes its statistics and the answers their size."""

RARE = 0.1
"""Share of the channels that hardly ever wake."""

KINDS = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.int32): TensorProto.INT32,
    np.dtype(np.int64): TensorProto.INT64,
}


class Net:
    """A network under construction, with one input and samples of it to look at what comes out so far.

    Attributes:
        rng: of the weights.
        input: name of the input.
    """

    input = "x"

    def __init__(self, rng: np.random.Generator, law: Law) -> None:
        self.rng = rng
        self._probe = law(np.random.default_rng(rng.integers(2**32)), PROBED)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: list[onnx.TensorProto] = []

    def constant(self, value: Array) -> str:
        """The name of a new constant; floats are stored in single precision."""
        single = value.astype(np.float32) if value.dtype.kind == "f" else value
        self._constants.append(numpy_helper.from_array(single, f"c{len(self._constants)}"))
        return self._constants[-1].name

    def add(self, op: str, *inputs: str | Array, outputs: int = 1, **attributes: Any) -> str:
        """A node of these inputs, arrays among them as constants; the name of its last output."""
        names = [name if isinstance(name, str) else self.constant(np.asarray(name)) for name in inputs]
        given = [f"t{len(self._nodes)}_{i}" if i == outputs - 1 else "" for i in range(outputs)]
        self._nodes.append(helper.make_node(op, names, given, name=f"{op}_{len(self._nodes)}", **attributes))
        return given[-1]

    def weight(self, *shape: int, inputs: int, axis: int) -> Array:
        """A weight of unit gain whose output channels, along an axis, have sizes of their own."""
        sizes = [1] * len(shape)
        sizes[axis] = shape[axis]
        own = np.exp(0.3 * self.rng.standard_normal(shape[axis])).reshape(sizes)
        return self.rng.standard_normal(shape) * own * np.sqrt(2 / inputs)

    def dense(self, source: str, wide: int, out: int) -> str:
        """A Gemm with a bias."""
        return self.add("Gemm", source, self.weight(wide, out, inputs=wide, axis=1), self.bias(out))

    def matrix(self, source: str, wide: int, out: int) -> str:
        """A MatMul and its bias, as transformers are exported."""
        return self.add(
            "Add", self.add("MatMul", source, self.weight(wide, out, inputs=2 * wide, axis=1)), self.bias(out)
        )

    def bias(self, size: int) -> Array:
        """A small one."""
        return 0.2 * self.rng.standard_normal(size)

    def gelu(self, source: str) -> str:
        """Gelu as exporters write it."""
        erf = self.add("Erf", self.add("Div", source, np.float32(np.sqrt(2))))
        half = self.add("Mul", self.add("Mul", source, self.add("Add", erf, np.float32(1))), np.float32(0.5))
        return half

    def layer_norm(self, source: str, wide: int) -> str:
        """Layer normalization with two features that are far larger than the others."""
        gain = np.exp(0.2 * self.rng.standard_normal(wide))
        gain[self.rng.choice(wide, 2, replace=False)] *= 6
        return self.add("LayerNormalization", source, gain, self.bias(wide), axis=-1)

    def batch_norm(self, source: str, channels: int) -> str:
        """Batch normalization by the statistics of the data; some channels are far below zero but for a few samples."""
        seen = self.values(source)
        axes = tuple(i for i in range(seen.ndim) if i != 1)
        gain, offset = np.exp(0.3 * self.rng.standard_normal(channels)), 0.5 * self.rng.standard_normal(channels)
        asleep = self.rng.random(channels) < RARE
        offset[asleep] = -self.rng.uniform(2, 3.5, asleep.sum()) * gain[asleep]
        return self.add("BatchNormalization", source, gain, offset, seen.mean(axes), seen.var(axes) + 1e-3)

    def values(self, name: str) -> Array:
        """What a tensor holds on the samples that are looked at."""
        session = ort.InferenceSession(self.model(name).SerializeToString(), providers=["CPUExecutionProvider"])
        return np.asarray(session.run([name], {self.input: self._probe})[0])

    def answers(self, source: str, wide: int, out: int) -> onnx.ModelProto:
        """The network with a last layer that gives scores of a few nats, none of them always ahead."""
        weight = self.weight(wide, out, inputs=wide, axis=1)
        scores = self.values(source) @ weight
        weight, scores = (values * (2.5 / scores.std(0).mean()) for values in (weight, scores))
        return self.model(self.add("Gemm", source, weight, self.bias(out) - scores.mean(0)))

    def model(self, output: str) -> onnx.ModelProto:
        """What there is so far, giving out one tensor."""
        shape = ["N", *self._probe.shape[1:]]
        graph = helper.make_graph(
            self._nodes,
            "made_up",
            [helper.make_tensor_value_info(self.input, KINDS[self._probe.dtype], shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
            self._constants,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=8)
        return onnx.shape_inference.infer_shapes(model)
