"""A small classifier and samples for it: a few layers that a light quantization solves in a blink."""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import parser

CLASSES = 5
LAYERS = ["first", "middle", "last"]


def tiny_model(batch: str = "N") -> onnx.ModelProto:
    """Conv, ReLU, strided Conv, ReLU, average, Gemm; input image (batch, 3, 8, 8), output scores (batch, 5)."""
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["" : 17]>
        tiny (float[{batch}, 3, 8, 8] image) => (float[{batch}, {CLASSES}] scores) {{
            a = Conv <pads = [1, 1, 1, 1]> (image, w1, b1)
            b = Relu (a)
            c = Conv <strides = [2, 2]> (b, w2)
            d = Relu (c)
            e = GlobalAveragePool (d)
            f = Flatten (e)
            scores = Gemm <transB = 1> (f, w3, b3)
        }}
    """)
    rng = np.random.default_rng(3)
    for name, shape in {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (12, 8, 3, 3), "w3": (CLASSES, 12), "b3": (5,)}.items():
        values = rng.normal(0, np.prod(shape[1:], initial=1.0) ** -0.5, shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    for node, name in zip(layers, LAYERS, strict=True):
        node.name = name
    onnx.checker.check_model(model, full_check=True)
    return model


def tiny_images(count: int, seed: int = 5) -> NDArray[np.float32]:
    """Samples, (count, 3, 8, 8)."""
    return np.random.default_rng(seed).normal(0, 1, (count, 3, 8, 8)).astype(np.float32)
