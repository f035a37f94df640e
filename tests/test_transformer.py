"""A little transformer through the whole pipeline: every product on integers, tables in few bits, all levels alike."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from small_models import DRIFT
from small_transformer import DECOMPOSED, FUSED, encoder, sentences

from onnxq.config import Config
from onnxq.pipeline import Result, quantize
from onnxq.verify import audit_bits, verify

KEPT_DB = {(8, 8): 32, (4, 8): 16, (4, 32): 17}
"""Decibels that the little network keeps at least, by bits of weights and activations: measured, less 2 to 3."""


def quantised(model: onnx.ModelProto, config: Config) -> Result:
    return quantize(model, sentences(), config)


def initializers(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {t.name: t for t in model.graph.initializer}


@pytest.mark.parametrize(
    ("norm", "weights", "activations"), [(FUSED, 8, 8), (DECOMPOSED, 8, 8), (FUSED, 4, 8), (FUSED, 4, 32)]
)
def test_transformer_keeps_its_answers_at_every_level(norm: str, weights: int, activations: int) -> None:
    model = encoder(norm=norm)
    result = quantised(model, Config(weights=weights, activations=activations, edge_bits="same"))
    report = verify(model, result.model, [sentences(seed=3)])
    assert all(check.ok for check in report.loads)
    assert max(check.relative_diff or 0.0 for check in report.loads) < DRIFT
    assert report.outputs[0].sqnr_db > KEPT_DB[weights, activations]


def test_every_product_runs_on_integers_at_8_bits() -> None:
    model = encoder()
    report = verify(model, quantised(model, Config()).model, [sentences(seed=3)])
    integer = report.kernels.get("MatMulIntegerToFloat", 0) + report.kernels.get("QLinearMatMul", 0)
    assert integer == 8  # six matrices, scores and context
    assert report.kernels.get("MatMul", 0) == 0


def test_attention_stays_in_float_where_asked() -> None:
    bits = {b.name: b for b in audit_bits(quantised(encoder(), Config(attention=32)).model)}
    assert not {"scores", "context"} & bits.keys()
    both = {b.name: b for b in audit_bits(quantised(encoder(), Config()).model)}
    assert both["scores"].activation_bits == both["context"].activation_bits == 8


def test_no_scale_comes_from_the_mask() -> None:
    model = quantised(encoder(), Config()).model
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
    usual = initializers(quantised(encoder(), Config(embeddings=32)).model)
    others = initializers(quantised(wild, Config(embeddings=32)).model)
    differing = {n for n, t in usual.items() if t.SerializeToString() != others[n].SerializeToString()}
    assert differing == {"table"}


def test_weight_only_fuses_to_4_bit_kernels() -> None:
    model = encoder()
    result = quantised(model, Config(weights=4, activations=32, edge_bits="same"))
    report = verify(model, result.model, [sentences(seed=3)])
    assert report.kernels["MatMulNBits"] == 6
    stored = [t for t in result.model.graph.initializer if t.data_type == TensorProto.INT4]
    assert len(stored) == 6
    assert all(len(onnx.numpy_helper.to_array(t)) % 32 == 0 for t in stored)


def test_parallel_mode_quantises_the_same_places() -> None:
    first = audit_bits(quantised(encoder(), Config(mode="parallel")).model)
    second = audit_bits(quantised(encoder(), Config()).model)
    assert [(b.name, b.weight_bits, b.activation_bits) for b in first] == [
        (b.name, b.weight_bits, b.activation_bits) for b in second
    ]
