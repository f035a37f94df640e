"""What a verification found, and the JSON that programs are promised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from onnxq.verify.findings import FirstDifference, LayerBits, TensorRange, number


@dataclass(frozen=True)
class OutputFidelity:
    """How close one output of the quantized model is to the float model's, over all samples.

    Attributes:
        name: of the graph output.
        sqnr_db: 10·log₁₀(Σ float² / Σ (float − quantized)²), decibels; infinite where every value is equal.
        cosine: cosine of the angle between all float and all quantized values, −1 to 1.
        equal: percent of values that are exactly the same (both NaN counts as the same).
        not_finite: values that are NaN or infinite in either model and not the same in both. Where
            there is one, ``sqnr_db``, ``cosine`` and ``kl`` are None: no figure hides it.
        broken: values that are NaN or infinite in the quantized model alone, where these are more than the float
            model has itself; otherwise 0.
        left_out: why the output is not compared, in which case it has no figures; None where it is.
        kl: mean Kullback-Leibler divergence of softmax(quantized) from softmax(float) over the last
            axis, nats; None unless the output is judged as a classification.
        top1_agreement: percent of rows whose largest value stands at the same place; None as for ``kl``.
        top1_fp32: percent of rows where the float model's largest value is at the label; None without labels.
        top1_quantized: the same of the quantized model.
        sqnr_db_median: median of the samples' own ``sqnr_db``, each from one sample's values alone: the figure over
            all values may be that of a single sample that holds most of the power. A sample whose float output
            is 0 throughout has no such figure, unless it is reproduced exactly, and is left out. None where the
            output's first axis is not the samples (the output of a batch of one is that sample's whatever its
            shape), and where ``not_finite`` counts a value.
        sqnr_db_worst: least of the samples' own ``sqnr_db``.
        worst_sample: which sample that is, counted from 0 in the feeds' order; of equal ones the first. Where
            ``not_finite`` counts a value, the first sample with one.
    """

    name: str
    sqnr_db: float | None
    cosine: float | None
    equal: float | None
    not_finite: int
    kl: float | None = None
    top1_agreement: float | None = None
    top1_fp32: float | None = None
    top1_quantized: float | None = None
    broken: int = 0
    left_out: str | None = None
    sqnr_db_median: float | None = None
    sqnr_db_worst: float | None = None
    worst_sample: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form, finite numbers or null.

        An infinite ``sqnr_db`` becomes null beside ``equal`` 100, an infinite ``sqnr_db_median`` or ``_worst`` beside
        a ``worst_sample``. ``left_out`` is there only where the output is not compared.
        """
        return {
            "sqnr_db": number(self.sqnr_db),
            "sqnr_db_median": number(self.sqnr_db_median),
            "sqnr_db_worst": number(self.sqnr_db_worst),
            "worst_sample": self.worst_sample,
            "cosine": number(self.cosine),
            "kl": number(self.kl),
            "top1_agreement": number(self.top1_agreement),
            "top1_fp32": number(self.top1_fp32),
            "top1_quantized": number(self.top1_quantized),
            "equal": number(self.equal),
            "not_finite": self.not_finite,
            "broken": self.broken,
            **({} if self.left_out is None else {"left_out": self.left_out}),
        }


@dataclass(frozen=True)
class LevelCheck:
    """Whether the model works at one optimization level of onnxruntime, and how far its answers move.

    Attributes:
        level: ``disable``, ``basic``, ``extended`` or ``all`` (what people run).
        ok: whether the model loads, runs, and is NaN or infinite only where level ``disable`` is too.
        max_abs_diff: largest difference from ``disable`` over all outputs, in the output's unit;
            None where either level does not work.
        relative_diff: largest over the outputs of the difference divided by the largest magnitude in
            that output at either level; 0 to 2.
        relative_rms: largest over the outputs of the root mean square of the difference divided by that of
            the output at ``disable``.
        agreement: percent of rows whose largest value stands at the same place as at ``disable``;
            None unless judged as a classification.
        error: one sentence saying what failed; None where ``ok``.
    """

    level: str
    ok: bool
    max_abs_diff: float | None = None
    relative_diff: float | None = None
    relative_rms: float | None = None
    agreement: float | None = None
    error: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON form, finite numbers or null."""
        return {
            "ok": self.ok,
            "max_abs_diff": number(self.max_abs_diff),
            "relative_diff": number(self.relative_diff),
            "relative_rms": number(self.relative_rms),
            "agreement": number(self.agreement),
            "error": self.error,
        }


@dataclass(frozen=True)
class Latency:
    """Median time of one run of both models, taken in turns.

    Attributes:
        fp32: milliseconds a run of the float model.
        quantized: milliseconds a run of the quantized model.
        batch: samples a run.
        runs: timed runs of each model.
        threads: that compute a run; 0 is onnxruntime's default, one for each core.
    """

    fp32: float
    quantized: float
    batch: int
    runs: int
    threads: int = 0

    @property
    def speedup(self) -> float:
        """How many times as fast as the float model the quantized one is."""
        return self.fp32 / self.quantized

    def to_dict(self) -> dict[str, Any]:
        """JSON form."""
        return {
            "fp32": number(self.fp32),
            "quantized": number(self.quantized),
            "batch": self.batch,
            "runs": self.runs,
            "threads": self.threads,
        }


@dataclass(frozen=True)
class VerificationReport:
    """All that :func:`onnxq.verify.verify` found.

    Attributes:
        fp32: size of the float model, bytes, external data included.
        quantized: size of the quantized model, bytes, external data included.
        samples: number of samples compared.
        level: optimization level at which ``outputs`` and ``latency_ms`` were taken: ``all``, or the
            highest one that works; None where none does.
        outputs: fidelity of each output, in the float model's order; empty where no level works.
        loads: the four levels, from ``disable`` to ``all``.
        latency_ms: time of a run of both models; None where it was not asked for or no level works.
        bits: quantized layers in graph order.
        kernels: operators of the optimized graph at the default level and how often each occurs;
            empty where onnxruntime cannot build it.
        difference: the first tensor that a level computes otherwise or not at all; None where all levels are alike.
        ranges: what the samples make of each quantized tensor's range, those that lose most first; None where it
            was not asked for or no level works.
    """

    fp32: int
    quantized: int
    samples: int
    level: str | None
    outputs: tuple[OutputFidelity, ...]
    loads: tuple[LevelCheck, ...]
    latency_ms: Latency | None
    bits: tuple[LayerBits, ...]
    kernels: Mapping[str, int] = field(default_factory=dict)
    difference: FirstDifference | None = None
    ranges: tuple[TensorRange, ...] | None = None

    @property
    def ok(self) -> bool:
        """Whether the model works at every optimization level, and answers numbers where the float model does."""
        return all(check.ok for check in self.loads) and not any(output.broken for output in self.outputs)

    def to_dict(self) -> dict[str, Any]:
        """The object that ``onnxq verify --json`` prints: finite numbers or null only."""
        return {
            "fp32": self.fp32,
            "quantized": self.quantized,
            "samples": self.samples,
            "level": self.level,
            "outputs": {output.name: output.to_dict() for output in self.outputs},
            "loads": {check.level: check.to_dict() for check in self.loads},
            "latency_ms": None if self.latency_ms is None else self.latency_ms.to_dict(),
            "bits": {layer.name: layer.to_dict() for layer in self.bits},
            "kernels": dict(self.kernels),
            "first_difference": None if self.difference is None else self.difference.to_dict(),
            "ranges": None if self.ranges is None else [found.to_dict() for found in self.ranges],
        }
