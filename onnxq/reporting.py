"""The account of a run: every layer with its bits as they are stored, what stayed float, what each stage changed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import onnx

from onnxq.config import Config
from onnxq.ir.model import Remark
from onnxq.ir.size import model_bytes
from onnxq.network import NetworkSolution
from onnxq.plan import Plan
from onnxq.report.run import LayerReport, RunReport
from onnxq.report.stage import StageReport
from onnxq.verify import LevelCheck, TensorRange, VerificationReport, audit_bits
from onnxq.version import VERSION

MUCH_LOST = 0.01
"""Share of a tensor's power from which on the report says that its range cuts too much of it off: 20 dB."""

UNUSUAL = 3.0
"""How many times as much as of its own samples that must be."""

POOR_DB = 10.0
"""Signal to noise of an output below which the report says what to do: its errors are a third of its values then."""


def run_report(
    plan: Plan,
    config: Config,
    network: NetworkSolution,
    proto: onnx.ModelProto,
    checks: tuple[LevelCheck, ...],
    size: int,
    seconds: Mapping[str, float],
    stages: Sequence[StageReport],
) -> RunReport:
    """The report of a run.

    Args:
        plan: what was to be quantised.
        config: how.
        network: the layers as solved.
        proto: the quantised model.
        checks: how it ran at each optimisation level.
        size: of the float model, bytes.
        seconds: by stage.
        stages: what each changed.
    """
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
        left_in_float=plan.remarks,
        notes=(*plan.raised, *_beside_layers(plan), *network.remarks, *_poor(network)),
        stages=tuple(stages),
        simulated_sqnr_db=dict(network.sqnr_db),
        loads=checks,
        fp32=size,
        quantized=model_bytes(proto),
        seconds=dict(seconds),
    )


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
    known = {place.tensor: place.lost for place in usual}
    left = [p for p in found.ranges or () if p.lost > max(MUCH_LOST, UNUSUAL * known.get(p.tensor, 0.0))]
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


def adapted_report(
    report: RunReport,
    proto: onnx.ModelProto,
    checks: tuple[LevelCheck, ...],
    told: StageReport,
    remarks: tuple[Remark, ...],
) -> RunReport:
    """The report of a run whose model was adapted to other samples.

    Args:
        report: of the run.
        proto: the adapted model.
        checks: how it ran at each optimisation level.
        told: what the adaptation came to.
        remarks: what else is to be said.
    """
    audited = {bits.name: bits for bits in audit_bits(proto)}
    stored = [(layer, audited.get(layer.name)) for layer in report.layers]
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
        notes=(*report.notes, *remarks),
        stages=(*report.stages, told),
        simulated_sqnr_db={},  # it is another network on other samples
        loads=checks,
        quantized=model_bytes(proto),
    )


def _beside_layers(plan: Plan) -> Iterator[Remark]:
    """What is quantised besides the layers."""
    if plan.products:
        yield Remark("network", f"products of two activations with both operands at 8 bits: {len(plan.products)}")
    for planned in plan.tables:
        yield Remark(
            planned.table.name, f"rows of its table of {planned.table.parameters} are stored at {planned.bits} bits"
        )


def _poor(network: NetworkSolution) -> Iterator[Remark]:
    """Outputs that are far from the float network's."""
    for name, db in network.sqnr_db.items():
        if db is not None and db < POOR_DB:
            yield Remark(
                "network",
                f"output {name} keeps {db:.1f} dB of signal to noise on the calibration samples: give the model "
                "more bits, or leave in float (exclude) what loses most, which onnxq sensitivity tells",
            )
