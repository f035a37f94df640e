from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import build, normal, weight

from onnxq.api import quantize
from onnxq.config import Config
from onnxq.errors import VerificationError
from onnxq.ir.load import load
from onnxq.ir.singular import find_singularities
from onnxq.passes.prepare import prepare
from onnxq.pipeline import Result
from onnxq.plan.make_plan import make_plan
from onnxq.plan.values import Plan
from onnxq.verify import verify

CONV = "c = Conv<pads=[1,1,1,1]>(x, w0, b0)"


def two_layers(between: str, opset: int = 17, **constants: np.ndarray) -> onnx.ModelProto:
    """A convolution c, some nodes that make z of it, and a convolution y."""
    own = {
        "w0": weight(1, 4, 3, 3, 3),
        "b0": 0.1 * normal(2, 4),
        "w1": weight(3, 2, 4, 1, 1),
        "v": weight(4, 4, 3, 3, 3),
    }
    return build(
        f"(float[N,3,6,6] x) => (float[N,2,6,6] y) {{ {CONV} {between} y = Conv(z, w1) }}", opset, **own, **constants
    )


def exact(model: onnx.ModelProto) -> set[str]:
    return set(find_singularities(prepare(load(model))).exact)


@pytest.mark.parametrize(
    "between",
    [
        "z = Reciprocal(c)",
        "e = Conv<pads=[1,1,1,1]>(x, v) z = Div(e, c)",
        "a = Abs(c) z = Log(a)",
        "a = Mul(c, c) s = Sqrt(a) z = Div(c, s)",
        "a = Abs(c) z = Pow(a, minus_half)",
        "r = Relu(c) t = Transpose<perm=[0,1,3,2]>(r) z = Reciprocal(t)",
        "r = Relu(c) a = Add(r, tiny) z = Log(a)",
        "r = Relu(c) a = Add(tiny, r) z = Div(one, a)",
        "m = GlobalAveragePool(c) z = Div(c, m)",
        "e = Conv<pads=[1,1,1,1]>(x, v) d = Sub(c, e) z = Sqrt(d)",
        "z = Asin(c)",
    ],
)
def test_what_a_divisor_or_a_logarithm_is_made_of_is_not_rounded(between: str) -> None:
    values = {"tiny": np.float32(1e-30), "one": np.float32(1), "minus_half": np.float32(-0.5)}
    model = two_layers(between, **{k: np.asarray(v) for k, v in values.items()})
    assert "c" in exact(model)
    places = {q.tensor for target in ("onnxruntime", "qnn") for q in _plan(model, target).outputs}
    assert not places & exact(model)


@pytest.mark.parametrize(
    ("between", "kept"),
    [
        # a layer norm, an RMS norm, a limited L2 norm: the sum with a constant is exact, the tensor itself need not be
        (
            "m = ReduceMean<axes=[1]>(c) d = Sub(c, m) q = Mul(d, d) v2 = ReduceMean<axes=[1]>(q) a = Add(v2, eps) "
            "s = Sqrt(a) z = Div(d, s)",
            {"a", "s", "v2"},
        ),
        (
            "q = Pow(c, two) v2 = ReduceMean<axes=[1]>(q) a = Add(v2, eps) s = Sqrt(a) r = Reciprocal(s) z = Mul(c, r)",
            {"a", "s", "v2"},
        ),
        ("n = ReduceL2<axes=[1]>(c) a = Clip(n, eps) z = Div(c, a)", {"a", "n"}),
        ("n = ReduceL2<axes=[1]>(c) a = Max(n, eps) z = Div(c, a)", {"a", "n"}),
        # softmax and log-softmax written out, softplus: an exponential is never 0 for being rounded before
        ("e = Exp(c) s = ReduceSum(e, axis) z = Div(e, s)", {"s", "e"}),
        ("a = Add(c, one) b = Relu(a) d = Add(b, one) z = Log(d)", {"d"}),
        ("s = Softplus(c) z = Log(s)", {"s"}),
        # constants and sizes alone
        ("z = Div(c, two)", set()),
        ("z = Pow(c, two)", set()),
        ("r = Relu(c) z = Sqrt(r)", {"r"}),
    ],
)
def test_what_a_constant_keeps_from_zero_is_rounded_before_it(between: str, kept: set[str]) -> None:
    values = {"eps": np.float32(1e-5), "one": np.float32(1), "two": np.float32(2), "axis": np.array([1])}
    assert exact(two_layers(between, **{k: np.asarray(v) for k, v in values.items()})) == kept


def test_the_report_says_which_tensor_is_not_quantised_and_why() -> None:
    model = two_layers("a = Add(c, one) z = Reciprocal(a)", one=np.asarray(np.float32(9)))
    x = normal(5, 16, 3, 6, 6)
    told = {r.node: r.reason for r in quantize(model, x, Config(target="qnn")).report.left_in_float}
    assert set(told) == {"a"} and "z (Reciprocal) divides" in told["a"]


def exact_zeros() -> tuple[onnx.ModelProto, np.ndarray]:
    """A divisor of few inputs, which at two bits is 0 for many samples, beside a layer that no divisor is made of."""
    model = build(
        "(float[N,2] x) => (float[N,3] y) { e = Gemm(x, v) c = Gemm(x, w) z = Reciprocal(c) "
        "m = Mul(e, z) y = Gemm(m, u) }",
        w=normal(1, 2, 4),
        v=normal(2, 2, 4),
        u=normal(3, 4, 3),
    )
    return model, normal(4, 256, 2)


def left_for_infinity(result: Result) -> list[str]:
    return [r.node for r in result.report.left_in_float if "is NaN or infinite where it is finite in float" in r.reason]


def test_layers_that_a_divisor_is_made_of_go_back_to_float_where_it_becomes_zero() -> None:
    model, x = exact_zeros()
    result = quantize(model, x, Config(weights=2, activations=2, edge_bits="same"))
    report = verify(model, result.model, [{"x": x}], latency=False)
    assert report.ok and report.outputs[0].not_finite == 0
    assert left_for_infinity(result) == ["c"] and {la.name for la in result.report.layers} == {"e", "y"}


def test_a_model_that_is_infinite_whatever_is_left_in_float_is_refused_in_a_sentence() -> None:
    model = build("(float[N,2] x) => (float[N,4] y) { c = Gemm(x, w) y = Reciprocal(c) }", w=normal(1, 2, 4))
    with pytest.raises(VerificationError, match="output 'y' of the quantised model is NaN or infinite where"):
        quantize(model, normal(4, 256, 2), Config(weights=2, activations=2, edge_bits="same"))


def test_infinities_that_only_later_samples_bring_are_found() -> None:
    model, x = exact_zeros()
    first = np.repeat(x[:1], 64, axis=0)  # the gate's own samples are among these
    result = quantize(model, np.concatenate([first, x]), Config(weights=2, activations=2, edge_bits="same"))
    assert left_for_infinity(result) == ["c"]


def test_a_verification_says_that_a_model_is_not_finite_where_the_float_model_is() -> None:
    text = "(float[N,4] x) => (float[N,4] y) {{ a = {}(x) y = Log(a) }}"
    whole, broken = build(text.format("Abs")), build(text.format("Relu"))
    x = normal(1, 32, 4)
    report = verify(whole, broken, [{"x": x[:20]}, {"x": x[20:]}], latency=False)
    assert report.outputs[0].broken == np.count_nonzero(x < 0) and not report.ok
    # where the float model is infinite itself, a few more at the edge are no fault
    shifted = build("(float[N,4] x) => (float[N,4] y) { s = Sub(x, e) a = Relu(s) y = Log(a) }", e=np.float32([0.01]))
    assert verify(broken, shifted, [{"x": x}], latency=False).ok


def _plan(model: onnx.ModelProto, target: str) -> Plan:
    return make_plan(prepare(load(model)), Config(target=target))
