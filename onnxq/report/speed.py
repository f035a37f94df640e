"""A quantized model's speed in its report: the ratio to float's, and what would mend a slow one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import onnx

from onnxq.config import FLOAT_BITS
from onnxq.ir.model import Remark
from onnxq.plan.values import Plan
from onnxq.report.build import stored_forms
from onnxq.report.run import RunReport
from onnxq.verify import Latency


def timed_report(
    report: RunReport, found: Latency | Remark, required: float | None, plan: Plan, proto: onnx.ModelProto
) -> RunReport:
    """The report of a run whose model was timed.

    Args:
        report: of the run.
        found: time of a run of both models, or why it is not known.
        required: speed beside the float model's that was asked for; None where none was.
        plan: of its layers.
        proto: the quantized model.
    """
    if isinstance(found, Remark):
        return replace(report, required_speedup=required, notes=(*report.notes, found))
    told = [_slow(found, list(_mends(plan, proto)))] if found.speedup < 1 else []
    return replace(report, latency_ms=found, required_speedup=required, notes=(*report.notes, *told))


def _slow(found: Latency, mends: Sequence[str]) -> Remark:
    """That a model is slower than its float model, and what to do."""
    return Remark(
        "network", f"it is slower than the float model, {found.speedup:.2f} times its speed: {'; '.join(mends)}"
    )


def _mends(plan: Plan, proto: onnx.ModelProto) -> Iterator[str]:
    """What would make a model faster, from the way it is made."""
    four = stored_forms(plan, proto)["int4"]
    floats = sum(p.activations == FLOAT_BITS for p in plan.layers)
    wide = sum(8 < p.activations < FLOAT_BITS or (p.weights > 8 and p.activations < FLOAT_BITS) for p in plan.layers)
    if four and floats < len(plan.layers):
        yield (
            f"the weights of {_layers(four)} are in the standard's 4-bit type, which onnxruntime dequantizes at every "
            "run; container packed or int8 has integer kernels"
        )
    if wide:
        yield f"{_layers(wide)} with 16 bits run in float between conversions; 8 bits have integer kernels"
    if floats:
        yield (
            f"the weights of {_layers(floats)} are dequantized beside inputs in float; activations of 8 bits have "
            "integer kernels"
        )
    if not four and not wide and not floats:
        yield (
            "its layers have inputs and weights for integer kernels, which gain too little here (small layers, layers "
            "in float between them, or a processor without VNNI); candidates such as w8a8,float under budget "
            "latency=0.9 leave in float what is faster so"
        )


def _layers(count: int) -> str:
    return f"{count} layer{'s'[: count != 1]}"
