"""Quantized models judged on further samples at the end of their making."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from tiny_model import tiny_images, tiny_model

import onnxq
from onnxq.cli import main
from onnxq.progress import Progress
from onnxq.verify import verify

pytestmark = pytest.mark.slow


def bright(count: int = 30) -> np.ndarray:
    return 4 * tiny_images(count, seed=9)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model, its samples and others, where the command runs."""
    onnx.save(tiny_model(), tmp_path / "net.onnx")
    np.savez(tmp_path / "calib.npz", image=tiny_images(128))
    np.savez(tmp_path / "bright.npz", image=bright())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def quantize(*words: str) -> Result:
    return CliRunner().invoke(main, ["quantize", "net.onnx", "-o", "q.onnx", "--calibration", "calib.npz", *words])


def test_check_is_the_verification_of_the_finished_model_on_those_samples(place: Path) -> None:
    seen: list[Progress] = []
    result = onnxq.quantize("net.onnx", "calib.npz", check="bright.npz", progress=seen.append)
    expected = verify("net.onnx", result.model, [{"image": bright()}], latency=False, ranges=True)
    found = result.report.check
    assert found is not None and found.samples == 30
    (output,), (same,) = found.outputs, expected.outputs
    # The same sums, over batches of other sizes.
    assert output.sqnr_db == pytest.approx(same.sqnr_db, rel=1e-9)
    assert output.sqnr_db_median == pytest.approx(same.sqnr_db_median, rel=1e-9)
    assert output.worst_sample == same.worst_sample
    assert found.ranges and expected.ranges
    assert [r.tensor for r in found.ranges] == [r.tensor for r in expected.ranges]
    assert found.ranges[0].lost > 0.1  # four times what it was calibrated for
    assert (found.latency_ms, found.ok, result.report.ok) == (None, True, True)
    assert [p.done for p in seen if p.stage == "check"][-1] == 30
    assert result.report.seconds["check"] > 0


def test_samples_in_memory_do_as_well_and_change_nothing_in_the_model(place: Path) -> None:
    plain = onnxq.quantize(tiny_model(), tiny_images(128))
    for data in (bright(), {"image": bright()}, ({"image": bright(5)} for _ in range(3))):
        checked = onnxq.quantize(tiny_model(), tiny_images(128), check=data)
        assert checked.model == plain.model
        assert checked.report.check is not None and checked.report.check.samples in (15, 30)
    assert plain.report.check is None and plain.report.to_dict()["check"] is None


def test_command_tells_it_as_json_text_and_page(place: Path) -> None:
    done = quantize("--check", "bright.npz", "--json", "--report", "report.html")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)["check"]
    assert found["samples"] == 30
    assert {"sqnr_db", "sqnr_db_median", "sqnr_db_worst", "worst_sample"} <= found["outputs"]["scores"].keys()
    first = found["ranges"][0]
    assert first["lost"] == max(r["lost"] for r in found["ranges"]) > 0.1
    page = Path("report.html").read_text()
    assert "Check on 30 further samples" in page
    assert f"{found['outputs']['scores']['sqnr_db_median']:.1f} dB" in page and first["tensor"] in page
    text = quantize("--check", "bright.npz").stdout
    assert "Check on 30 further samples" in text and "Ranges that the samples leave" in text
    assert f"{found['outputs']['scores']['sqnr_db_worst']:.1f} dB" in text
    assert "Check on" not in quantize().stdout


def test_bits_that_are_chosen_are_checked_once_at_the_end(place: Path) -> None:
    config = onnxq.Config(candidates=("w4a8", "w8a8"), budget=("size=0.9",))
    seen: list[Progress] = []
    result = onnxq.quantize("net.onnx", "calib.npz", config, check="bright.npz", progress=seen.append)
    assert result.report.check is not None and result.report.allocation is not None
    expected = verify("net.onnx", result.model, [{"image": bright()}], latency=False)
    assert result.report.check.outputs[0].sqnr_db == pytest.approx(expected.outputs[0].sqnr_db, rel=1e-9)
    assert sum(p.stage == "check" and p.done == 30 for p in seen) == 1


def test_samples_that_do_not_fit_are_refused_before_anything_is_done(place: Path) -> None:
    np.savez("other.npz", image=np.zeros((4, 3, 8, 9), np.float32))
    for data, told in {"none.npz": "none.npz", "other.npz": "[4, 3, 8, 9]"}.items():
        done = quantize("--check", data, "--work-dir", "work")
        assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.output
        assert told in done.stderr
        assert not Path("q.onnx").exists() and not Path("work").exists()


def test_an_output_never_replaces_the_samples_to_check_on(place: Path) -> None:
    done = CliRunner().invoke(
        main, ["quantize", "net.onnx", "-o", "bright.npz", "--calibration", "calib.npz", "--check", "bright.npz"]
    )
    assert done.exit_code == 2 and "set to check on" in done.stderr


def test_a_check_on_the_calibration_set_is_said_to_flatter(place: Path) -> None:
    report = onnxq.quantize("net.onnx", "calib.npz", check=place / "calib.npz").report
    assert any("its own calibration samples" in note.reason for note in report.notes)
    report = onnxq.quantize("net.onnx", "calib.npz", check="bright.npz").report
    assert not any("its own calibration samples" in note.reason for note in report.notes)


def test_models_of_a_fixed_batch_drop_an_incomplete_one(place: Path) -> None:
    report = onnxq.quantize(tiny_model(batch="8"), tiny_images(128), check=bright()).report
    assert report.check is not None and report.check.samples == 24


def test_leaving_a_range_is_told_only_where_it_is_more_than_the_range_cuts_off_of_its_own_samples(place: Path) -> None:
    outliers = tiny_images(160)
    outliers[::4, :, 2:4, 2:4] *= 30  # 4 bits are not spent on those
    config = onnxq.Config(activations=4, edge_bits="same", equalise=False)
    alike, other = outliers[:32], 4 * outliers[:32]
    told = []
    for data in (alike, other):
        report = onnxq.quantize(tiny_model(), outliers[32:], config, check=data).report
        assert report.check is not None and report.check.ranges and report.check.ranges[0].lost > 0.01
        told.append(any("leave the range of tensor" in note.reason for note in report.notes))
    assert told == [False, True]
