"""How often models are timed, and in which order, by a clock that stands still between runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import parser

from onnxq.errors import ModelError
from onnxq.verify import compare_speed, latency
from onnxq.verify.latency import BRIEF, THOROUGH, measure_latency
from onnxq.verify.source import ModelSource

MODEL = parser.parse_model(
    '<ir_version: 10, opset_import: ["" : 21]> g (float[N, 5] x) => (float[N, 5] y) { y = Relu(x) }'
)
FIXED = parser.parse_model(
    '<ir_version: 10, opset_import: ["" : 21]> g (float[4, 5] x) => (float[4, 5] y) { y = Relu(x) }'
)
FEED = {"x": np.ones((4, 5), np.float32)}


class Clock:
    """Moves only while a model runs; remembers which ran."""

    def __init__(self) -> None:
        self.now = 0.0
        self.ran: list[str] = []

    def __call__(self) -> float:
        return self.now


class Session:
    """A model whose runs take given times, seconds; the last of them for ever."""

    def __init__(self, clock: Clock, name: str, *seconds: float) -> None:
        self.clock, self.name, self.seconds = clock, name, list(seconds)

    def run(self, outputs: None, feed: Mapping[str, NDArray[Any]]) -> None:
        self.clock.now += self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]
        self.clock.ran.append(self.name)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    monkeypatch.setattr(latency, "perf_counter", stopped)
    return stopped


def timed(clock: Clock, fp32: float, quantized: float, effort: latency.Effort = BRIEF) -> Any:
    sessions = Session(clock, "float", fp32), Session(clock, "quantized", quantized)
    return measure_latency(*sessions, ModelSource.open(MODEL, "float"), FEED, effort, 1)


def test_times_are_milliseconds_and_their_ratio_is_the_speedup(clock: Clock) -> None:
    found = timed(clock, 0.003, 0.002)
    assert (found.fp32, found.quantized) == pytest.approx((3, 2), rel=1e-9)
    assert found.speedup == pytest.approx(1.5, rel=1e-9)
    assert (found.batch, found.threads) == (1, 1)


def test_models_take_turns_and_alternate_in_going_first(clock: Clock) -> None:
    runs = timed(clock, 0.003, 0.002).runs
    pairs = [tuple(clock.ran[-2 * runs :][i : i + 2]) for i in range(0, 2 * runs, 2)]
    assert pairs[:4] == [("float", "quantized"), ("quantized", "float")] * 2


def test_quick_models_run_25_times(clock: Clock) -> None:
    assert timed(clock, 0.0002, 0.0001).runs == 25


def test_no_run_begins_after_a_second(clock: Clock) -> None:
    assert timed(clock, 0.125, 0.0625).runs == 6  # the sixth pair begins after 0.94 s


def test_models_that_take_long_run_three_times_and_slow_ones_once(clock: Clock) -> None:
    assert timed(clock, 0.9, 0.9).runs == 3
    clock.ran.clear()
    assert timed(clock, 3.0, 1.0).runs == 1
    assert len(clock.ran) == 4  # beside the first run, which tells that they are slow


def test_whoever_asks_for_a_measurement_gets_more_runs(clock: Clock) -> None:
    assert timed(clock, 0.0002, 0.0001, THOROUGH).runs == 100
    assert timed(clock, 3.0, 1.0, THOROUGH).runs == 5


def test_an_interrupted_run_does_not_move_the_median(clock: Clock) -> None:
    sessions = Session(clock, "float", *[0.01] * 5, 5.0, 0.01), Session(clock, "quantized", 0.005)
    found = measure_latency(*sessions, ModelSource.open(MODEL, "float"), FEED, THOROUGH)
    assert found.speedup == pytest.approx(2, rel=1e-9)


@pytest.mark.parametrize(("model", "batch"), [(MODEL, 1), (FIXED, 4)])
def test_models_run_on_one_thread_unless_more_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, model: Any, batch: int
) -> None:
    threads: list[int] = []
    real = latency.ModelSource.start

    def start(source: ModelSource, *levels: str, **options: int) -> Any:
        session = real(source, *levels, **options)
        threads.append(session.get_session_options().intra_op_num_threads)
        return session

    monkeypatch.setattr(latency.ModelSource, "start", start)
    assert compare_speed(model, model, FEED).threads == 1
    found = compare_speed(model, model, FEED, threads=2)
    assert (found.threads, found.batch) == (2, batch)
    assert threads == [1, 1, 2, 2]


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(ModelError, match=r"none\.onnx"):
        compare_speed("none.onnx", MODEL, FEED)
