"""Little models for the tests, as ONNX text with constants drawn at fixed seeds, and the proof of a quantized one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from onnx import checker, helper, numpy_helper, parser

from onnxq.api import quantize
from onnxq.config import Config
from onnxq.pipeline import Result
from onnxq.verify import VerificationReport, verify

IR_OF_OPSET = {9: 4, 11: 6, 13: 7, 17: 8, 21: 10, 26: 13}

SAME = "<pads=[1,1,1,1]>"
"""Attributes of a 3 × 3 convolution that keeps the size."""

FLOOR = {2: 2, 3: 8, 4: 12, 5: 18, 6: 24, 7: 28, 8: 31, 16: 70}
"""Decibels that the little models keep at least, by the smaller of weight and activation bits: about 6 a bit."""

DRIFT = 0.02
"""Levels of onnxruntime may differ by two or three steps of an 8-bit grid, relative to the largest output."""


def build(text: str, opset: int = 17, **constants: np.ndarray) -> onnx.ModelProto:
    """A model from the text of its graph (inputs, outputs, nodes) and the constants that it names."""
    model = parser.parse_model(f'<ir_version: {IR_OF_OPSET[opset]}, opset_import: ["": {opset}]> g {text}')
    named = set(_reads(model.graph))
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items() if k in named)
    for node in model.graph.node:
        node.name = node.output[0]
    checker.check_model(model)
    return model


def _reads(graph: onnx.GraphProto) -> list[str]:
    names: list[str] = []
    for node in graph.node:
        names += node.input
        for attribute in node.attribute:
            names += _reads(attribute.g)
    return names


def normal(seed: int, *shape: int) -> np.ndarray:
    """Standard normal numbers, float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def weight(seed: int, *shape: int) -> np.ndarray:
    """Normal weights, (channels, inputs, *window), that keep the size of what they multiply."""
    return (normal(seed, *shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def images(count: int = 16, seed: int = 50) -> np.ndarray:
    """Normal samples of 3 × 8 × 8."""
    return normal(seed, count, 3, 8, 8)


def conv_constants() -> dict[str, np.ndarray]:
    """Weights w0, w1, w2 of 3 × 3 convolutions from 3 to 8 and from 8 to 8 channels, and their biases b0, b1, b2."""
    weights = {f"w{i}": weight(i, 8, 8 if i else 3, 3, 3) for i in range(3)}
    return {**weights, **{f"b{i}": 0.1 * normal(100 + i, 8) for i in range(3)}}


def conv_chain(first: str, second: str, size: int = 8, opset: int = 17, **constants: np.ndarray) -> onnx.ModelProto:
    """Three convolutions c0, c1, y, and what stands between them: nodes that make a of c0, and d of c1.

    Args:
        first: nodes between c0 and c1; they read c0 and make a.
        second: nodes between c1 and y; they read c1 (and whatever is made before) and make d.
        size: of the output image.
        opset: of the model.
        constants: beside or instead of those of :func:`conv_constants`.
    """
    text = f"""(float[N,3,8,8] x) => (float[N,8,{size},{size}] y) {{
        c0 = Conv{SAME}(x, w0, b0) {first} c1 = Conv{SAME}(a, w1, b1) {second} y = Conv{SAME}(d, w2, b2) }}"""
    return build(text, opset, **{**conv_constants(), **constants})


def relu_chain(opset: int = 17, **constants: np.ndarray) -> onnx.ModelProto:
    """Three convolutions with ReLUs between them."""
    return conv_chain("a = Relu(c0)", "d = Relu(c1)", opset=opset, **constants)


@dataclass(frozen=True)
class Proof:
    """A quantized model with the independent verification of it."""

    result: Result
    report: VerificationReport

    @property
    def bits(self) -> dict[str, tuple[int | None, int | None]]:
        """Weight and activation bits in the file, by layer."""
        return {layer.name: (layer.weight_bits, layer.activation_bits) for layer in self.report.bits}

    @property
    def fused(self) -> dict[str, str | None]:
        """Kernel on integers, by layer."""
        return {layer.name: layer.fused for layer in self.report.bits}

    def constant(self, name: str) -> np.ndarray:
        """A constant of the quantized model."""
        return next(numpy_helper.to_array(t) for t in self.result.model.graph.initializer if t.name == name)

    def maker(self, tensor: str) -> onnx.NodeProto:
        """The node that makes a tensor."""
        return next(node for node in self.result.model.graph.node if tensor in node.output)


def prove(
    model: onnx.ModelProto,
    data: np.ndarray | dict[str, np.ndarray],
    *,
    floor: float | None = None,
    drift: float = DRIFT,
    **options: object,
) -> Proof:
    """Quantize by closed forms; the result must load at every level, agree, hold its bits and be close to the model.

    Args:
        model: the float model.
        data: samples to calibrate and to judge on.
        floor: decibels that each output keeps; by bits when None.
        drift: how far levels may differ, relative to the largest output.
        options: of the configuration.
    """
    config = Config(preset="light", **options)  # type: ignore[arg-type]
    result = quantize(model, data, config)
    checker.check_model(result.model, full_check=True)
    feed = data if isinstance(data, dict) else {model.graph.input[0].name: data}
    report = verify(model, result.model, [feed], latency=False)
    assert [check.error for check in report.loads] == [None] * 4
    assert max(check.relative_diff or 0.0 for check in report.loads) <= drift
    assert result.report.missed == ()
    least = FLOOR[min(config.weights, config.activations, 16)] if floor is None else floor
    assert min(output.sqnr_db or -np.inf for output in report.outputs) >= least
    return Proof(result, report)


def with_outputs(model: onnx.ModelProto, *tensors: str) -> onnx.ModelProto:
    """A copy that gives out inner float tensors too."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    copy.graph.output.extend(helper.make_tensor_value_info(t, onnx.TensorProto.FLOAT, None) for t in tensors)
    return copy
