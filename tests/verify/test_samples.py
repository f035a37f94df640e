"""Signal to noise sample by sample, against numpy on what onnxruntime itself makes of each sample."""

from __future__ import annotations

import io
import json
import math
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import parser
from rich.console import Console

from onnxq.report.text import show_verification
from onnxq.verify import OutputFidelity, verify


def parse(graph: str) -> onnx.ModelProto:
    return parser.parse_model(f'<ir_version: 10, opset_import: ["" : 17]> g {graph}')


def pair(signature: str, float_nodes: str = "y = Identity(x)", rounded_nodes: str = "y = Round(x)") -> list[Any]:
    return [parse(f"{signature} {{ {nodes} }}") for nodes in (float_nodes, rounded_nodes)]


ROWS = pair("(float[N, 5] x) => (float[N, 5] y)")


def samples(count: int = 21) -> np.ndarray:
    """Small samples, and one that holds nearly all of the power."""
    x = np.random.default_rng(0).normal(0, 2, (count, 5)).astype(np.float32)
    x[13:14] *= 1e4
    return x


def judged(models: list[Any], x: np.ndarray, batch: int) -> OutputFidelity:
    feeds = [{"x": x[i : i + batch]} for i in range(0, len(x), batch)]
    return verify(models[0], models[1], feeds, latency=False).outputs[0]


def figures(models: list[Any], x: np.ndarray) -> np.ndarray:
    """Decibels of each sample, run on its own."""
    sessions = [ort.InferenceSession(m.SerializeToString(), providers=["CPUExecutionProvider"]) for m in models]
    p, q = (np.stack([s.run(None, {"x": x[i : i + 1]})[0][0] for i in range(len(x))]).astype(float) for s in sessions)
    return np.asarray(10 * np.log10((p**2).sum(1) / ((p - q) ** 2).sum(1)))


@pytest.mark.parametrize("batch", [1, 4, 7, 21])
def test_median_and_worst_are_those_of_samples_run_one_by_one(batch: int) -> None:
    x = samples()
    output, expected = judged(ROWS, x, batch), figures(ROWS, x)
    # Sums of five float64 in another order.
    assert output.sqnr_db_median == pytest.approx(np.median(expected), rel=1e-12)
    assert output.sqnr_db_worst == pytest.approx(expected.min(), rel=1e-12)
    assert output.worst_sample == expected.argmin()


def test_the_power_of_one_sample_hides_the_others_in_the_whole_but_not_in_the_median() -> None:
    output = judged(ROWS, samples(), 7)
    assert output.sqnr_db is not None and output.sqnr_db_median is not None
    assert output.sqnr_db > 60 and output.sqnr_db_median < 20


def test_models_of_a_fixed_batch_have_samples_too() -> None:
    fixed = pair("(float[7, 5] x) => (float[7, 5] y)")
    x = samples()
    expected = figures(ROWS, x)
    output = judged(fixed, x, 7)
    assert (output.sqnr_db_worst, output.worst_sample) == (pytest.approx(expected.min(), rel=1e-12), expected.argmin())


def test_an_output_whose_first_axis_is_not_the_samples_has_figures_for_the_whole_only() -> None:
    for shape, nodes in (
        ("float[5]", "y = ReduceSum<keepdims = 0>({}, axis)"),
        ("float", "y = ReduceSum<keepdims = 0>({})"),
        ("float[5, N]", "y = Transpose({})"),
    ):
        signature = f"(float[N, 5] x) => ({shape} y) <int64[1] axis = {{0}}>"
        models = pair(signature, nodes.format("x"), f"r = Round(x) {nodes.format('r')}")
        output = judged(models, samples(), 7)
        assert output.sqnr_db is not None
        assert (output.sqnr_db_median, output.sqnr_db_worst, output.worst_sample) == (None, None, None)


def test_all_that_comes_of_a_batch_of_one_is_that_sample() -> None:
    flat = pair(
        "(float[1, 5] x) => (float[5] y) <int64[1] s = {5}>", "y = Reshape(x, s)", "r = Round(x) y = Reshape(r, s)"
    )
    x = samples()
    output, expected = judged(flat, x, 1), figures(ROWS, x)
    assert output.sqnr_db_median == pytest.approx(np.median(expected), rel=1e-12)
    assert output.worst_sample == expected.argmin()


def test_a_sample_that_stops_being_a_number_is_the_worst_and_leaves_no_figure() -> None:
    broken = pair("(float[N, 5] x) => (float[N, 5] y)", rounded_nodes="y = Sqrt(x)")
    x = np.abs(samples())
    x[[8, 17], 2] = -1
    output = judged(broken, x, 4)
    assert output.not_finite == 2
    assert (output.sqnr_db_median, output.sqnr_db_worst, output.worst_sample) == (None, None, 8)


def test_silent_samples_are_left_out_and_exact_ones_count_as_infinite() -> None:
    noisy = pair("(float[N, 5] x) => (float[N, 5] y) <float half = {0.5}>", "y = Identity(x)", "y = Add(x, half)")
    x = samples(5)
    x[3] = 0  # float: silent, quantised: noise alone
    expected = figures(noisy, np.delete(x, 3, axis=0))
    output = judged(noisy, x, 2)
    assert output.sqnr_db_worst == pytest.approx(expected.min(), rel=1e-12)
    assert output.sqnr_db_median == pytest.approx(np.median(expected), rel=1e-12)
    whole = np.round(samples(5))
    whole[4] = 0.3
    output = judged(ROWS, whole.astype(np.float32), 2)
    assert output.sqnr_db_median == math.inf
    assert output.worst_sample == 4 and output.sqnr_db_worst == pytest.approx(0.0, abs=1e-6)  # all of it is lost


def test_an_empty_output_has_no_samples_to_judge() -> None:
    empty = pair(
        "(float[N, 5] x) => (float[N, 0] y) <int64[1] zero = {0}, int64[1] axis = {1}>",
        *["y = Slice(x, zero, zero, axis)"] * 2,
    )
    output = judged(empty, samples(4), 2)
    assert (output.sqnr_db_median, output.sqnr_db_worst, output.worst_sample) == (None, None, None)


def test_json_and_text_tell_them() -> None:
    x = samples()
    report = verify(ROWS[0], ROWS[1], [{"x": x}], latency=False)
    plain = json.loads(json.dumps(report.to_dict(), allow_nan=False))["outputs"]["y"]
    expected = figures(ROWS, x)
    assert plain["sqnr_db_median"] == pytest.approx(np.median(expected), rel=1e-12)
    assert plain["sqnr_db_worst"] == pytest.approx(expected.min(), rel=1e-12)
    assert plain["worst_sample"] == expected.argmin()
    stream = io.StringIO()
    show_verification(Console(file=stream, width=140, markup=False), report, title="a against b")
    assert f"{expected.min():.1f} dB (#{expected.argmin()})" in stream.getvalue()
    assert f"{np.median(expected):.1f} dB" in stream.getvalue()
    exact = verify(ROWS[0], ROWS[0], [{"x": x}], latency=False).to_dict()["outputs"]["y"]
    assert (exact["sqnr_db_median"], exact["sqnr_db_worst"], exact["worst_sample"]) == (None, None, 0)
