"""What leaves the ranges of a quantized model, against numpy on tensors that onnxruntime reads out of it."""

from __future__ import annotations

import io
import json
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper, parser
from rich.console import Console
from small_models import conv_chain, images, relu_chain, with_outputs

import onnxq
from onnxq.errors import VerificationError
from onnxq.report.text import show_verification
from onnxq.verify import TensorRange, ranges, verify
from onnxq.verify.session import start_session


def parse(text: str, opset: int = 21) -> onnx.ModelProto:
    model = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> g {text}')
    for node in model.graph.node:
        node.name = node.output[0]
    return model


# x reaches from -16 to 15.875 on the first grid, y of it from 0 to 6.375 on the second.
CHAIN = parse("""(float[N, 4] x) => (float[N, 3] y) <float s = {0.125}, uint8 z = {128}, float t = {0.025},
    uint8 o = {0}, float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}>
    { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) m = MatMul(d, w) a = Relu(m)
      p = QuantizeLinear(a, t, o) y = DequantizeLinear(p, t, o) }""")


def found(
    model: onnx.ModelProto, x: np.ndarray, batch: int = 7, fp32: onnx.ModelProto | None = None
) -> dict[str, TensorRange]:
    feeds = [{model.graph.input[0].name: x[i : i + batch]} for i in range(0, len(x), batch)]
    report = verify(fp32 or model, model, feeds, latency=False, ranges=True)
    assert report.ranges is not None
    assert [r.lost for r in report.ranges] == sorted((r.lost for r in report.ranges), reverse=True)
    return {r.tensor: r for r in report.ranges}


def inner(model: onnx.ModelProto, x: np.ndarray, *tensors: str) -> list[np.ndarray]:
    """Tensors of a model as its unoptimized graph computes them."""
    session = start_session(with_outputs(model, *tensors).SerializeToString(), "disable")
    return list(session.run(list(tensors), {model.graph.input[0].name: x}))


def check(seen: TensorRange, values: np.ndarray, low: float, high: float) -> None:
    """The figures of a range by their definition."""
    v = values.astype(np.float64)
    gap = v - v.clip(low, high)
    assert (seen.low, seen.high) == (pytest.approx(low, rel=1e-6, abs=1e-9), pytest.approx(high, rel=1e-6))
    assert seen.share_below == pytest.approx((v < low).mean(), abs=1e-12)
    assert seen.share_above == pytest.approx((v > high).mean(), abs=1e-12)
    # The ends and the tensor's power are float32 there.
    assert seen.excess == pytest.approx(np.abs(gap).max() / (high - low), rel=1e-5)
    assert seen.lost == pytest.approx((gap**2).sum() / (v**2).sum(), rel=1e-5)


@pytest.mark.parametrize("batch", [1, 7, 30])
def test_shares_and_losses_are_those_of_numpy_whatever_the_batch(batch: int) -> None:
    x = np.random.default_rng(0).normal(1, 9, (30, 4)).astype(np.float32)
    seen = found(CHAIN, x, batch)
    assert set(seen) == {"x", "a"}
    check(seen["x"], x, -128 * 0.125, 127 * 0.125)
    (a,) = inner(CHAIN, x, "a")
    check(seen["a"], a, 0.0, 255 * 0.025)
    assert seen["x"].layers == ("m",) and seen["x"].bits == 8


def test_samples_within_the_ranges_lose_nothing() -> None:
    seen = found(CHAIN, np.full((5, 4), 0.01, np.float32))
    assert all((r.share_outside, r.excess, r.lost) == (0, 0, 0) for r in seen.values())


@pytest.mark.parametrize("bits", [3, 4, 8])
@pytest.mark.parametrize("factor", [1, 3])
def test_grids_of_few_bits_are_looked_at_before_the_clip_that_keeps_them(bits: int, factor: float) -> None:
    model = relu_chain()
    config = onnxq.Config(weights=8, activations=bits, edge_bits="same", equalise=False)
    made = onnxq.quantize(model, images(16), config).model
    x = np.float32(factor) * images(16, seed=3)
    seen = found(made, x, fp32=model)
    constants = {t.name: numpy_helper.to_array(t) for t in made.graph.initializer}
    for tensor in ("x", "a", "d"):
        scale, zero = (constants[f"{tensor}/{part}"].astype(float) for part in ("scale", "zero_point"))
        (values,) = inner(made, x, tensor) if tensor != "x" else (x,)
        check(seen[tensor], values, -zero * scale, (2**bits - 1 - zero) * scale)
        assert seen[tensor].bits == bits
    assert seen["x"].layers == ("c0",)
    if factor == 3:
        assert seen["x"].lost > 0.03


def test_a_clip_of_the_model_itself_cuts_off_nothing_that_counts() -> None:
    model = conv_chain("a = Clip(c0, zero, six)", "d = Relu(c1)", zero=np.float32(0), six=np.float32(0.5))
    made = onnxq.quantize(model, images(16), onnxq.Config(equalise=False)).model
    x = 4 * images(16, seed=3)
    seen = found(made, x, fp32=model)
    behind, before = inner(made, x, "a", "c0")
    assert (before > 0.5).mean() > 0.2 and seen["a"].share_outside == pytest.approx(
        ((behind < seen["a"].low) | (behind > seen["a"].high)).mean(), abs=1e-12
    )
    assert seen["a"].lost < 1e-4


@pytest.mark.parametrize("kind", ["uint8", "int8"])
def test_the_clip_of_a_relu6_on_codes_of_a_signed_grid_is_not_taken_for_the_grid(kind: str) -> None:
    model = parse(f"""(float[N, 4] x) => (float[N, 4] y) <float s = {{0.25}}, {kind} z = {{0}}, float low = {{0}},
        float top = {{{0.25 * 127}}}>
        {{ c = Clip(x, low, top) q = QuantizeLinear(c, s, z) y = DequantizeLinear(q, s, z) }}""")
    x = np.random.default_rng(0).normal(0, 40, (20, 4)).astype(np.float32)
    (tensor,) = found(model, x)
    assert tensor == ("x" if kind == "uint8" else "c")  # 7 bits of an unsigned grid, half of a signed one


def test_grids_a_channel_are_held_against_their_own_channel() -> None:
    model = parse("""(float[N, 3, 2] x) => (float[N, 3, 2] y) <float[3] s = {0.01, 0.1, 1}, int8[3] z = {0, 10, -20}>
        { q = QuantizeLinear<axis = 1>(x, s, z) y = DequantizeLinear<axis = 1>(q, s, z) }""")
    x = np.random.default_rng(0).normal(0, 8, (40, 3, 2)).astype(np.float32)
    seen = found(model, x)["x"]
    scale, zero = np.array([0.01, 0.1, 1])[:, None], np.array([0, 10, -20])[:, None]
    low, high = (-128 - zero) * scale, (127 - zero) * scale
    gap = x - x.astype(float).clip(low, high)
    assert seen.share_below == pytest.approx((x < low).mean(), abs=1e-12)
    assert seen.share_above == pytest.approx((x > high).mean(), abs=1e-12)
    assert seen.lost == pytest.approx((gap**2).sum() / (x.astype(float) ** 2).sum(), rel=1e-5)
    assert seen.excess == pytest.approx((np.abs(gap) / (high - low)).max(), rel=1e-5)
    assert (seen.low, seen.high) == (pytest.approx(low.min()), pytest.approx(high.max()))


def test_weights_in_float_before_a_quantizer_are_no_activations() -> None:
    model = parse("""(float[N, 4] x) => (float[N, 3] y) <float s = {0.1}, int8 z = {0},
        float[4, 3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}, float two = {2}>
        { u = Mul(w, two) p = QuantizeLinear(u, s, z) v = DequantizeLinear(p, s, z)
          q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = MatMul(d, v) }""")
    assert set(found(model, np.ones((3, 4), np.float32))) == {"x"}


def test_readers_that_are_no_layers_are_named_where_no_layer_reads() -> None:
    model = parse("""(float[N, 4] x) => (float[N, 4] y) <float s = {0.1}, int8 z = {0}>
        { q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z) y = Add(d, d) }""")
    assert found(model, np.ones((3, 4), np.float32))["x"].layers == ("y",)


def test_values_that_are_no_numbers_hide_nothing_and_infinite_ones_lie_outside() -> None:
    x = np.random.default_rng(0).normal(0, 9, (10, 4)).astype(np.float32)
    x[0, 0], x[1, 1] = np.nan, np.inf
    seen = found(CHAIN, x)["x"]
    assert seen.share_above == pytest.approx((x > 127 * 0.125).mean(), abs=1e-12)
    assert seen.share_below == pytest.approx((x < -16).mean(), abs=1e-12)
    assert seen.excess == np.inf and 0 < seen.lost < 1
    assert seen.to_dict()["excess"] is None


def test_tensors_are_read_out_in_groups_and_samples_in_parts_where_they_are_large(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = relu_chain()
    made = onnxq.quantize(model, images(16), onnxq.Config(equalise=False)).model
    whole = found(made, 2 * images(12), 12, fp32=model)
    largest: list[int] = []
    start = ranges.start_session

    def watched(*args: Any, **options: Any) -> Any:
        session = start(*args, **options)

        class Session:
            def run(self, names: Any, feed: Any) -> Any:
                made = session.run(names, feed)
                largest.append(sum(array.nbytes for array in made))
                return made

        return Session()

    monkeypatch.setattr(ranges, "start_session", watched)
    for limit in (2**13, 2**11):  # some samples together; less than a sample's own tensors
        monkeypatch.setattr(ranges, "AT_ONCE", limit)
        largest.clear()
        assert found(made, 2 * images(12), 12, fp32=model) == {name: close_to(r) for name, r in whole.items()}
        assert max(largest) <= max(limit, 4 * 8 * 8 * 8)  # a tensor of 8 x 8 x 8 is the least that can be read out
    fixed = onnx.ModelProto.FromString(made.SerializeToString())
    for value in (*fixed.graph.input, *fixed.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 12
    assert set(found(fixed, 2 * images(12), 12, fp32=model)) == set(whole)


def close_to(expected: TensorRange) -> Any:
    """Equal but for the order of float32 sums."""

    class Close:
        def __eq__(self, other: object) -> bool:
            return isinstance(other, TensorRange) and other.to_dict() == {
                key: pytest.approx(value, rel=1e-5) if isinstance(value, float) else value
                for key, value in expected.to_dict().items()
            }

    return Close()


def test_nothing_is_measured_unless_it_is_asked_for() -> None:
    report = verify(CHAIN, CHAIN, [{"x": np.ones((2, 4), np.float32)}], latency=False)
    assert report.ranges is None and report.to_dict()["ranges"] is None


def test_a_model_without_quantised_tensors_has_no_ranges_and_one_that_runs_nowhere_is_not_measured() -> None:
    plain = parse("(float[N, 4] x) => (float[N, 4] y) { y = Relu(x) }")
    assert found(plain, np.ones((2, 4), np.float32)) == {}
    broken = onnx.ModelProto.FromString(plain.SerializeToString())
    broken.graph.node[0].op_type = "NoSuchOperator"
    report = verify(plain, broken, [{"x": np.ones((2, 4), np.float32)}], latency=False, ranges=True)
    assert (report.level, report.ranges) == (None, None)


def test_tensors_that_cannot_be_read_out_are_an_error_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, **options: Any) -> Any:
        raise RuntimeError("no such kernel")

    monkeypatch.setattr(ranges, "start_session", failing)
    with pytest.raises(VerificationError, match=r"no such kernel.*without their ranges"):
        found(CHAIN, np.ones((2, 4), np.float32))


def test_ranges_inside_functions_are_found() -> None:
    call = parser.parse_model("""<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
        g (float[N, 4] x) => (float[N, 4] y) { y = own.round(x) }
        <domain: "own", opset_import: ["" : 21]>
        round (a) => (b) { s = Constant<value_float = 0.5>() z = Constant<value = int8 {0}>()
            q = QuantizeLinear(a, s, z) b = DequantizeLinear(q, s, z) }""")
    (seen,) = found(call, np.full((3, 4), 100, np.float32)).values()
    assert (seen.share_above, seen.high) == (1.0, 63.5)


def test_json_and_text_tell_them() -> None:
    x = np.random.default_rng(0).normal(1, 9, (30, 4)).astype(np.float32)
    report = verify(CHAIN, CHAIN, [{"x": x}], latency=False, ranges=True)
    first, second = json.loads(json.dumps(report.to_dict(), allow_nan=False))["ranges"]
    assert first["lost"] >= second["lost"]
    assert first.keys() == {
        *("tensor", "layers", "bits", "low", "high", "share_below", "share_above", "share_outside", "excess", "lost")
    }
    assert first["share_outside"] == pytest.approx(first["share_below"] + first["share_above"])
    stream = io.StringIO()
    show_verification(Console(file=stream, width=160, markup=False), report, title="a against b")
    text = stream.getvalue()
    assert "2 of 2 tensors" in text and "-16 to 15.9" in text and f"{100 * first['lost']:.2g} %" in text
    quiet = verify(CHAIN, CHAIN, [{"x": 0 * x}], latency=False, ranges=True)
    show_verification(Console(file=stream, width=160, markup=False), quiet, title="a against b")
    assert "No value leaves the range of any of 2 quantised tensors" in stream.getvalue()
