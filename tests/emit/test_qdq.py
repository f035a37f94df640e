from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, numpy_helper
from small_models import (
    DRIFT,
    Proof,
    build,
    conv_chain,
    conv_constants,
    images,
    normal,
    prove,
    relu_chain,
    weight,
    with_outputs,
)

from onnxq.verify.session import start_session


def run(model: onnx.ModelProto, level: str, **feeds: np.ndarray) -> list[np.ndarray]:
    return start_session(model.SerializeToString(), level).run(None, feeds)


def element_types(proof: Proof, op: str) -> set[int]:
    """Element types of the zero points that an operator has."""
    types = {t.name: t.data_type for t in proof.result.model.graph.initializer}
    return {types[n.input[2]] for n in proof.result.model.graph.node if n.op_type == op}


# The clipping at 1.5 is reached by a third of the values, so that the grid ends where the clipping does.
AFTER = {
    "relu": ("a = Relu(c0)", "d = Relu(c1)"),
    "nothing": ("a = Identity(c0)", "d = Identity(c1)"),
    "relu6": ("a = Clip(c0, zero, top)", "d = Clip(c1, zero, top)"),
    "sigmoid": ("a = Sigmoid(c0)", "d = Sigmoid(c1)"),
    "leaky": ("a = LeakyRelu<alpha=0.1>(c0)", "d = LeakyRelu<alpha=0.1>(c1)"),
    "swish": ("s0 = Sigmoid(c0) a = Mul(c0, s0)", "s1 = Sigmoid(c1) d = Mul(c1, s1)"),
    "pool": (
        "r0 = Relu(c0) a = MaxPool<kernel_shape=[3,3],pads=[1,1,1,1]>(r0)",
        "d = MaxPool<kernel_shape=[3,3],pads=[1,1,1,1]>(c1)",
    ),
}


@pytest.mark.parametrize("after", AFTER)
def test_every_convolution_of_w8a8_runs_on_integers_whatever_follows_it(after: str) -> None:
    wide = {"w0": 4 * conv_constants()["w0"]} if after == "relu6" else {}
    model = conv_chain(*AFTER[after], zero=np.float32(0), top=np.float32(1.5), **wide)
    proof = prove(model, images())
    assert proof.bits == {"c0": (8, 8), "c1": (8, 8), "y": (8, 8)}
    assert set(proof.fused.values()) == {"QLinearConv"}
    assert proof.report.kernels["QLinearConv"] == 3


@pytest.mark.parametrize("container", ["packed", "int4", "int8"])
@pytest.mark.parametrize("after", AFTER)
def test_every_layer_follower_loads_with_4_bit_weights_and_activations(after: str, container: str) -> None:
    model = conv_chain(*AFTER[after], zero=np.float32(0), top=np.float32(1.5))
    options = {"weights": 4, "activations": 4, "edge_bits": "same", "container": container}
    proof = prove(model, images(), second_order=False, **options)
    assert set(proof.bits.values()) == {(4, 4)}


@pytest.mark.parametrize("container", ["packed", "int4", "int8"])
@pytest.mark.parametrize("weights", [2, 3, 4, 5, 6, 7, 8, 16])
def test_weights_of_all_bits_are_in_the_file_and_edges_keep_8(weights: int, container: str) -> None:
    proof = prove(relu_chain(), images(), weights=weights, container=container)
    edge = max(weights, 8)
    assert proof.bits == {"c0": (edge, 8), "c1": (weights, 8), "y": (edge, 8)}
    whole = weights <= 8 and (weights > 4 or container != "int4")
    assert (proof.fused["c1"] == "QLinearConv") == whole


@pytest.mark.parametrize(
    ("weights", "activations"),
    [(2, 2), (8, 3), (4, 4), (8, 5), (16, 6), (3, 7), (2, 16), (8, 16), (16, 16), (16, 8), (4, 32), (8, 32)],
)
def test_activations_of_all_bits_are_in_the_file(weights: int, activations: int) -> None:
    proof = prove(relu_chain(), images(), weights=weights, activations=activations, edge_bits="same")
    wanted = None if activations == 32 else activations
    assert set(proof.bits.values()) == {(weights, wanted)}


@pytest.mark.parametrize("activations", [2, 4, 5, 7])
def test_a_narrowed_grid_holds_for_inputs_far_outside_the_calibration(activations: int) -> None:
    proof = prove(relu_chain(), images(), weights=8, activations=activations, edge_bits="same")
    graph = proof.result.model.graph
    inner = [n.input[0] for n in graph.node if n.op_type == "Conv"]
    for level in ("disable", "all"):
        values = run(with_outputs(proof.result.model, *inner), level, x=10 * images())[1:]
        assert all(len(np.unique(v)) <= 2**activations for v in values)
        assert any(len(np.unique(v)) == 2**activations for v in values)


def test_4_bit_weights_are_packed_in_int4_and_whole_in_int8_with_the_same_answers() -> None:
    packed, whole = (
        prove(relu_chain(), images(), weights=4, edge_bits="same", activations=32, container=c)
        for c in ("int4", "int8")
    )
    assert element_types(packed, "DequantizeLinear") == {TensorProto.INT4}
    assert element_types(whole, "DequantizeLinear") == {TensorProto.INT8}
    a, b = (run(p.result.model, "disable", x=images())[0] for p in (packed, whole))
    np.testing.assert_array_equal(a, b)


def test_8_bit_weights_are_signed_and_leave_the_lowest_integer_unused() -> None:
    proof = prove(relu_chain(), images())
    for name in ("w0", "w1", "w2"):
        stored = proof.constant(f"{name}/quantized")
        assert stored.dtype == np.int8 and stored.min() >= -127 and np.abs(stored.astype(int)).max() > 64
        assert (proof.constant(f"{name}/zero_point") == 0).all()


@pytest.mark.parametrize("text", ["Gemm<transB=1>(x, w0, b0)", "Conv(i, w3, b0)"])
def test_the_bias_scale_is_the_product_of_input_and_weight_scale_to_the_last_bit(text: str) -> None:
    model = build(
        f"(float[N,6] x) => (float[N,5] y) {{ i = Unsqueeze(x, axis) z = {text} y = Reshape(z, shape) }}",
        w0=weight(0, 5, 6),
        w3=weight(0, 5, 6, 1),
        b0=normal(1, 5),
        axis=np.array([2]),
        shape=np.array([-1, 5]),
    )
    proof = prove(model, normal(2, 64, 6))
    layer = next(n for n in proof.result.model.graph.node if n.op_type in ("Gemm", "Conv"))
    s_x, s_w, s_b = (proof.constant(proof.maker(name).input[1]) for name in layer.input)
    np.testing.assert_array_equal(s_b, s_x * s_w)


@pytest.mark.parametrize(("weights", "activations"), [(8, 8), (4, 8), (8, 4), (8, 16), (16, 16), (8, 32)])
@pytest.mark.parametrize("dead", [0.0, 1e-6])
def test_a_dead_channel_with_a_large_bias_does_not_overflow(dead: float, weights: int, activations: int) -> None:
    constants = conv_constants()
    constants["w1"][3] *= dead
    constants["b1"][3], constants["b1"][4] = 20.0, -20.0
    constants["w1"][4] *= dead
    # The large bias makes one channel's 20 the range of everything, so the floor of the bits stays within reach.
    proof = prove(relu_chain(**constants), images(), weights=weights, activations=activations, second_order=False)
    if activations < 32:
        bias = proof.constant("b1/quantized").astype(np.int64)
        assert np.abs(bias).max() <= 2**30


def test_a_layer_of_zeros_gives_its_bias() -> None:
    constants = conv_constants()
    constants["w0"][:] = 0
    for activations in (8, 16):
        prove(relu_chain(**constants), images(), activations=activations, floor=40, second_order=False)


def adversary(channels: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights near ±1 of 3 × 3 convolutions, and images that add all their positive or all their negative products."""
    rng = np.random.default_rng(0)
    w = (rng.choice([-1, 1], (channels, channels, 3, 3)) * rng.uniform(0.95, 1, (channels, channels, 3, 3))).astype("f")
    signs = np.sign(w.sum(axis=(2, 3)))[:, :, None, None]
    x = np.concatenate([signs > 0, signs < 0, np.ones_like(signs)]) * np.ones((1, 1, 8, 8), bool)
    return w, x.astype(np.float32)


@pytest.mark.parametrize("weights", [8, 7, 4])
@pytest.mark.parametrize("group", [1, 32])
def test_products_at_the_ends_of_both_grids_do_not_saturate(group: int, weights: int) -> None:
    channels = 32
    w, x = adversary(channels)
    w = np.abs(w[:, :1]) if group > 1 else w
    model = build(
        f"(float[N,32,8,8] x) => (float[N,32,8,8] y) {{ y = Conv<pads=[1,1,1,1],group={group}>(x, w) }}",
        w=w,
    )
    data = np.concatenate([x, np.random.default_rng(1).uniform(0, 1, (8, channels, 8, 8)).astype(np.float32)])
    proof = prove(model, data, weights=weights, edge_bits="same", container="int8", second_order=False)
    assert proof.fused["y"] == "QLinearConv"
    step = proof.constant(proof.maker("y").input[1])
    plain, optimised = (run(proof.result.model, level, x=data)[0] for level in ("disable", "all"))
    assert np.abs(plain - optimised).max() <= 1.01 * step  # one rounding may fall on the other side


@pytest.mark.parametrize("layer", ["Gemm<transB=1>(x, w)", "Gemm(x, v)", "MatMul(x, v)"])
def test_matrix_products_at_the_ends_of_both_grids_do_not_saturate(layer: str) -> None:
    w = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), (32, 64))
    model = build(f"(float[N,64] x) => (float[N,32] y) {{ y = {layer} }}", w=w, v=np.ascontiguousarray(w.T))
    data = np.concatenate([w > 0, w < 0]).astype(np.float32)
    proof = prove(model, data, second_order=False)
    plain, optimised = (run(proof.result.model, level, x=data)[0] for level in ("disable", "all"))
    np.testing.assert_allclose(optimised, plain, atol=1e-4)  # float32 sums of 64 terms up to 1; a saturation costs 0.5


def test_the_same_input_gives_the_same_bytes() -> None:
    first, second = (prove(relu_chain(), images(), weights=4).result.model for _ in range(2))
    assert first.SerializeToString(deterministic=True) == second.SerializeToString(deterministic=True)


def test_nothing_unused_is_left_and_no_float_weight_stays() -> None:
    graph = prove(relu_chain(), images()).result.model.graph
    read = {name for node in graph.node for name in node.input}
    assert {t.name for t in graph.initializer} <= read
    assert all(numpy_helper.to_array(t).size <= 8 for t in graph.initializer if t.data_type == TensorProto.FLOAT)


def test_weights_alone_of_a_matrix_product_stay_within_the_runtime_s_own_rounding() -> None:
    # onnxruntime computes these as MatMulNBits, which rounds the activations to int8 at its default accuracy.
    model = build("(float[N,4,32] x) => (float[N,4,8] y) { y = MatMul(x, w) }", 21, w=weight(0, 32, 8))
    proof = prove(model, normal(1, 16, 4, 32), weights=4, activations=32, edge_bits="same", drift=DRIFT)
    assert proof.bits == {"y": (4, None)}
    # Releases before 1.24 unpack the weights to float instead.
    recent = tuple(map(int, ort.__version__.split(".")[:2])) >= (1, 24)
    assert proof.fused["y"] == "MatMulNBits" or not recent
