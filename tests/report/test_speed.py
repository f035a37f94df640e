"""What the report says of a result's speed; the times are given, not measured."""

from __future__ import annotations

import io
import json
from pathlib import Path

import onnx
import pytest
from rich.console import Console
from tiny_model import tiny_images, tiny_model

import onnxq
from onnxq import api
from onnxq.ir.model import Remark
from onnxq.pipeline import Result
from onnxq.report.run import RunReport
from onnxq.report.text import show_run
from onnxq.verify import Latency

SLOW = Latency(1.0, 2.5, batch=1, runs=7, threads=1)


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch, no_timing: None) -> None:
    monkeypatch.setattr(api, "speed_beside_float", lambda *_: SLOW)


def quantized(required: float | None = None, **options: object) -> Result:
    config = onnxq.Config(preset="light", edge_bits="same", **options)
    return onnxq.quantize(tiny_model(), tiny_images(24), config, require_speedup=required)


def text_of(report: RunReport) -> str:
    stream = io.StringIO()
    show_run(Console(file=stream, width=400, markup=False, emoji=False, highlight=False), report, title="net")
    return stream.getvalue()


def slowness(report: RunReport) -> list[str]:
    return [note.reason for note in report.notes if "slower" in note.reason]


def test_speed_is_in_summary_page_and_json(tmp_path: Path) -> None:
    report = quantized(weights=8).report
    told = "2 ms before, 1 ms after: 2.00 times as fast (batch of 1, one thread, 1 run each)"
    assert told in text_of(report)
    report.to_html(tmp_path / "page.html")
    assert told in (tmp_path / "page.html").read_text()
    plain = json.loads(report.to_json())
    assert plain["speedup"] == 2.0
    assert plain["latency_ms"] == {"fp32": 2.0, "quantized": 1.0, "batch": 1, "runs": 1, "threads": 1}
    assert slowness(report) == []
    assert "time" in report.seconds


MENDS = {
    "int4": ({"weights": 4, "container": "int4"}, "standard's 4-bit type", "container packed or int8"),
    "16 bits": ({"activations": 16}, "3 layers with 16 bits", "8 bits have integer kernels"),
    "16-bit weights": ({"weights": 16}, "3 layers with 16 bits", "8 bits have integer kernels"),
    "float": ({"weights": 8, "activations": 32}, "3 layers are dequantized beside inputs in float", "of 8 bits"),
    "integers": ({"weights": 8}, "run on integers", "budget latency=0.9"),
    "packed": ({"weights": 4}, "run on integers", "budget latency=0.9"),
}


@pytest.mark.parametrize("case", MENDS)
def test_a_slow_result_is_said_to_be_one_with_what_would_mend_it(slow: None, case: str) -> None:
    options, *parts = MENDS[case]
    report = quantized(**options).report
    (told,) = slowness(report)
    assert told.startswith("it is slower than the float model, 0.40 times its speed: ")
    assert all(part in told for part in parts)
    assert told.count(";") == 1  # one cause, one cure
    assert told in text_of(report).replace("\n", "")
    assert report.ok


def test_less_speed_than_was_asked_for_is_not_ok(slow: None, tmp_path: Path) -> None:
    assert quantized(0.4, weights=8).report.ok
    report = quantized(0.41, weights=8).report
    assert not report.ok and report.too_slow
    told = "Its speed is 0.40 times the float model's, and 0.41 times was asked for"
    assert told in text_of(report)
    report.to_html(tmp_path / "page.html")
    assert told.replace("'", "&#39;") in (tmp_path / "page.html").read_text()
    assert json.loads(report.to_json())["required_speedup"] == 0.41


def test_speed_that_is_not_known_is_said_and_is_not_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "speed_beside_float", lambda *_: Remark("network", "its speed was not measured: why"))
    report = quantized(weights=8).report
    assert report.ok and report.speedup is None
    assert "its speed was not measured: why" in text_of(report)
    below = quantized(0.1, weights=8).report
    assert not below.ok
    assert "Its speed is not known, and 0.1 times was asked for" in text_of(below)


def test_the_model_does_not_depend_on_its_speed(monkeypatch: pytest.MonkeyPatch) -> None:
    made = quantized(weights=4).model
    monkeypatch.setattr(api, "speed_beside_float", lambda *_: SLOW)
    assert quantized(3.0, weights=4).model.SerializeToString(deterministic=True) == made.SerializeToString(
        deterministic=True
    )


def test_the_models_that_are_timed_are_the_callers_and_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[object, ...]] = []

    def watch(*given: object) -> Latency:
        seen.append(given)
        return SLOW

    monkeypatch.setattr(api, "speed_beside_float", watch)
    model = tiny_model()
    config = onnxq.Config(preset="light", candidates=("w8a8", "float"), budget="size=0.9")
    result = onnxq.quantize(model, tiny_images(24), config, adapt=tiny_images(8))
    ((fp32, made, feed, limit),) = seen  # once, of the last of several models
    assert fp32 is model and made is result.model and isinstance(made, onnx.ModelProto)
    assert isinstance(feed, dict) and feed["image"].shape[1:] == (3, 8, 8)
    assert limit == config.memory_limit
