"""What holds for every test."""

from __future__ import annotations

import os

# Tests run side by side, a core for each; set before the libraries that read it are loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import pytest
from hypothesis import settings

from onnxq import api, pipeline
from onnxq.cli.compiled_programs import keep_compiled_programs
from onnxq.config import Config
from onnxq.ir.model import Model
from onnxq.validation.folds import Folds
from onnxq.validation.rewrites import Choice, Plainest, Rewrite
from onnxq.verify import Latency

# From one run of the tests to the next, as the command keeps its own; JAX is imported later than this.
keep_compiled_programs()

# No test depends on the machine's speed, and the same examples are tried everywhere.
settings.register_profile("onnxq", deadline=None, derandomize=True)
settings.load_profile("onnxq")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every test is ``slow`` (marked so, or ``unseen``) or ``quick``."""
    for item in items:
        slow = item.get_closest_marker("slow") or item.get_closest_marker("unseen")
        item.add_marker("slow" if slow else "quick")


@pytest.fixture(autouse=True)
def quick_judgement(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All rewrites, and one judgement of the finished network, in tests that are not marked ``unseen``.

    To make a network several times from parts of its samples, and plain ones beside it, takes longer than all that
    most tests look at.
    """
    if request.node.get_closest_marker("unseen") is None:
        monkeypatch.setattr(pipeline, "judge_plain", _every_rewrite)
        monkeypatch.setattr(pipeline, "_crossed", lambda *_: None)  # then it is judged by the first cut


@pytest.fixture(autouse=True)
def no_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every result is twice as fast as its float model: no test waits for a measurement, or depends on one."""
    monkeypatch.setattr(api, "speed_beside_float", lambda *_: Latency(2.0, 1.0, batch=1, runs=1, threads=1))


def _every_rewrite(model: Model, config: Config, choice: Choice, folds: Folds) -> Plainest:
    return Plainest(Rewrite.MIGRATED if config.equalise else Rewrite.NONE, {}, {})
