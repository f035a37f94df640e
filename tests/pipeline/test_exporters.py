"""What exporters write that the standard or a calibration set does not expect: batches, draws, foreign operators."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import numpy_helper, parser
from small_models import build, normal, weight

import onnxq
from onnxq.api import quantize
from onnxq.cli import main
from onnxq.ir.load import load
from onnxq.ir.save import to_proto
from onnxq.passes.own_batch import with_own_batch
from onnxq.passes.prepare import prepare
from onnxq.verify import verify
from onnxq.verify.selection import DRAWN

pytestmark = pytest.mark.slow


def batched(size: int, output: str | int, first: str = "N") -> onnx.ModelProto:
    return build(
        f"(float[{first},3,8,8] x) => (float[{output},10] y) {{ c = Conv<pads=[1,1,1,1]>(x, w0) r = Relu(c) "
        "f = Reshape(r, sh) y = MatMul(f, w1) }",
        w0=weight(1, 8, 3, 3, 3),
        w1=normal(2, 512, 10) / 22,
        sh=np.array([size, 512]),
    )


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("output", ["same", "N"])
def test_a_batch_that_is_open_in_name_only_is_the_one_the_graph_was_made_for(
    size: int, output: str, tmp_path: Path
) -> None:
    model = batched(size, size if output == "same" else "N")
    assert with_own_batch(load(model)).inputs[0].shape == (size, 3, 8, 8)
    result = quantize(model, normal(3, 24, 3, 8, 8))
    assert result.report.ok and result.report.samples == 24
    assert list(result.model.graph.input) == list(model.graph.input)
    onnx.save(model, tmp_path / "m.onnx")
    result.save(tmp_path / "q.onnx")
    np.save(tmp_path / "x.npy", normal(4, 8, 3, 8, 8))
    told = CliRunner().invoke(
        main, ["verify", *(str(tmp_path / n) for n in ("m.onnx", "q.onnx")), "--data", str(tmp_path / "x.npy")]
    )
    assert told.exit_code == 0, told.output


def test_a_batch_that_is_open_stays_open() -> None:
    for model in (
        batched(-1, "N"),
        build(
            "(float[N,8] x) => (float[1,4] y, float[N,4] z) { z = Gemm(x, w) y = ReduceMean<axes=[0],keepdims=1>(z) }",
            w=normal(1, 8, 4),
        ),
    ):
        assert with_own_batch(load(model)).inputs[0].shape[0] is None


DRAWS = {
    "RandomNormalLike": "n = RandomNormalLike(a) s = Mul(n, k) z = Add(a, s)",
    "RandomUniformLike": "n = RandomUniformLike(a) z = Mul(a, n)",
    "with a seed": "n = RandomNormalLike<seed=3.0>(a) s = Mul(n, k) z = Add(a, s)",
    "Dropout": "z, m = Dropout<seed=7>(a, ratio, yes)",
    "Bernoulli": "s = Sigmoid(a) z = Bernoulli(s)",
    "in a branch": "z = If(yes)<then_branch = t () => (float[N,32] u) { n = RandomNormalLike(a) u = Add(a, n) },"
    " else_branch = e () => (float[N,32] v) { v = Identity(a) }>",
}


@pytest.mark.parametrize("kind", DRAWS)
@pytest.mark.parametrize("preset", ["light", "advanced"])
def test_a_network_that_draws_numbers_is_quantised_and_what_depends_on_them_not_compared(
    kind: str, preset: str
) -> None:
    constants = {"k": np.float32(0.667), "ratio": np.float32(0.3), "yes": np.array(True)}
    model = build(
        f"(float[N,8] x) => (float[N,4] y, float[N,32] r0) {{ a = Gemm(x, w0, b0) r0 = Relu(a) {DRAWS[kind]} "
        "r = Relu(z) y = Gemm(r, w1) }",
        w0=normal(1, 8, 32) / 3,
        b0=0.1 * normal(2, 32),
        w1=normal(3, 32, 4) / 5,
        **{name: np.asarray(value) for name, value in constants.items()},
    )
    prepared = prepare(load(model))
    assert prepared.not_comparable.get("y") == DRAWN and "r0" not in prepared.not_comparable
    report = quantize(model, normal(4, 64, 8), onnxq.Config(preset=preset, weights=4, edge_bits="same")).report
    assert report.ok and {la.name for la in report.layers} == {"a", "y"}
    assert any(n.reason == f"output y is not compared: {DRAWN}" for n in report.notes)
    assert report.simulated_sqnr_db["y"] is None and report.simulated_sqnr_db["r0"] > 15


def test_a_verification_leaves_out_what_is_drawn() -> None:
    model = build(
        "(float[N,8] x) => (float[N,8] y, float[N,8] z) { y = Gemm(x, w) n = RandomNormalLike(y) z = Add(y, n) }",
        w=normal(1, 8, 8),
    )
    report = verify(model, quantize(model, normal(2, 64, 8)).model, [{"x": normal(3, 16, 8)}], latency=False)
    assert report.ok and [o.left_out for o in report.outputs] == [None, DRAWN]


def test_a_dropout_that_only_runs_in_training_draws_nothing() -> None:
    model = build(
        "(float[N,8] x) => (float[N,4] y) { a = Gemm(x, w0) d = Dropout(a, ratio, no) y = Gemm(d, w1) }",
        w0=normal(1, 8, 8),
        w1=normal(2, 8, 4),
        ratio=np.asarray(np.float32(0.5)),
        no=np.array(False),
    )
    assert prepare(load(model)).not_comparable == {}


def normed(opset: int) -> onnx.ModelProto:
    model = parser.parse_model(
        f'<ir_version: 8, opset_import: ["": {opset}]> g (float[N,4,32] x) => (float[N,4,8] y) {{ q = MatMul(x,wq) '
        "n0 = LayerNormalization<axis=-1>(q,g,b) n = SimplifiedLayerNormalization<axis=-1,epsilon=0.00001>(n0,g) "
        "y = MatMul(n,wo) }"
    )
    constants = {"wq": normal(1, 32, 32) / 6, "wo": normal(4, 32, 8) / 6, "g": np.ones(32), "b": np.zeros(32)}
    model.graph.initializer.extend(numpy_helper.from_array(np.float32(v), k) for k, v in constants.items())
    return model


@pytest.mark.parametrize("opset", [13, 17])
@pytest.mark.parametrize("weights", [8, 4])
def test_operators_of_the_runtime_in_the_standard_domain_are_let_through(opset: int, weights: int) -> None:
    model, x = normed(opset), normal(3, 8, 4, 32)
    made = to_proto(load(model, minimum_opset=21 if weights == 4 else 13))
    run = [
        ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
        for m in (model, made)
    ]
    np.testing.assert_allclose(run[1], run[0], atol=1e-6)
    report = quantize(model, normal(5, 48, 4, 32), onnxq.Config(weights=weights)).report
    assert report.ok and len(report.layers) == 2


def test_the_standard_domain_may_be_written_out() -> None:
    model = build(
        "(float[N,3,8,8] x, bool c) => (float[N,4,8,8] y) { r0 = Conv<pads=[1,1,1,1]>(x,w0) "
        "r = If(c)<then_branch = t () => (float[N,8,8,8] u) { u = Relu(r0) }, "
        "else_branch = e () => (float[N,8,8,8] v) { v = Tanh(r0) }> y = Conv<pads=[1,1,1,1]>(r,w1) }",
        w0=weight(1, 8, 3, 3, 3),
        w1=weight(2, 4, 8, 3, 3),
    )
    for node in model.graph.node:  # onnxruntime itself does not take it inside of a branch
        node.domain = "ai.onnx"
    model.opset_import[0].domain = "ai.onnx"
    samples = [{"x": normal(i, 16, 3, 8, 8), "c": np.array(True)} for i in range(2)]
    result = quantize(model, samples)
    assert {la.name for la in result.report.layers} == {"r0", "y"}
    assert model.graph.node[0].domain == "ai.onnx"  # the caller's own is not changed


def test_an_operator_that_nobody_knows_is_still_refused() -> None:
    model = build("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    model.graph.node[0].op_type = "SimplifedLayerNormalization"
    with pytest.raises(onnxq.OnnxqError, match="breaks the ONNX standard"):
        load(model)
