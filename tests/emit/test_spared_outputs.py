"""Outputs that no layer touches are exact at every level of onnxruntime, whatever reads them besides."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from small_models import build, normal, weight

import onnxq
from onnxq.verify import audit_bits
from onnxq.verify.session import LEVELS, start_session

MOVED = {
    "Transpose": ("t = Transpose<perm=[0,2,1,3]>(r)", (4, 6, 4)),
    "two": ("t0 = Transpose<perm=[0,3,2,1]>(r) t = Transpose<perm=[0,1,3,2]>(t0)", (4, 6, 4)),
    "Reshape": ("t = Reshape(r, shape)", (4, 6, 4)),
    "Squeeze": ("u = Unsqueeze(r, one) t0 = Squeeze(u, one) t = Transpose<perm=[0,2,1,3]>(t0)", (4, 6, 4)),
    "MaxPool": ("p = MaxPool<kernel_shape=[2,2],strides=[1,1]>(r) t = Transpose<perm=[0,2,3,1]>(p)", (3, 3, 6)),
    "Slice": ("s = Slice(r, nil, four, one) t = Transpose<perm=[0,1,3,2]>(s)", (4, 4, 4)),
    "itself": ("t = Identity(r)", (6, 4, 4)),
}


def network(kind: str, also: str = "") -> onnx.ModelProto:
    """An output r made by no layer, what moves its values, and a convolution of that."""
    text, (channels, height, width) = MOVED[kind]
    return build(
        f"(float[N,6,4,4] x) => (float[N,5,{height},{width}] y, float[N,6,4,4] r"
        f"{', float[N,6,4,4] z' if also else ''}) {{ r = Sigmoid(x) {text} y0 = Conv(t, w) y = Relu(y0) {also} }}",
        w=weight(1, 5, channels, 1, 1),
        shape=np.array([0, 4, 6, 4]),
        one=np.array([1]),
        nil=np.array([0]),
        four=np.array([4]),
    )


def answers(model: onnx.ModelProto, x: np.ndarray, level: str) -> dict[str, np.ndarray]:
    session = start_session(model.SerializeToString(), level)
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, {"x": x}), strict=True))


@pytest.mark.parametrize("kind", MOVED)
@pytest.mark.parametrize(
    "config",
    [onnxq.Config(), onnxq.Config(activations=4, edge_bits="same"), onnxq.Config(activations=16)],
    ids=["a8", "a4", "a16"],
)
def test_an_output_behind_which_values_only_move_before_a_layer_is_exact(kind: str, config: onnxq.Config) -> None:
    model = network(kind)
    result = onnxq.quantize(model, normal(2, 24, 6, 4, 4), config)
    (bits,) = audit_bits(result.model)
    assert bits.activation_bits is not None and bits.activation_bits <= config.activations
    x = 3 * normal(3, 8, 6, 4, 4)
    exact = 1 / (1 + np.exp(-x.astype(np.float64)))
    for level in LEVELS:
        assert np.abs(answers(result.model, x, level)["r"] - exact).max() < 1e-6, level


def test_what_else_reads_the_output_is_exact_too() -> None:
    model = network("Transpose", "z = Softmax<axis=1>(r)")
    result = onnxq.quantize(model, normal(2, 24, 6, 4, 4))
    x = 3 * normal(3, 8, 6, 4, 4)
    exact = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(["z"], {"x": x})[0]
    for level in LEVELS:
        np.testing.assert_allclose(answers(result.model, x, level)["z"], exact, atol=1e-6)


def test_a_tensor_that_float_operators_read_is_exact_there_though_it_is_no_output() -> None:
    text = MOVED["Transpose"][0]
    model = build(
        f"(float[N,6,4,4] x) => (float[N,5,6,4] y, float[N,6,4,4] z) {{ r = Sigmoid(x) {text} y = Conv(t, w) "
        "z = Exp(r) }",
        w=weight(1, 5, 4, 1, 1),
    )
    result = onnxq.quantize(model, normal(2, 24, 6, 4, 4))
    x = 3 * normal(3, 8, 6, 4, 4)
    exact = np.exp(1 / (1 + np.exp(-x.astype(np.float64))))
    for level in LEVELS:
        assert np.abs(answers(result.model, x, level)["z"] - exact).max() < 1e-5, level


@pytest.mark.parametrize("order", ["y = MatMul(q, kt)", "y0 = MatMul(q, kt) y = Softmax(y0)"])
def test_a_cache_that_is_passed_on_is_exact_at_every_level(order: str) -> None:
    model = build(
        "(float[N,3,16] x, float[N,2,P,8] past) => (float[N,2,3,T] y, float[N,2,T,8] present) { q0 = MatMul(x,wq) "
        "q1 = Reshape(q0,sh) q = Transpose<perm=[0,2,1,3]>(q1) k0 = MatMul(x,wk) k1 = Reshape(k0,sh) "
        "k = Transpose<perm=[0,2,1,3]>(k1) present = Concat<axis=2>(past,k) kt = Transpose<perm=[0,1,3,2]>(present) "
        f"{order} }}",
        wq=normal(1, 16, 16) / 4,
        wk=normal(2, 16, 16) / 4,
        sh=np.array([0, 0, 2, 8]),
    )
    result = onnxq.quantize(model, {"x": normal(3, 32, 3, 16), "past": normal(4, 32, 2, 4, 8)})
    assert any("products of two activations" in note.reason for note in result.report.notes)
    past = 3 * normal(8, 8, 2, 4, 8)
    for level in LEVELS:
        session = start_session(result.model.SerializeToString(), level)
        (present,) = session.run(["present"], {"x": normal(7, 8, 3, 16), "past": past})
        np.testing.assert_array_equal(present[:, :, :4], past)
