"""Adaptation as the command has it, and behind tuning and the choice of bits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from adapted_models import decibels, require_same_integers
from click.testing import CliRunner, Result
from tiny_model import tiny_images, tiny_model

import onnxq
from onnxq.cli import main
from onnxq.config.optimization import Tuning

pytestmark = pytest.mark.slow


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, its samples and brighter ones, where the command runs."""
    onnx.save(tiny_model(), tmp_path / "net.onnx")
    np.savez(tmp_path / "calib.npz", image=tiny_images(128))
    np.savez(tmp_path / "bright.npz", image=2 * tiny_images(32, 7))
    np.savez(tmp_path / "unseen.npz", image=2 * tiny_images(32, 8))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quantize(*words: str) -> Result:
    return CliRunner().invoke(main, ["quantize", "net.onnx", "-o", "q.onnx", "--calibration", "calib.npz", *words])


def test_command_adapts_finished_layers_and_checks_the_result(place: Path) -> None:
    plain = json.loads(quantize("--work-dir", "work", "--check", "unseen.npz", "--json").stdout)
    before = onnx.load("q.onnx")
    done = quantize(
        "--work-dir", "work", "--resume", "--adapt", "bright.npz", "--check", "unseen.npz", "--json",
        "--report", "page.html",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    require_same_integers(before, onnx.load("q.onnx"))
    assert found["stages"][-1]["stage"] == "adapt" and found["seconds"]["adapt"] > 0
    was, now = (run["check"]["outputs"]["scores"]["sqnr_db_median"] for run in (plain, found))
    assert now > was + 6
    assert any("leave the range of tensor" in note["reason"] for note in plain["notes"])
    assert not any("leave the range of tensor" in note["reason"] for note in found["notes"])
    assert "Loss, adapt" in Path("page.html").read_text()
    assert "ranges and moments taken from 28 samples" in " ".join(quantize("--adapt", "bright.npz").stdout.split())


def test_samples_that_do_not_fit_are_refused_before_anything_is_done(place: Path) -> None:
    np.savez("other.npz", image=np.zeros((4, 3, 8, 9), np.float32))
    for data in ("none.npz", "other.npz"):
        done = quantize("--adapt", data, "--work-dir", "work")
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.output
        assert data in done.stderr and not Path("q.onnx").exists() and not Path("work").exists()


def test_a_check_on_the_samples_adapted_to_is_said_to_flatter(place: Path) -> None:
    report = onnxq.quantize("net.onnx", "calib.npz", adapt="bright.npz", check="bright.npz").report
    assert any("its own adaptation samples" in note.reason for note in report.notes)


def test_a_network_tuned_as_a_whole_is_adapted_behind_that() -> None:
    config = onnxq.Config(preset="advanced", weights=4, tuning=Tuning(steps=20, rows=16, features=0.0))
    model = tiny_model()
    plain = onnxq.quantize(model, tiny_images(128), config)
    made = onnxq.quantize(model, tiny_images(128), config, adapt=2 * tiny_images(32, 7))
    require_same_integers(plain.model, made.model)
    assert [stage.stage for stage in made.report.stages] == ["solve", "tune", "adapt"]
    unseen = 2 * tiny_images(32, 8)
    assert decibels(model, made.model, unseen) > decibels(model, plain.model, unseen) + 3


def test_bits_that_are_chosen_are_adapted_once_chosen() -> None:
    config = onnxq.Config(candidates=("w4a8", "w8a8"), budget=("size=0.9",))
    model = tiny_model()
    plain = onnxq.quantize(model, tiny_images(128), config)
    made = onnxq.quantize(model, tiny_images(128), config, adapt=2 * tiny_images(32, 7))
    require_same_integers(plain.model, made.model)
    assert made.report.allocation == plain.report.allocation
    assert [s.stage for s in made.report.stages] == ["solve", "adapt"]
    assert set(plain.report.notes) <= set(made.report.notes)
