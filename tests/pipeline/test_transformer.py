"""A little transformer through the whole pipeline: every product on integers, tables in few bits, all levels alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from small_models import DRIFT
from small_transformer import DECOMPOSED, FUSED, encoder, fused_encoder, sentences

from onnxq.allocation.choices import make_choices
from onnxq.allocation.cost.dummy_model import placeholder_model
from onnxq.allocation.sensitivity import measure_sensitivities
from onnxq.api import quantize
from onnxq.config import Config
from onnxq.config.bit_widths import Candidate
from onnxq.config.optimization import Tuning
from onnxq.ir.layer import Layer, find_layers
from onnxq.ir.load import load
from onnxq.passes.prepare import prepare
from onnxq.pipeline import Result
from onnxq.quant.solution import LayerSolution
from onnxq.runtime.session import Session
from onnxq.solve.layer import solve_layer
from onnxq.solve.problem import LayerProblem
from onnxq.verify import audit_bits, verify

pytestmark = pytest.mark.slow

KEPT_DB = {(8, 8): 32, (4, 8): 16, (4, 32): 17}
"""Decibels that the little network keeps at least, by bits of weights and activations: measured, less 2 to 3."""


def quantized(model: onnx.ModelProto, config: Config) -> Result:
    return quantize(model, sentences(), config)


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {t.name: t for t in model.graph.initializer}


@pytest.mark.parametrize(
    ("norm", "weights", "activations"), [(FUSED, 8, 8), (DECOMPOSED, 8, 8), (FUSED, 4, 8), (FUSED, 4, 32)]
)
def test_transformer_keeps_its_answers_at_every_level(norm: str, weights: int, activations: int) -> None:
    model = encoder(norm=norm)
    result = quantized(model, Config(weights=weights, activations=activations, edge_bits="same"))
    report = verify(model, result.model, [sentences(seed=3)])
    assert all(check.ok for check in report.loads)
    assert max(check.relative_diff or 0.0 for check in report.loads) < DRIFT
    assert report.outputs[0].sqnr_db > KEPT_DB[weights, activations]


@pytest.mark.parametrize("attention", ["onnx", "microsoft"])
def test_fused_operators_are_kept_and_what_they_leave_in_float_is_told(attention: str) -> None:
    model = fused_encoder(attention)
    exact, fused = (Session(m, "").run(sentences(seed=3))["y"] for m in (encoder(), model))
    np.testing.assert_allclose(fused, exact, rtol=0, atol=1e-5)
    result = quantized(model, Config())
    report = verify(model, result.model, [sentences(seed=3)])
    assert all(check.ok for check in report.loads)
    assert report.outputs[0].sqnr_db > KEPT_DB[8, 8]
    assert {"Attention", "Gelu", "LayerNormalization"} <= {n.op_type for n in result.model.graph.node}
    assert {la.name for la in result.report.layers} == {"o0", "i0", "d0"} | (
        {"q0", "k0", "v0"} if attention == "onnx" else set()
    )
    (told,) = (r.reason for r in result.report.left_in_float if r.node == "cr")
    assert "weights it holds are left in float" in told


def test_every_product_runs_on_integers_at_8_bits() -> None:
    model = encoder()
    report = verify(model, quantized(model, Config()).model, [sentences(seed=3)])
    integer = report.kernels.get("MatMulIntegerToFloat", 0) + report.kernels.get("QLinearMatMul", 0)
    assert integer == 8  # six matrices, scores and context
    assert report.kernels.get("MatMul", 0) == 0


def test_attention_stays_in_float_where_asked() -> None:
    bits = {b.name: b for b in audit_bits(quantized(encoder(), Config(attention=32)).model)}
    assert not {"scores", "context"} & bits.keys()
    both = {b.name: b for b in audit_bits(quantized(encoder(), Config()).model)}
    assert both["scores"].activation_bits == both["context"].activation_bits == 8


def test_no_scale_comes_from_the_mask() -> None:
    model = quantized(encoder(), Config()).model
    scales = [
        t for name, t in initializers(model).items() if name.endswith("/scale") and t.data_type == TensorProto.FLOAT
    ]
    assert scales
    assert all(np.abs(onnx.numpy_helper.to_array(t)).max() < 1 for t in scales)


def test_padding_does_not_change_the_result() -> None:
    """Token 0 fills up: whatever its row holds, grids and weights stay the same."""
    wild = encoder()
    table = next(t for t in wild.graph.initializer if t.name == "table")
    values = onnx.numpy_helper.to_array(table).copy()
    values[0] *= 50
    table.CopyFrom(onnx.numpy_helper.from_array(values, "table"))
    usual = initializers(quantized(encoder(), Config(embeddings=32)).model)
    others = initializers(quantized(wild, Config(embeddings=32)).model)
    differing = {n for n, t in usual.items() if t.SerializeToString() != others[n].SerializeToString()}
    assert differing == {"table"}


def test_weight_only_fuses_to_4_bit_kernels() -> None:
    model = encoder()
    result = quantized(model, Config(weights=4, activations=32, edge_bits="same"))
    report = verify(model, result.model, [sentences(seed=3)])
    assert report.kernels["MatMulNBits"] == 6
    stored = [t for t in result.model.graph.initializer if t.data_type == TensorProto.INT4]
    assert len(stored) == 6
    assert all(len(onnx.numpy_helper.to_array(t)) % 32 == 0 for t in stored)


def test_parallel_mode_quantises_the_same_places() -> None:
    first = audit_bits(quantized(encoder(), Config(mode="parallel")).model)
    second = audit_bits(quantized(encoder(), Config()).model)
    assert [(b.name, b.weight_bits, b.activation_bits) for b in first] == [
        (b.name, b.weight_bits, b.activation_bits) for b in second
    ]


def test_kinds_of_quantisation_are_mixed_within_the_size_of_the_file() -> None:
    model = encoder()
    whole = model.ByteSize()
    config = Config(edge_bits="same", candidates=("w4a8", "w8a8", "w4a32"), table_samples=16)
    least = quantized(model, replace(config, candidates=("w4a8",), budget=("loss=1e9",))).model.ByteSize()
    result = quantized(model, replace(config, budget=(f"size={(least + 0.05 * whole) / whole:.4f}",)))
    assert result.model.ByteSize() <= least + 0.051 * whole
    chosen = result.report.allocation or {}
    assert len(set(chosen["choice"].values())) > 1
    assert all(check.ok for check in verify(model, result.model, [sentences(seed=3)]).loads)


@pytest.mark.parametrize("bits", [Candidate(4, 8), Candidate(8, 8), Candidate(4, 32)])
def test_a_predicted_size_holds_for_tables_and_for_scales_of_blocks(bits: Candidate) -> None:
    model = prepare(load(encoder(), minimum_opset=21))
    config = Config(weights=bits.weights, activations=bits.activations, edge_bits="same", equalise=False)
    choice = {layer.name: bits for layer in find_layers(model)[0]}
    predicted, plan = placeholder_model(model, config, choice)
    assert plan.tables and all(p.block == (32 if bits == Candidate(4, 32) else None) for p in plan.layers)
    assert predicted.ByteSize() == pytest.approx(quantized(encoder(), config).model.ByteSize(), rel=0.01)


def test_weights_alone_are_measured_with_the_scales_of_blocks_that_they_will_have(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, seen = prepare(load(encoder(), minimum_opset=21)), set()

    def watched(layer: Layer, problem: LayerProblem, *rest: object) -> LayerSolution:
        seen.add((problem.weight_spec.bits, problem.block))
        return solve_layer(layer, problem, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr("onnxq.allocation.candidate_solutions.solve_layer", watched)
    choices = make_choices(model, (Candidate(4, 32), Candidate(8, 8)), Config(edge_bits="same"))
    measure_sensitivities(model, choices, [sentences()], Config(edge_bits="same"))
    assert seen == {(4, 32), (8, None)}


def test_tuning_through_the_network_sees_tables_as_they_are_stored() -> None:
    def tuned(embeddings: int) -> tuple[float, float]:
        tuning = Tuning(steps=20, features=0.0, rows=16)
        config = Config(preset="advanced", refine=False, edge_bits="same", embeddings=embeddings, tuning=tuning)  # type: ignore[arg-type]
        result = quantized(encoder(), config)
        assert all(check.ok for check in result.report.loads)
        (told,) = (stage for stage in result.report.stages if stage.stage == "tune")
        assert told.before is not None and told.after is not None
        return told.before, told.after

    coarse, exact = tuned(4), tuned(32)
    assert coarse[0] > 2 * exact[0]  # rows at 4 bits are most of what is lost
    assert coarse[1] <= coarse[0] and exact[1] <= exact[0]
