"""A finished model's speed beside its float model's, on a sample that it was made from."""

from __future__ import annotations

from pathlib import Path

import onnx

from onnxq.data import Feed
from onnxq.ir.load import OLDEST_OPSET, load
from onnxq.ir.model import Remark
from onnxq.ir.save import to_proto
from onnxq.ir.size import model_bytes
from onnxq.runtime.memory import free_old_graphs
from onnxq.verify import Latency, compare_speed
from onnxq.verify.session import reason


def speed_beside_float(
    fp32: str | Path | onnx.ModelProto, quantized: onnx.ModelProto, feed: Feed, memory_limit: int
) -> Latency | Remark:
    """The time of a run of both models on one thread, or why it is not known.

    A float model that onnxruntime has no kernels for runs as it was read: with wider numbers, say.

    Args:
        fp32: the float model.
        quantized: made from it.
        feed: a batch of samples.
        memory_limit: bytes that both models, which are started side by side, may take together.
    """
    if model_bytes(fp32) + model_bytes(quantized) > memory_limit:
        return _unknown("both models together are larger than memory_limit; onnxq verify measures it")
    try:
        return compare_speed(fp32, quantized, feed)
    except Exception:  # onnxruntime has its own error types
        try:
            return compare_speed(to_proto(load(fp32, minimum_opset=OLDEST_OPSET)), quantized, feed)
        except Exception as error:
            return _unknown(f"onnxruntime does not run both models on the first sample ({reason(error)})")
    finally:
        free_old_graphs()


def _unknown(why: str) -> Remark:
    return Remark("network", f"its speed was not measured: {why}")
