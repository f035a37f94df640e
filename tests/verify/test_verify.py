"""The verification against figures computed by hand, by scipy and by onnxruntime used directly."""

from __future__ import annotations

import json
import math
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import parser
from scipy.special import log_softmax, rel_entr, softmax

from onnxq.errors import CalibrationError, ModelError, VerificationError
from onnxq.verify import LEVELS, OutputFidelity, VerificationReport, check_levels, verify
from onnxq.verify.fidelity import softmax_divergence

ORT_LEVELS = (
    ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
    ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
)


def parse(graph: str, opset: int = 21) -> onnx.ModelProto:
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}]> {graph}')
    onnx.checker.check_model(proto, full_check=True)
    return proto


# Element by element, so that an answer does not depend on the batch that it is computed in.
FLOAT = parse("""g (float[N, 5] x) => (float[N, 5] y, float[N, 5] z) <float two = {2.0}, float half = {0.5}>
{ y = Mul(x, two) z = Add(x, half) }""")
ROUGH = parse("""g (float[N, 5] x) => (float[N, 5] z, float[N, 5] y)
<float four = {4.0}, float half = {0.5}, float two = {2.0}>
{ a = Mul(x, four) b = Round(a) y = Mul(b, half) c = Div(b, four) z = Add(c, half) }""")

# A 3x3 convolution at W8A8 that onnxruntime fuses into an integer kernel. W, B: filled in by fused_convolution.
CONVOLUTION = """g (float[N, 16, 8, 8] x) => (float[N, 8, 6, 6] y)
<float xs = {0.0078125}, uint8 xz = {128}, float ws = {0.0078125}, int8 wz = {0}, float ys = {0.25}, uint8 yz = {128}>
{ xq = QuantizeLinear(x, xs, xz) xd = DequantizeLinear(xq, xs, xz) wd = DequantizeLinear(w, ws, wz)
  c = Conv(xd, wd) yq = QuantizeLinear(c, ys, yz) y = DequantizeLinear(yq, ys, yz) }"""

# Loads up to level basic only: a MaxPool on four-bit integers is made at the levels above, and has no kernel.
FOUR_BIT_POOL = parse("""g (float[N, 2, 4, 4] x) => (float[N, 2, 2, 2] y) <float s = {0.125}, uint4 z = {0}>
{ q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
  p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(d)
  r = QuantizeLinear(p, s, z) y = DequantizeLinear(r, s, z) }""")
POOL = parse("""g (float[N, 2, 4, 4] x) => (float[N, 2, 2, 2] y)
{ y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x) }""")


def fused_convolution() -> onnx.ModelProto:
    # Parsed without its weights, which would not fit in the text; checked once they are in.
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : 21]> {CONVOLUTION}')
    weights = np.random.default_rng(3).choice(np.array([-127, 127, 100], np.int8), (8, 16, 3, 3))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    onnx.checker.check_model(proto, full_check=True)
    return proto


def samples(count: int, width: int = 5, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, width)).astype(np.float32)


def batches(x: NDArray[Any], size: int) -> list[dict[str, NDArray[Any]]]:
    return [{"x": x[i : i + size]} for i in range(0, len(x), size)]


def run(proto: onnx.ModelProto, x: NDArray[Any], level: Any = ORT_LEVELS[3]) -> dict[str, NDArray[Any]]:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {"x": x}), strict=True))


def check(fp32: Any, quantized: Any, feeds: Any, **options: Any) -> VerificationReport:
    return verify(fp32, quantized, feeds, **{"latency": False, **options})


def finite(value: object) -> bool:
    """Whether JSON holds it without NaN and infinities."""
    json.dumps(value, allow_nan=False)  # raises ValueError otherwise
    return True


def test_a_model_is_exact_against_itself() -> None:
    report = check(FLOAT, FLOAT, batches(samples(20), 8), classification=True)
    for output in report.outputs:
        assert output.sqnr_db == math.inf
        assert output.to_dict()["sqnr_db"] is None
        assert (output.equal, output.not_finite, output.kl, output.top1_agreement) == (100.0, 0, 0.0, 100.0)
        assert output.cosine == pytest.approx(1.0, abs=1e-15)  # a few roundings of float64


def test_every_output_has_the_figures_of_its_definition() -> None:
    x = samples(40)
    report = check(FLOAT, ROUGH, batches(x, 7), classification=True)
    a, b = run(FLOAT, x), run(ROUGH, x)
    assert [output.name for output in report.outputs] == ["y", "z"]
    for output in report.outputs:
        p, q = a[output.name].astype(np.float64), b[output.name].astype(np.float64)
        # Both sides sum float64 values in another order: 1e-12 is a thousand roundings.
        assert output.sqnr_db == pytest.approx(10 * np.log10((p**2).sum() / ((p - q) ** 2).sum()), rel=1e-12)
        assert output.cosine == pytest.approx((p * q).sum() / np.linalg.norm(p) / np.linalg.norm(q), rel=1e-12)
        assert output.equal == pytest.approx(100 * (p == q).mean(), rel=1e-12)
        assert output.kl == pytest.approx(rel_entr(softmax(p, -1), softmax(q, -1)).sum(-1).mean(), rel=1e-10)
        assert output.top1_agreement == pytest.approx(100 * (p.argmax(-1) == q.argmax(-1)).mean(), rel=1e-12)
        assert output.top1_fp32 is None


@settings(max_examples=15, deadline=None)
@given(size=st.integers(1, 40))
def test_figures_do_not_depend_on_the_batch_size(size: int) -> None:
    x = samples(37)
    labels = np.arange(37) % 5
    whole, cut = (check(FLOAT, ROUGH, batches(x, n), labels=labels).to_dict()["outputs"]["y"] for n in (37, size))
    assert cut == pytest.approx(whole, rel=1e-11)  # the order of float64 sums


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.tuples(*[st.floats(-800, 800) for _ in range(6)]),  # beyond what exp holds without care
        min_size=1,
        max_size=4,
    )
)
def test_divergence_is_that_of_scipy_and_never_negative(rows: list[tuple[float, ...]]) -> None:
    p, q = np.array(rows)[:, :3], np.array(rows)[:, 3:]
    found = softmax_divergence(p, q)
    assert (found >= 0).all()
    assert (softmax_divergence(p, p) == 0).all()
    expected = (softmax(p, -1) * (log_softmax(p, -1) - log_softmax(q, -1))).sum(-1)
    # Scores of 800 carry absolute errors of 1e-13.
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


def test_a_class_that_both_models_rule_out_adds_nothing_to_the_divergence() -> None:
    p, q = np.array([[0.0, 1.0, -np.inf]]), np.array([[1.0, 0.5, -np.inf]])
    np.testing.assert_allclose(softmax_divergence(p, q), softmax_divergence(p[:, :2], q[:, :2]), rtol=1e-14)


def test_labels_give_the_accuracy_of_both_models() -> None:
    x = np.array([[0.1, 0.3, 0, 0, 0], [1, 0, 0, 0, 0.9], [0, 0, 2, 0, 0], [0, 0, 0, 3, 0]], np.float32)
    # The first and the last class change places, which moves the second row's answer only.
    swapped = parse("""g (float[N, 5] x) => (float[N, 5] y, float[N, 5] z) <int64[5] order = {4, 1, 2, 3, 0}>
    { y = Gather<axis = 1>(x, order) z = Identity(x) }""")
    report = check(FLOAT, swapped, batches(x, 3), labels=np.array([1, 0, 2, 0]))
    y, z = report.outputs
    assert (y.top1_fp32, y.top1_quantized, y.top1_agreement) == (75.0, 50.0, 75.0)
    assert (z.top1_fp32, z.top1_quantized, z.top1_agreement) == (75.0, 75.0, 100.0)


def test_without_labels_or_classification_outputs_are_not_judged_as_classes() -> None:
    report = check(FLOAT, ROUGH, batches(samples(8), 4))
    assert [(o.kl, o.top1_agreement, o.top1_fp32) for o in report.outputs] == [(None, None, None)] * 2
    assert [c.agreement for c in report.loads] == [None] * 4


def test_trailing_axes_of_size_one_do_not_hide_the_classes() -> None:
    flat = [parse(f"g (float[N, 5] x) => (float[N, 5] y) {{ y = {op}(x) }}") for op in ("Identity", "Round")]
    deep = [
        parse(f"""g (float[N, 5] x) => (float[N, 5, 1, 1] y) <int64[2] axes = {{2, 3}}>
        {{ a = {op}(x) y = Unsqueeze(a, axes) }}""")
        for op in ("Identity", "Round")
    ]

    def judged(pair: list[onnx.ModelProto]) -> tuple[OutputFidelity, ...]:
        return check(pair[0], pair[1], batches(samples(30), 10), labels=np.arange(30) % 5).outputs

    assert judged(deep) == judged(flat)


def test_a_label_a_row_is_taken_where_the_output_has_rows() -> None:
    token = parse("g (float[N, 3, 4] x) => (float[N, 3, 4] y) { y = Identity(x) }")
    x = np.random.default_rng(1).normal(size=(6, 3, 4)).astype(np.float32)
    labels = x.argmax(-1)
    labels[0, 0] = (labels[0, 0] + 1) % 4
    output = check(token, token, batches(x, 4), labels=labels).outputs[0]
    assert output.top1_fp32 == pytest.approx(100 * 17 / 18, rel=1e-12)
    assert check(token, token, batches(x, 4), labels=labels[:, 0]).outputs[0].top1_fp32 is None


def test_values_that_stop_being_numbers_are_counted_and_hide_no_figure() -> None:
    broken = parse("""g (float[N, 5] x) => (float[N, 5] y, float[N, 5] z) <float half = {0.5}>
    { y = Sqrt(x) z = Add(x, half) }""")
    x = samples(20)
    report = check(FLOAT, broken, batches(x, 6), classification=True)
    y, z = report.outputs
    assert y.not_finite == np.count_nonzero(x < 0)
    assert (y.sqnr_db, y.cosine, y.kl) == (None, None, None)
    assert (z.not_finite, z.sqnr_db) == (0, math.inf)
    assert finite(report.to_dict())


def test_values_that_are_not_numbers_in_both_models_are_equal() -> None:
    root = parse("g (float[N, 5] x) => (float[N, 5] y) { y = Sqrt(x) }")
    output = check(root, root, batches(samples(20), 6)).outputs[0]
    assert (output.equal, output.not_finite, output.sqnr_db) == (100.0, 0, math.inf)


def test_integer_outputs_are_compared_by_equality_and_as_numbers() -> None:
    whole, low = (
        parse(f"""g (float[N, 5] x) => (int64[N, 5] y) <float two = {{2.0}}>
        {{ a = Mul(x, two) b = {op}(a) y = Cast<to = 7>(b) }}""")
        for op in ("Round", "Floor")
    )
    x = samples(50)
    output = check(whole, low, batches(x, 9), classification=True).outputs[0]
    a, b = np.round(2 * x).astype(np.float64), np.floor(2 * x).astype(np.float64)
    assert output.equal == pytest.approx(100 * (a == b).mean(), rel=1e-12)
    assert output.sqnr_db == pytest.approx(10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()), rel=1e-12)
    assert (output.kl, output.top1_agreement) == (None, None)


def test_an_empty_output_has_no_figures() -> None:
    empty = parse("""g (float[N, 5] x) => (float[N, 0] y) <int64[1] zero = {0}, int64[1] axis = {1}>
    { y = Slice(x, zero, zero, axis) }""")
    report = check(empty, empty, batches(samples(4), 2), classification=True)
    output = report.outputs[0]
    assert (output.sqnr_db, output.cosine, output.equal, output.kl) == (None, None, None, None)
    assert report.ok
    assert finite(report.to_dict())


def test_levels_come_in_order_and_agree_with_onnxruntime_run_directly() -> None:
    proto = fused_convolution()
    x = np.random.default_rng(0).uniform(-1, 1, (6, 16, 8, 8)).astype(np.float32)
    checks = check_levels(proto, batches(x, 2), classification=True)
    assert tuple(found.level for found in checks) == LEVELS == ("disable", "basic", "extended", "all")
    answers = [np.concatenate([run(proto, feed["x"], level)["y"] for feed in batches(x, 2)]) for level in ORT_LEVELS]
    for found, answer in zip(checks, answers, strict=True):
        # The same kernels on the same batches: equal to the last bit, whether this processor saturates or not.
        difference = float(np.abs(answer - answers[0]).max())
        magnitude = float(max(np.abs(answer).max(), np.abs(answers[0]).max()))
        assert found.ok
        assert (found.max_abs_diff, found.relative_diff) == (difference, difference / magnitude)
        assert found.agreement == pytest.approx(100 * (answer.argmax(-1) == answers[0].argmax(-1)).mean(), rel=1e-12)


def test_a_level_whose_answers_move_is_exposed_by_its_relative_difference() -> None:
    # onnxruntime takes the Relu away before a four-bit quantizer although its zero point is not the smallest code.
    lost = parse("""g (float[N, 4] x) => (float[N, 4] y) <float s = {0.25}, int4 z = {0}>
    { r = Relu(x) q = QuantizeLinear(r, s, z) y = DequantizeLinear(q, s, z) }""")
    x = np.array([[-1.0, 0.5, 1.0, 1.5]], np.float32)
    levels = {found.level: found for found in check_levels(lost, [{"x": x}])}
    assert levels["disable"].relative_diff == 0.0
    assert (levels["all"].ok, levels["all"].max_abs_diff) == (True, 1.0)
    assert levels["all"].relative_diff == pytest.approx(1.0 / 1.5, rel=1e-12)


def test_a_model_that_fails_at_some_levels_is_judged_at_the_highest_that_works(capfd: Any) -> None:
    x = np.random.default_rng(0).uniform(0, 1.8, (8, 2, 4, 4)).astype(np.float32)
    report = check(POOL, FOUR_BIT_POOL, batches(x, 4))
    assert [found.ok for found in report.loads] == [True, True, False, False]
    assert not report.ok
    assert report.level == "basic"
    assert report.loads[3].error is not None
    assert "the quantised model fails at level all" in report.loads[3].error
    assert "\n" not in report.loads[3].error
    p, q = run(POOL, x)["y"], run(FOUR_BIT_POOL, x, ORT_LEVELS[1])["y"]
    assert report.outputs[0].sqnr_db == pytest.approx(10 * np.log10((p**2).sum() / ((p - q) ** 2).sum()), rel=1e-5)
    assert capfd.readouterr() == ("", "")


def test_a_level_that_gives_no_numbers_is_not_ok() -> None:
    # The lost Relu again: the root of what it should have kept from below zero is not a number.
    lost = parse("""g (float[N, 4] x) => (float[N, 4] y) <float s = {0.25}, int4 z = {0}>
    { r = Relu(x) q = QuantizeLinear(r, s, z) d = DequantizeLinear(q, s, z) y = Sqrt(d) }""")
    found = check_levels(lost, [{"x": np.array([[-1.0, -0.5, 1.0, 1.5]], np.float32)}])[-1]
    assert (found.ok, found.max_abs_diff) == (False, None)
    assert found.error is not None
    assert "output 'y' of the quantised model at level all is NaN or infinite in 2 places" in found.error


def test_a_model_that_works_at_no_level_is_a_finding_too() -> None:
    unknown = onnx.ModelProto()
    unknown.CopyFrom(POOL)
    unknown.graph.node[0].op_type = "NoSuchOperator"
    report = check(POOL, unknown, batches(np.ones((4, 2, 4, 4), np.float32), 2), latency=True)
    assert [found.ok for found in report.loads] == [False] * 4
    assert (report.level, report.outputs, report.latency_ms, report.kernels) == (None, (), None, {})
    assert finite(report.to_dict())


def test_levels_have_no_difference_where_disable_does_not_work() -> None:
    # The branch that is never taken has no kernel; from level basic on it is taken away.
    proto = parse("""g (float[N, 5] x) => (float[N, 5] y) <bool always = {1}>
    { y = If (always) <
        then_branch = t () => (float[N, 5] r) { r = Abs(x) },
        else_branch = e () => (float[N, 5] r) { i = Cast<to = 5>(x) j = Relu(i) r = Cast<to = 1>(j) }> }""")
    checks = check_levels(proto, batches(samples(2), 2))
    assert [found.ok for found in checks] == [False, True, True, True]
    assert [found.max_abs_diff for found in checks] == [None] * 4


def test_the_json_has_the_promised_shape() -> None:
    report = check(FLOAT, ROUGH, batches(samples(6), 3), labels=np.zeros(6, np.int64), latency=True).to_dict()
    assert finite(report)
    assert {"fp32", "quantized", "samples", "outputs", "loads", "latency_ms", "bits"} <= set(report)
    assert {"sqnr_db", "cosine", "kl", "top1_agreement", "top1_fp32", "top1_quantized"} <= set(report["outputs"]["z"])
    assert list(report["loads"]) == list(LEVELS)
    assert {"ok", "max_abs_diff", "relative_diff"} <= set(report["loads"]["basic"])
    assert report["samples"] == 6
    assert min(report["latency_ms"]["fp32"], report["latency_ms"]["quantized"]) > 0


def test_bits_and_kernels_of_a_fused_convolution_are_in_the_json() -> None:
    proto = fused_convolution()
    report = check(proto, proto, [{"x": np.ones((2, 16, 8, 8), np.float32)}]).to_dict()
    assert report["bits"] == {
        "c": {"op": "Conv", "weight_bits": 8, "activation_bits": 8, "weight_levels_used": 3, "fused": "QLinearConv"}
    }
    assert report["kernels"]["QLinearConv"] == 1


def test_sizes_are_those_of_the_files_and_of_the_serialised_proto(tmp_path: Path) -> None:
    onnx.save(FLOAT, tmp_path / "f.onnx")
    report = check(tmp_path / "f.onnx", ROUGH, batches(samples(2), 2))
    assert (report.fp32, report.quantized) == ((tmp_path / "f.onnx").stat().st_size, len(ROUGH.SerializeToString()))
    assert check(str(tmp_path / "f.onnx"), ROUGH, batches(samples(2), 2)) == report


def test_feeds_are_read_once_and_let_go() -> None:
    made: list[weakref.ref[NDArray[Any]]] = []
    most = 0

    def stream() -> Iterator[dict[str, NDArray[Any]]]:
        nonlocal most
        for seed in range(40):
            x = samples(4, seed=seed)
            made.append(weakref.ref(x))
            most = max(most, sum(array() is not None for array in made))
            yield {"x": x}

    seen: list[int] = []
    report = check(FLOAT, ROUGH, stream(), level_samples=8, progress=seen.append)
    assert report.samples == 160
    assert seen == list(range(4, 161, 4))
    assert most <= 2 + 2  # the two batches for the levels, the current one and the next


def test_latency_is_taken_on_one_sample_where_the_models_take_one() -> None:
    timing = check(FLOAT, ROUGH, batches(samples(8), 4), latency=True).latency_ms
    assert timing is not None
    assert (timing.batch, timing.runs >= 5) == (1, True)


def test_latency_is_taken_on_the_batch_that_is_built_into_the_model() -> None:
    fixed = parse("g (float[4, 5] x) => (float[4, 5] y) { y = Relu(x) }")
    timing = check(fixed, fixed, batches(samples(8), 4), latency=True).latency_ms
    assert timing is not None
    assert timing.batch == 4


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.zeros(7, np.int64), "7 labels for at least 8 samples"),
        (np.zeros(9, np.int64), "9 labels for 8 samples"),
        (np.zeros(8, np.float32), "expected integers"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: NDArray[Any], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        check(FLOAT, ROUGH, batches(samples(8), 4), labels=labels)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ([], "no feeds"),
        ([{"image": samples(2)}], r"\['image'\] where the float model takes \['x'\]"),
        ([{"x": samples(2), "mask": samples(2)}], r"unknown: \['mask'\]"),
        ([{"x": samples(2).astype(np.float64)}], "the float model cannot run on the feed after 0 samples"),
        ([{"x": samples(2)}, {"x": samples(2, width=6)}], "the float model cannot run on the feed after 2 samples"),
    ],
)
def test_feeds_that_do_not_fit_are_refused(feeds: list[dict[str, NDArray[Any]]], message: str) -> None:
    with pytest.raises(CalibrationError, match=message):
        check(FLOAT, ROUGH, feeds, level_samples=1)


def test_check_levels_refuses_feeds_under_other_names() -> None:
    with pytest.raises(CalibrationError, match="name the arrays after the inputs"):
        check_levels(FLOAT, [{"image": samples(2)}])


def test_models_with_other_inputs_or_outputs_are_refused() -> None:
    other_input = parse("g (float[N, 5] w) => (float[N, 5] y, float[N, 5] z) { y = Relu(w) z = Abs(w) }")
    other_output = parse("g (float[N, 5] x) => (float[N, 5] y) { y = Relu(x) }")
    for other, kind in ((other_input, "inputs"), (other_output, "outputs")):
        with pytest.raises(ModelError, match=f"the quantised model has {kind}"):
            check(FLOAT, other, batches(samples(2), 2))


def test_an_output_of_another_shape_is_refused() -> None:
    one, two = (
        parse(f"""g (float[N, 5] x) => (float[N, M] y) <int64[2] repeats = {{1, {n}}}>
        {{ y = Tile(x, repeats) }}""")
        for n in (1, 2)
    )
    with pytest.raises(VerificationError, match=r"output 'y' of the quantised model has shape \(2, 10\)"):
        check(one, two, batches(samples(2), 2))


def test_a_quantized_model_that_fails_on_a_later_batch_is_refused() -> None:
    fixed = parse("g (float[2, 5] x) => (float[2, 5] y) { y = Relu(x) }")
    free = parse("g (float[N, 5] x) => (float[N, 5] y) { y = Relu(x) }")
    with pytest.raises(VerificationError, match="the quantised model fails on the feed after 2 samples"):
        check(free, fixed, batches(samples(3), 2), level_samples=2)


def test_models_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    feeds = batches(samples(2), 2)
    (tmp_path / "junk.onnx").write_bytes(b"this is no model")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for name, message in (
        ("none.onnx", "the quantised model .*none.onnx' is not a file"),
        ("junk.onnx", "junk.onnx' cannot be read as ONNX"),
        ("empty.onnx", "empty.onnx' has no graph outputs"),
    ):
        with pytest.raises(ModelError, match=message):
            check(FLOAT, tmp_path / name, feeds)
        with pytest.raises(ModelError):
            check_levels(tmp_path / name, feeds)


def test_missing_external_data_are_named(tmp_path: Path) -> None:
    weights = onnx.numpy_helper.from_array(np.ones((5, 40), np.float32), "w")
    proto = parser.parse_model(
        '<ir_version: 10, opset_import: ["" : 21]> g (float[N, 5] x) => (float[N, 40] y) { y = MatMul(x, w) }'
    )
    proto.graph.initializer.append(weights)
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=64)
    assert check(tmp_path / "m.onnx", tmp_path / "m.onnx", batches(samples(2), 2)).fp32 > 800
    (tmp_path / "w.bin").unlink()
    with pytest.raises(ModelError, match=r"keeps weights in '.*w\.bin', which is not there"):
        check(tmp_path / "m.onnx", tmp_path / "m.onnx", batches(samples(2), 2))


def test_a_float_model_that_does_not_load_is_refused() -> None:
    broken = onnx.ModelProto()
    broken.CopyFrom(FLOAT)
    broken.graph.node[0].op_type = "NoSuchOperator"
    with pytest.raises(ModelError, match="the float model does not load in onnxruntime"):
        check(broken, FLOAT, batches(samples(2), 2))


def test_outputs_that_are_no_numbers_are_refused() -> None:
    text = parse("g (float[N, 5] x) => (string[N, 5] y) { y = Cast<to = 8>(x) }")
    with pytest.raises(ModelError, match="output 'y' of the float model is not a numeric tensor"):
        check(text, text, batches(samples(2), 2))
