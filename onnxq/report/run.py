"""What a quantization did: every layer, everything left in float and why, and the proof that it loads."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from onnxq.ir.model import Remark
from onnxq.ir.save import write_text
from onnxq.report.unseen import tell_unseen
from onnxq.solve.stage_report import StageReport
from onnxq.validation.quality import OutputQuality
from onnxq.verify import Latency, LevelCheck, VerificationReport

POOR_DB = 10.0
"""Signal to noise of an output below which a result is of no use: its errors are a third of its values then."""

JudgedBy = Literal["hold-out", "cross-fitting", "nothing"]


@dataclass(frozen=True)
class LayerReport:
    """A quantized layer.

    Attributes:
        name: of its node.
        op: operator of its node.
        weight_bits: bits of the weights that were asked for.
        activation_bits: bits of the input that were asked for; 32 is float.
        stored_weight_bits: most bits that an audit of the emitted graph found in its weights; None where it found none.
        stored_activation_bits: the same of its input.
        parameters: number of weights.
        loss_nearest: squared error of its output relative to the output's power with nearest rounding, on held-out
            rows.
        loss: the same error as solved.
        status: how the solution came about.
        seconds: time that solving it took.
    """

    name: str
    op: str
    weight_bits: int
    activation_bits: int
    stored_weight_bits: int | None
    stored_activation_bits: int | None
    parameters: int
    loss_nearest: float
    loss: float
    status: str
    seconds: float


@dataclass(frozen=True)
class RunReport:
    """A quantization, told from beginning to end.

    Attributes:
        onnxq: version of onnxq that made it.
        config: every option, as plain values.
        samples: calibration samples used.
        layers: quantized layers in graph order.
        left_in_float: what was not quantized or not rewritten, and why.
        notes: what else is to be said of the network as a whole.
        stages: what each stage that changes the network's numbers did, and the loss after it.
        judged_by: ``hold-out``: some samples were kept from all that was fitted, and judged it. ``cross-fitting``:
            too few for that, so networks made from parts of them were judged by the rest. ``nothing``: one sample
            tells nothing of others.
        judged: samples that the network, or one like it, was judged by and not made from.
        unseen: quality of each floating-point output on the samples that judged.
        simulated_sqnr_db: signal to noise of each output on the samples that judged, dB; None where both networks
            answer alike, where the output is not compared, or where so few samples leave it open by more than 1.5 dB.
        loads: the emitted model at each optimization level of onnxruntime.
        fp32: size of the float model, bytes.
        quantized: size of the quantized model, bytes.
        quantized_share: of the numbers in weights, tables and other constants of two axes and more, those stored as
            integers, 0 to 1.
        seconds: time by stage.
        allocation: how the bits were chosen and what came of it, as plain values; None where they were given.
        check: verification of the emitted model on samples that were handed over for that; None where there were none.
        adapted: samples of another kind that were handed over for its ranges, where it took them; then ``judged`` and
            ``unseen`` are of those.
        latency_ms: time of a run of both models on a calibration sample, on one thread, in turns; None where the
            notes say why it is not known.
        required_speedup: least ``speedup`` that was asked for; None where none was.
    """

    onnxq: str
    config: dict[str, Any]
    samples: int
    layers: tuple[LayerReport, ...]
    left_in_float: tuple[Remark, ...]
    notes: tuple[Remark, ...]
    stages: tuple[StageReport, ...]
    judged_by: JudgedBy
    judged: int
    unseen: tuple[OutputQuality, ...]
    simulated_sqnr_db: dict[str, float | None]
    loads: tuple[LevelCheck, ...]
    fp32: int
    quantized: int
    seconds: dict[str, float]
    allocation: dict[str, Any] | None = None
    quantized_share: float | None = None
    check: VerificationReport | None = None
    adapted: int = 0
    latency_ms: Latency | None = None
    required_speedup: float | None = None

    @property
    def ok(self) -> bool:
        """Whether the emitted model is of use: it runs at every level, no layer has other bits than were asked for,
        every output keeps 10 dB of signal to noise on samples that were not fitted, and it is as fast as was asked for.
        """
        runs = all(level.ok for level in self.loads) and (self.check is None or self.check.ok)
        return runs and not self.missed and not self.poor and not self.too_slow

    @property
    def speedup(self) -> float | None:
        """How many times as fast as the float model the quantized one is; None where it was not measured."""
        return None if self.latency_ms is None else self.latency_ms.speedup

    @property
    def too_slow(self) -> bool:
        """Whether its speed-up is below what was asked for, or not known."""
        return self.required_speedup is not None and not (self.speedup or 0.0) >= self.required_speedup

    @property
    def poor(self) -> tuple[str, ...]:
        """Outputs that keep less than 10 dB of signal to noise on samples that were not fitted."""
        return tuple(q.output for q in self.unseen if q.sqnr_db is not None and q.sqnr_db < POOR_DB)

    @property
    def missed(self) -> tuple[str, ...]:
        """Layers whose bits in the file are more than were asked for."""
        return tuple(
            layer.name
            for layer in self.layers
            if (layer.stored_weight_bits or 32) > layer.weight_bits
            or (layer.stored_activation_bits or 32) > layer.activation_bits
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values, finite numbers or None."""
        plain: dict[str, Any] = _finite(dataclasses.asdict(dataclasses.replace(self, loads=(), check=None)))
        plain["loads"] = {check.level: check.to_dict() for check in self.loads}
        plain["check"] = None if self.check is None else self.check.to_dict()
        plain["ok"] = self.ok
        plain["speedup"] = self.speedup
        return plain

    def to_json(self) -> str:
        """One JSON object."""
        return json.dumps(self.to_dict(), allow_nan=False)

    def to_html(self, path: str | Path, *, title: str = "Quantisation report") -> None:
        """Write a self-contained HTML page; the file appears complete or not at all.

        Raises:
            OutputError: the place cannot be written.
        """
        from onnxq.report.html import render  # a template engine is loaded only by those who want a page

        losses = [layer.loss for layer in self.layers if math.isfinite(layer.loss)]
        largest = max(losses, default=0.0) or 1.0
        page = render({"report": self, "unseen": tell_unseen(self), "title": title, "largest": largest})
        write_text(Path(path), page)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
