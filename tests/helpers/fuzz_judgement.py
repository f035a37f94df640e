"""Whether a random graph came out of a quantization as it must."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnxruntime as ort
from onnx import checker
from random_graphs import LAYERS, Case, sizes_are_misread

from onnxq.api import quantize
from onnxq.errors import ModelError

LEVELS = {
    "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
ROOM = 2.0
"""Levels may differ by twice the quantization error: rounding adds up with depth."""

LEAST_ROOM = 0.05
RESIDUE = 1e-6
"""What is 0 by construction is that, or what rounding leaves of values that cancel."""

SIMULATION = 0.02
"""The unoptimized model is the simulation, up to values that round to the other side; relative to the output."""


def judge(case: Case) -> dict[str, Any]:
    """Quantize and compare; what came of it.

    Raises:
        AssertionError: the result is not what it must be.
        Exception: whatever else went wrong.
    """
    try:
        result = quantize(case.model, case.samples, case.config)
    except ModelError as error:
        if sizes_are_misread(case.model) and "onnxruntime cannot load it" in str(error):
            return {"outcome": "refused", "reason": str(error)}
        if "has no layer to quantise" not in str(error):
            raise
        assert "left in float" in str(error), f"no reason is given: {error}"
        return {"outcome": "refused", "reason": str(error)}
    checker.check_model(result.model, full_check=not sizes_are_misread(result.model))
    named = {layer.name for layer in result.report.layers} | {r.node for r in result.report.left_in_float}
    silent = {n.name for n in case.model.graph.node if n.op_type in LAYERS} - named
    products = {n.name for n in case.model.graph.node if n.op_type == "MatMul" and not _has_constant(case, n.input)}
    alive = {n.name for n in result.model.graph.node}
    assert not (silent - products) & alive, f"neither quantised nor told of: {silent}"
    found = {level: run(result.model.SerializeToString(), level, case) for level in LEVELS}
    try:
        exact = run(case.model.SerializeToString(), "disable", case)
    except Exception:
        if sizes_are_misread(case.model):  # onnxruntime refuses what it infers wrongly; the result it takes
            return {"outcome": "quantised", "layers": len(result.report.layers), "sqnr_db": None}
        raise
    deviation = max(_deviation(e, f) for e, f in zip(exact, found["disable"], strict=True))
    apart = {
        level: max(_deviation(e, f) for e, f in zip(found["disable"], outputs, strict=True))
        for level, outputs in found.items()
    }
    room = max(LEAST_ROOM, ROOM * deviation)
    assert max(apart.values()) <= room, f"levels differ: {apart}, error {deviation}"
    db = -20 * math.log10(deviation) if deviation else None
    return {"outcome": "quantised", "layers": len(result.report.layers), "sqnr_db": db and round(db, 1)}


def run(model: bytes, level: str, case: Case) -> list[np.ndarray]:
    """Outputs over all samples at one level of onnxruntime, batches joined."""
    options = ort.SessionOptions()
    options.graph_optimization_level = LEVELS[level]
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    batch = case.model.graph.input[0].type.tensor_type.shape.dim[0].dim_value
    count = len(next(iter(case.samples.values())))
    step = batch or count
    parts = [
        session.run(None, {n: v[i : i + step].astype(np.float32) for n, v in case.samples.items()})
        for i in range(0, count, step)
    ]
    return [np.concatenate([np.atleast_1d(p[i]) for p in parts]) for i in range(len(parts[0]))]


def _has_constant(case: Case, names: Any) -> bool:
    constants = {t.name for t in case.model.graph.initializer}
    return any(name in constants for name in names)


def _deviation(exact: np.ndarray, found: np.ndarray) -> float:
    assert exact.shape == found.shape and np.isfinite(found).all(), (exact.shape, found.shape)
    signal = float(np.square(exact.astype(np.float64)).sum())
    noise = float(np.square(exact.astype(np.float64) - found.astype(np.float64)).sum())
    if max(signal, noise) <= exact.size * RESIDUE**2:
        return 0.0
    return math.sqrt(noise / signal) if signal else float(noise > 0)
