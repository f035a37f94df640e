"""Accurate post-training quantization of ONNX models from a handful of unlabelled samples.

    import onnxq
    result = onnxq.quantize("model.onnx", samples, onnxq.Config(weights=4, activations=8))
    result.save("model.w4a8.onnx")

Names are looked up when they are first used: importing the package loads none of the heavy libraries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxq.allocation.bit_allocation import BitAllocation as BitAllocation
    from onnxq.api import quantize as quantize
    from onnxq.config import Config as Config
    from onnxq.config.optimization import Refinement as Refinement
    from onnxq.errors import CalibrationError as CalibrationError
    from onnxq.errors import ConfigError as ConfigError
    from onnxq.errors import InputError as InputError
    from onnxq.errors import ModelError as ModelError
    from onnxq.errors import OnnxqError as OnnxqError
    from onnxq.errors import OutputError as OutputError
    from onnxq.errors import UnsupportedError as UnsupportedError
    from onnxq.errors import VerificationError as VerificationError
    from onnxq.pipeline import Result as Result
    from onnxq.progress import Progress as Progress
    from onnxq.report.run import RunReport as RunReport
    from onnxq.verify import VerificationReport as VerificationReport

_HOME = {
    "BitAllocation": "allocation.bit_allocation",
    "Config": "config",
    "Refinement": "config.optimization",
    "CalibrationError": "errors",
    "ConfigError": "errors",
    "InputError": "errors",
    "ModelError": "errors",
    "OnnxqError": "errors",
    "OutputError": "errors",
    "UnsupportedError": "errors",
    "VerificationError": "errors",
    "Result": "pipeline",
    "quantize": "api",
    "Progress": "progress",
    "RunReport": "report.run",
    "VerificationReport": "verify",
}

__all__ = list(_HOME)


def __getattr__(name: str) -> Any:
    """A public name from the module that defines it."""
    if name not in _HOME:
        raise AttributeError(f"module 'onnxq' has no attribute {name!r}")
    return getattr(importlib.import_module(f"onnxq.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
