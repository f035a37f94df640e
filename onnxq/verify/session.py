"""Starting onnxruntime: its optimization levels, silence, and its errors in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import onnxruntime as ort

LEVELS: Final = ("disable", "basic", "extended", "all")
"""Optimization levels of onnxruntime, from none to the default."""

DEFAULT_LEVEL: Final = LEVELS[-1]

_ORT_LEVELS: Final = {
    "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
_SILENT: Final = 4
_LONGEST_REASON: Final = 300


def start_session(
    location: str | bytes,
    level: str = DEFAULT_LEVEL,
    *,
    threads: int = 0,
    optimized_model: Path | None = None,
    weights_folder: Path | None = None,
) -> Any:
    """A silent onnxruntime session on the CPU.

    Threads sleep between runs instead of spinning: several sessions are alive here at a time, and
    the idle one's spinning would steal the processor from the one that is being timed.

    Args:
        location: path, or the serialized model.
        level: one of :data:`LEVELS`.
        threads: that compute a run; 0 is onnxruntime's default, one for each core.
        optimized_model: where to write the optimized graph; its weights go to a file beside it.
        weights_folder: where the external data of a serialized model lie.
    """
    options = ort.SessionOptions()
    options.graph_optimization_level = _ORT_LEVELS[level]
    options.log_severity_level = _SILENT
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if optimized_model is not None:
        options.optimized_model_filepath = str(optimized_model)
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "weights.bin")
    if weights_folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(weights_folder))
    return ort.InferenceSession(location, options, providers=["CPUExecutionProvider"], enable_fallback=0)


def reason(error: Exception) -> str:
    """An onnxruntime error on one line, cut to a readable length."""
    text = " ".join(str(error).split())
    return text if len(text) <= _LONGEST_REASON else text[: _LONGEST_REASON - 1] + "…"
