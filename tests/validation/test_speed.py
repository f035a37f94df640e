"""Speed beside the float model: what is measured where the models run, and what is said where they do not."""

from __future__ import annotations

import onnx
from onnx import TensorProto
from tiny_model import tiny_images, tiny_model

from onnxq.ir.model import Remark
from onnxq.validation.speed import speed_beside_float
from onnxq.verify import Latency

FEED = {"image": tiny_images(4)}


def test_both_models_are_timed_on_one_sample_and_one_thread() -> None:
    found = speed_beside_float(tiny_model(), tiny_model(), FEED, 2**30)
    assert isinstance(found, Latency)
    assert (found.batch, found.threads) == (1, 1)
    assert min(found.fp32, found.quantized) > 0 and found.runs >= 1


def test_models_larger_than_the_memory_limit_are_not_started() -> None:
    size = 2 * tiny_model().ByteSize()
    assert isinstance(speed_beside_float(tiny_model(), tiny_model(), FEED, size), Latency)
    found = speed_beside_float(tiny_model(), tiny_model(), FEED, size - 1)
    assert isinstance(found, Remark)
    assert found.reason.startswith("its speed was not measured") and "memory_limit" in found.reason


def test_a_float_model_without_kernels_is_timed_as_it_was_read() -> None:
    """onnxruntime has no bfloat16 Relu on the CPU; onnxq reads such a model as float32."""
    narrow = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[N, 3, 8, 8] image) => (float[N, 3, 8, 8] y) '
        "{ a = Cast<to = 16>(image) b = Relu(a) y = Cast<to = 1>(b) }"
    )
    assert narrow.graph.node[0].attribute[0].i == TensorProto.BFLOAT16
    wide = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[N, 3, 8, 8] image) => (float[N, 3, 8, 8] y) '
        "{ y = Relu(image) }"
    )
    assert isinstance(speed_beside_float(narrow, wide, FEED, 2**30), Latency)


def test_models_that_do_not_run_are_said_to() -> None:
    found = speed_beside_float(tiny_model(), tiny_model(), {"picture": tiny_images(4)}, 2**30)
    assert isinstance(found, Remark)
    assert "onnxruntime does not run both models" in found.reason
