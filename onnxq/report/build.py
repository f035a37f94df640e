"""The account of a run: every layer with its bits as they are stored, what stayed float, what each stage changed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import onnx

from onnxq.acceptance.fallbacks import Emitted
from onnxq.config import Config
from onnxq.ir.floats import told
from onnxq.ir.model import Remark
from onnxq.ir.size import FOUR_BITS, model_bytes, tensor_bytes, tensors_of
from onnxq.plan.values import Plan
from onnxq.report.run import POOR_DB, JudgedBy, LayerReport, RunReport
from onnxq.solve.stage_report import StageReport
from onnxq.validation.folds import Folds
from onnxq.validation.judgement import Judgement
from onnxq.validation.outliers import Unlike
from onnxq.validation.quality import OutputQuality, output_qualities
from onnxq.validation.unseen import Made
from onnxq.verify import TensorRange, VerificationReport, audit_bits
from onnxq.verify.selection import FLOATS
from onnxq.version import VERSION

MUCH_LOST = 0.01
"""Share of a tensor's power from which on the report says that its range cuts too much of it off: 20 dB."""

UNUSUAL = 3.0
"""How many times as much as of its own samples that must be, beside what it keeps."""


def run_report(
    made: Made,
    config: Config,
    folds: Folds,
    unlike: Unlike,
    emitted: Emitted,
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
        emitted: the quantized model.
        size: of the float model, bytes.
        seconds: by stage.
        stages: what each changed.
    """
    plan, network, proto = made.plan, made.network, emitted.proto
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
            *_containers(plan, proto),
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
        simulated_sqnr_db=dict.fromkeys(network.sqnr_db) | _figures(unseen),
        loads=emitted.checks,
        fp32=size,
        quantized=model_bytes(proto),
        quantized_share=plan.share,
        seconds=dict(seconds),
    )


FORMS = {
    "packed": "in their bits and unpacked by operators on constants: onnxruntime works these out once, when it starts, "
    "and runs integer kernels; a runtime that does not would unpack at every run, and is better served by container "
    "int8",
    "int4": "in the standard's 4-bit type, which onnxruntime dequantizes at every run",
    "int8": "in a byte each, which integer kernels take as they are",
}
"""How weights of less than 8 bits may be stored, and what that means for a runtime."""


def _containers(plan: Plan, proto: onnx.ModelProto) -> Iterator[Remark]:
    """How weights of less than 8 bits are stored, why, and what a runtime makes of it."""
    for form, count in stored_forms(plan, proto).most_common():
        yield Remark("network", f"the weights of {count} layers are stored {FORMS[form]}")


def stored_forms(plan: Plan, proto: onnx.ModelProto) -> Counter[str]:
    """Layers with weights of less than 8 bits whose channels have one scale, counted by a key of :data:`FORMS`."""
    makers = {name: node for node in proto.graph.node for name in node.output}
    types = {t.name: t.data_type for t in proto.graph.initializer}
    nodes = {node.name: node for node in proto.graph.node}
    small = [p.layer.name for p in plan.layers if p.weights < 8 and p.block is None]
    read = [makers[nodes[name].input[1]].input[0] for name in small]
    return Counter("packed" if r not in types else "int4" if types[r] in FOUR_BITS else "int8" for r in read)


def _stored(proto: onnx.ModelProto) -> dict[str, int]:
    """Bytes of the model's constants in float, by the name that they had; those in half floats too."""
    floats = [t for t in tensors_of(proto.graph) if t.data_type in FLOATS]
    return {t.name.removesuffix("/float16"): tensor_bytes(t) for t in floats}


def checked(
    report: RunReport,
    found: VerificationReport,
    usual: Sequence[TensorRange],
    seconds: Mapping[str, float],
    same: Sequence[str],
) -> RunReport:
    """The report of a run whose model was judged on further samples.

    Args:
        report: of the run.
        found: on those samples.
        usual: what the samples that its ranges are for make of them.
        seconds: that it took, by stage.
        same: sets of samples, by name, that it was made from and that these are.
    """
    told = [Remark("network", f"it was checked on its own {name} samples, which flatters it") for name in same]
    # Ranges of least error may cut off much of a few outliers, on the samples that they are for as well.
    known = {place.tensor: _beside_kept(place.lost) for place in usual}
    left = [
        p
        for p in found.ranges or ()
        if p.lost > MUCH_LOST and _beside_kept(p.lost) > UNUSUAL * known.get(p.tensor, 0.0)
    ]
    if left:
        told.append(
            Remark(
                "network",
                f"the samples it was checked on leave the range of tensor {left[0].tensor}, which cuts off "
                f"{100 * left[0].lost:.2g} % of its power: calibrate on samples like them, or adapt the model to them "
                "(adapt)",
            )
        )
    return replace(report, check=found, notes=(*report.notes, *told), seconds={**report.seconds, **seconds})


def _beside_kept(lost: float) -> float:
    """A share lost in terms of the rest."""
    return lost / max(1 - lost, 1e-9)


def adapted_report(
    report: RunReport,
    emitted: Emitted,
    told: StageReport,
    judgement: Judgement | None,
    samples: int,
) -> RunReport:
    """The report of a run whose model was adapted to other samples.

    Args:
        report: of the run.
        emitted: the adapted model.
        told: what the adaptation came to.
        judgement: on those of them that were held back, None where none was.
        samples: of the other kind.
    """
    unseen = output_qualities(judgement) if judgement else ()
    audited = {bits.name: bits for bits in audit_bits(emitted.proto)}
    stored = [(layer, audited.get(layer.name)) for layer in report.layers]
    kept = [note for note in report.notes if note not in tuple(_poor(report.unseen))]
    layers = (
        replace(
            layer,
            stored_weight_bits=found.weight_bits if found else None,
            stored_activation_bits=found.activation_bits if found else None,
        )
        for layer, found in stored
    )
    return replace(
        report,
        layers=tuple(layers),
        notes=(*kept, *emitted.remarks, *_poor(unseen)),
        stages=(*report.stages, told),
        judged_by="hold-out" if judgement else "nothing",
        judged=len(judgement.samples) if judgement else 0,
        unseen=unseen,
        simulated_sqnr_db=_figures(unseen),
        adapted=samples,
        loads=emitted.checks,
        quantized=model_bytes(emitted.proto),
    )


def _beside_layers(plan: Plan) -> Iterator[Remark]:
    """What is quantized besides the layers."""
    if plan.products:
        yield Remark("network", f"products of two activations with both operands at 8 bits: {len(plan.products)}")
    for planned in plan.tables:
        yield Remark(
            planned.table.name, f"rows of its table of {planned.table.parameters} are stored at {planned.bits} bits"
        )


def _figures(unseen: Iterable[OutputQuality]) -> dict[str, float | None]:
    """Signal to noise of each output; None where it is not known, or there is no noise."""
    return {quality.output: quality.sqnr_db if quality.known else None for quality in unseen}


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
