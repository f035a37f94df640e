"""The bundled model quantized and judged: what onnxq does, shown in less than a minute."""

from __future__ import annotations

import dataclasses
import importlib
import time
from dataclasses import dataclass
from typing import Any

import onnx

from onnxq.api import quantize
from onnxq.config import Config
from onnxq.data import read_feeds, read_labels
from onnxq.data.replay import batch_size
from onnxq.ir.load import load
from onnxq.progress import Listener, Progress, silent
from onnxq.report.run import RunReport
from onnxq.verify import VerificationReport, verify

LABELS = "labels"

# Chosen for a minute on two slow cores: closed forms alone, for compiling the gradients of every layer shape
# would take longer than all the rest; and at 8 bits plain rounding, which costs no accuracy here.
CONFIGS = {
    "W8A8": Config(weights=8, activations=8, preset="light", second_order=False),
    "W4A8": Config(weights=4, activations=8, preset="light"),
}


@dataclass(frozen=True)
class Variant:
    """The bundled model at some bits.

    Attributes:
        name: such as ``W4A8``.
        model: quantized.
        report: account of the quantization.
        verification: of the model on labelled images that neither training nor calibration saw.
    """

    name: str
    model: onnx.ModelProto
    report: RunReport
    verification: VerificationReport


@dataclass(frozen=True)
class Demonstration:
    """The bundled model quantized in each configuration.

    Attributes:
        model: its file name.
        variants: by name, such as ``W4A8``.
        seconds: that all of it took.
    """

    model: str
    variants: tuple[Variant, ...]
    seconds: float

    @property
    def ok(self) -> bool:
        """Whether every variant has the bits asked for and runs at every optimization level."""
        return all(variant.report.ok and variant.verification.ok for variant in self.variants)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, finite numbers or None."""
        return {
            "model": self.model,
            "ok": self.ok,
            "seconds": self.seconds,
            "variants": {
                v.name: {"quantize": v.report.to_dict(), "verify": v.verification.to_dict()} for v in self.variants
            },
        }


def demonstrate(progress: Listener = silent) -> Demonstration:
    """Quantize the bundled model in each configuration and verify it; nothing is written.

    Args:
        progress: told how far it is.
    """
    began = time.perf_counter()
    # Found by name: the reference networks are put beside the package when it is installed.
    bundled = importlib.import_module("onnxq.models").bundled()
    inputs = load(bundled.model).inputs
    labels = read_labels(bundled.evaluation, LABELS)
    variants = []
    for name, config in CONFIGS.items():

        def tell(moment: Progress, name: str = name) -> None:
            progress(dataclasses.replace(moment, stage=f"{name} {moment.stage}"))

        def tell_samples(done: int, tell: Listener = tell) -> None:
            tell(Progress("evaluate", done, len(labels)))

        result = quantize(bundled.model, bundled.calibration, config, progress=tell)
        feeds = read_feeds(bundled.evaluation, inputs, batch=batch_size(inputs), ignore={LABELS})
        verification = verify(bundled.model, result.model, feeds, labels=labels, progress=tell_samples)
        variants.append(Variant(name, result.model, result.report, verification))
    return Demonstration(bundled.model.name, tuple(variants), time.perf_counter() - began)
