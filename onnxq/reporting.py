"""The account of a run: every layer with its bits as they are stored, what stayed float, what each stage changed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import onnx

from onnxq.config import Config
from onnxq.ir.floats import told
from onnxq.ir.model import Remark
from onnxq.ir.size import model_bytes, tensor_bytes, tensors_of
from onnxq.plan import Plan
from onnxq.report.run import POOR_DB, JudgedBy, LayerReport, RunReport
from onnxq.report.stage import StageReport
from onnxq.selection import FLOATS
from onnxq.validation.folds import Folds
from onnxq.validation.outliers import Unlike
from onnxq.validation.quality import OutputQuality, output_qualities
from onnxq.validation.unseen import Made
from onnxq.verify import LevelCheck, audit_bits
from onnxq.version import VERSION


def run_report(
    made: Made,
    config: Config,
    folds: Folds,
    unlike: Unlike,
    proto: onnx.ModelProto,
    checks: tuple[LevelCheck, ...],
    size: int,
    seconds: Mapping[str, float],
    stages: Sequence[StageReport],
) -> RunReport:
    """The report of a run.

    Args:
        made: the layers as solved, and what the network does to samples that were not fitted.
        config: how.
        folds: how these were kept apart.
        unlike: samples that are unlike all others.
        proto: the quantised model.
        checks: how it ran at each optimisation level.
        size: of the float model, bytes.
        seconds: by stage.
        stages: what each changed.
    """
    plan, network = made.plan, made.network
    unseen = output_qualities(made.judgement) if made.judgement else ()
    audited = {bits.name: bits for bits in audit_bits(proto)}
    layers = []
    for planned in plan.layers:
        solution, found = network.layers[planned.layer.name], audited.get(planned.layer.name)
        layers.append(
            LayerReport(
                name=planned.layer.name,
                op=planned.layer.op,
                weight_bits=planned.weights,
                activation_bits=planned.activations,
                stored_weight_bits=found.weight_bits if found else None,
                stored_activation_bits=found.activation_bits if found else None,
                parameters=planned.layer.parameters,
                loss_nearest=solution.loss_nearest,
                loss=solution.loss,
                status=solution.status,
                seconds=solution.seconds,
            )
        )
    values: dict[str, Any] = asdict(config)
    return RunReport(
        onnxq=VERSION,
        config=values,
        samples=network.samples,
        layers=tuple(layers),
        left_in_float=told(plan.remarks, plan.floats, model_bytes(proto), _stored(proto)),
        notes=(
            *plan.raised,
            *_beside_layers(plan),
            *unlike.remarks,
            *network.remarks,
            *made.remarks,
            *_judged_before(config, folds),
            *_poor(unseen),
        ),
        stages=tuple(stages),
        judged_by=_judged_by(folds),
        judged=len(made.judgement.samples) if made.judgement else 0,
        unseen=unseen,
        simulated_sqnr_db=dict.fromkeys(network.sqnr_db) | {quality.output: quality.sqnr_db for quality in unseen},
        loads=checks,
        fp32=size,
        quantized=model_bytes(proto),
        quantized_share=plan.share,
        seconds=dict(seconds),
    )


def _stored(proto: onnx.ModelProto) -> dict[str, int]:
    """Bytes of the model's constants in float, by the name that they had; those in half floats too."""
    floats = [t for t in tensors_of(proto.graph) if t.data_type in FLOATS]
    return {t.name.removesuffix("/float16"): tensor_bytes(t) for t in floats}


def _beside_layers(plan: Plan) -> Iterator[Remark]:
    """What is quantised besides the layers."""
    if plan.products:
        yield Remark("network", f"products of two activations with both operands at 8 bits: {len(plan.products)}")
    for planned in plan.tables:
        yield Remark(
            planned.table.name, f"rows of its table of {planned.table.parameters} are stored at {planned.bits} bits"
        )


def _judged_by(folds: Folds) -> JudgedBy:
    """How the samples that judge the network were kept from it."""
    if not folds.cuts:
        return "nothing"
    return "cross-fitting" if folds.crossed else "hold-out"


def _judged_before(config: Config, folds: Folds) -> Iterator[Remark]:
    """Where cross-fitting leaves out what is learnt by gradient."""
    if folds.crossed and (config.tunes or config.refines or config.reconstructs):
        yield Remark(
            "network",
            "with so few samples its figures are those of the network before it was learnt by gradient, which is kept "
            "only where samples that it does not learn from gain by it",
        )


def _poor(unseen: Iterable[OutputQuality]) -> Iterator[Remark]:
    """Outputs that are far from the float network's."""
    for quality in unseen:
        if quality.sqnr_db is not None and quality.sqnr_db < POOR_DB:
            yield Remark(
                "network",
                f"output {quality.output} keeps {quality.sqnr_db:.1f} dB of signal to noise on samples that were not "
                "fitted: give the model more bits or more samples, or leave in float (exclude) what loses most, which "
                "onnxq sensitivity tells",
            )
