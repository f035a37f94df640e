"""Independent check of a quantized ONNX model against its float model, with onnxruntime on the CPU.

Nothing here knows how a model was quantized: it reads the two files, runs them, and reports what it
finds. So it judges models of any origin, and a mistake elsewhere in onnxq cannot hide in it.
"""

from onnxq.verify.bits import audit_bits
from onnxq.verify.check import verify
from onnxq.verify.findings import FirstDifference, LayerBits, TensorRange
from onnxq.verify.finite import Finiteness, finiteness, is_numeric
from onnxq.verify.latency import compare_speed
from onnxq.verify.levels import check_levels, deviation, deviation_from
from onnxq.verify.ranges import measure_ranges
from onnxq.verify.report import Latency, LevelCheck, OutputFidelity, VerificationReport
from onnxq.verify.session import LEVELS
from onnxq.verify.trace import first_difference, unoptimized_values

__all__ = [
    "LEVELS",
    "Finiteness",
    "FirstDifference",
    "Latency",
    "LayerBits",
    "LevelCheck",
    "OutputFidelity",
    "TensorRange",
    "VerificationReport",
    "audit_bits",
    "check_levels",
    "compare_speed",
    "deviation",
    "deviation_from",
    "finiteness",
    "first_difference",
    "is_numeric",
    "measure_ranges",
    "unoptimized_values",
    "verify",
]
