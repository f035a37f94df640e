"""No option is ignored: what cannot be done is refused in one sentence that says what to change."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import parser
from small_models import build
from tiny_model import CLASSES, LAYERS, tiny_images, tiny_model

import onnxq
from onnxq.allocation.bit_allocation import BitAllocation, Outcome, allocation_from_json, read_allocation
from onnxq.cli import main
from onnxq.config import Config, make_config
from onnxq.config.bit_widths import Candidate
from onnxq.errors import ConfigError

CHOICE = {"first": "w8a8", "middle": "w4a8", "last": "w8a8"}
LARGE = """
    <ir_version: 8, opset_import: ["" : 17]>
    large (float[N, 1, 512, 512] image) => (float[N, 4, 1, 1] y) {
        a = Conv <pads = [1, 1, 1, 1]> (image, w)
        y = GlobalAveragePool (a)
    }
"""
LARGE_NEEDS = 24 * 4 * 512 * 512 * 4
"""Bytes: copies of the largest tensor, its channels, height, width and bytes of a number."""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and its samples, some of them with labels, where the command runs."""
    onnx.save(tiny_model(), tmp_path / "net.onnx")
    np.savez(tmp_path / "calib.npz", image=tiny_images(24))
    labels = np.random.default_rng(0).integers(0, CLASSES, 20)
    np.savez(tmp_path / "labelled.npz", image=tiny_images(20, 9), classes=labels, names=np.arange(20))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def quantize(*words: str, calibration: str = "calib.npz") -> Result:
    return run("quantize", "net.onnx", "-o", "out.onnx", "--calibration", calibration, *words)


def assert_refused(result: Result, *parts: str) -> None:
    assert (result.exit_code, result.stdout) == (2, ""), result.output
    assert result.stderr.startswith("onnxq: ") and result.stderr.count("\n") == 1
    assert [part for part in parts if part not in result.stderr] == []
    assert not Path("out.onnx").exists()


MIXED = ("--candidates", "w4a8,w8a8", "--budget", "size=0.9")


@pytest.mark.parametrize("given", [("--weights", "4"), ("--weights", "8"), ("--activations", "8")])
def test_bits_of_all_layers_beside_candidates_are_refused_at_their_defaults_too(
    place: Path, given: tuple[str, str]
) -> None:
    told = f"leave out {given[0].removeprefix('--')}, or leave out the candidates"
    assert_refused(quantize(*MIXED, *given), told)
    Path("options.toml").write_text(f"{given[0].removeprefix('--')} = {given[1]}\n")
    assert_refused(quantize(*MIXED, "--config", "options.toml"), told)


def test_bits_of_all_layers_beside_candidates_are_refused_in_python_where_they_are_no_defaults() -> None:
    for options in ({"weights": 4}, {"activations": 16}, {"weights": 4, "activations": 32}):
        with pytest.raises(ConfigError, match=f"leave out {' and '.join(options)}, or"):
            Config(candidates=("w4a8",), budget=("size=0.9",), **options)
    assert Config(candidates=("w4a8",), budget=("size=0.9",), weights=8).weights == 8


def test_candidates_without_a_budget_are_refused(place: Path) -> None:
    assert_refused(quantize("--candidates", "w4a8,w8a8"), "candidates need a budget", "size=20%")
    with pytest.raises(ConfigError, match="candidates need a budget"):
        onnxq.quantize(tiny_model(), tiny_images(8), Config(candidates=("w4a8", "w8a8")))


def test_a_budget_without_candidates_is_refused(place: Path) -> None:
    assert_refused(quantize("--budget", "size=0.2"), "a budget limits the choice among candidates", "w4a8,w8a8,float")
    with pytest.raises(ConfigError, match="there are none: add candidates"):
        Config(budget=("size=0.2",))


def test_candidates_beside_an_allocation_are_refused(place: Path) -> None:
    Path("bits.json").write_text(json.dumps({"choice": CHOICE}))
    assert_refused(quantize(*MIXED, "--allocation", "bits.json"), "an allocation gives the bits of every layer")


def test_a_memory_limit_below_what_the_model_needs_is_answered_with_the_least_that_works() -> None:
    model = parser.parse_model(LARGE)
    weight = np.random.default_rng(0).normal(size=(4, 1, 3, 3)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    samples = np.random.default_rng(1).normal(size=(2, 1, 512, 512)).astype(np.float32)
    least = -(-LARGE_NEEDS // 2**20)
    with pytest.raises(ConfigError, match=f"this model needs {LARGE_NEEDS} at least.* give {least}MiB or more"):
        onnxq.quantize(model, samples, make_config({"memory_limit": f"{least - 1}MiB"}))
    assert onnxq.quantize(model, samples, make_config({"memory_limit": f"{least}MiB"})).report.ok


def test_a_memory_limit_below_the_float_weights_is_refused() -> None:
    model = build("(float[N,4200] x) => (float[N,4200] y) { y = MatMul(x, w) }", w=np.ones((4200, 4200), np.float32))
    with pytest.raises(ConfigError, match=f"this model needs {4 * 4200**2} at least, for its float weights"):
        onnxq.quantize(model, np.ones((2, 4200), np.float32), Config(memory_limit=2**26))


def test_a_size_of_blocks_that_no_bits_have_is_refused(place: Path) -> None:
    for words in (("--weights", "4"), ("--activations", "32"), MIXED):
        for size in ("32", "64"):
            assert_refused(quantize(*words, "--block", size), f"block={size} has no effect")
    Path("bits.json").write_text(json.dumps({"choice": CHOICE}))
    assert_refused(quantize("--allocation", "bits.json", "--block", "64"), "block=64 has no effect")
    with pytest.raises(ConfigError, match="block=64 has no effect"):
        onnxq.quantize(tiny_model(), tiny_images(8), Config(weights=4, block=64))


def test_a_size_of_blocks_is_refused_where_no_matrix_has_the_bits(place: Path) -> None:
    """The only matrix is the last layer, which has 8 bits unless it is treated as the others."""
    words = ("--weights", "4", "--activations", "32", "--block", "64")
    assert_refused(quantize(*words), "block=64 has no effect")
    wide = build("(float[N,64] x) => (float[N,8] y) { y = MatMul(x, w) }", w=np.eye(64, 8, dtype=np.float32))
    onnx.save(wide, "net.onnx")
    np.savez("calib.npz", x=np.random.default_rng(0).normal(size=(32, 64)).astype(np.float32))
    result = quantize(*words, "--edge-bits", "same")
    assert result.exit_code == 0, result.output


def allocation(first: str, loss: float) -> BitAllocation:
    choice = {name: Candidate(8, 8) for name in LAYERS} | {"middle": Candidate(int(first[1]), 8)}
    return BitAllocation(choice, loss, 0.0, {"size": 100.0 - loss}, "loss", Outcome.OPTIMAL, loss, 0.0, {"size": 100.0})


def test_a_front_says_that_it_holds_several_points_and_one_is_taken_by_its_number(place: Path) -> None:
    front = [allocation("w4", 2.0), allocation("w8", 1.0)]
    Path("front.json").write_text(json.dumps({"over": "size", "front": [point.to_dict() for point in front]}))
    told = "take one with --point, from 1, the cheapest, to 2, the most accurate"
    assert_refused(quantize("--allocation", "front.json"), "is a Pareto front and has several points", told)
    for beyond in ("0", "3", "-1"):
        assert_refused(quantize("--allocation", "front.json", "--point", beyond), f"has no point {beyond}", told)
    assert [read_allocation(Path("front.json"), number) for number in (1, 2)] == front
    result = quantize("--allocation", "front.json", "--point", "1", "--json")
    assert result.exit_code == 0, result.output
    assert {layer["name"]: layer["weight_bits"] for layer in json.loads(result.stdout)["layers"]} == {
        "first": 8,
        "middle": 4,
        "last": 8,
    }


def test_a_point_of_no_front_is_refused(place: Path) -> None:
    Path("bits.json").write_text(json.dumps({"choice": CHOICE}))
    assert_refused(quantize("--allocation", "bits.json", "--point", "1"), "holds one allocation and no front")
    assert_refused(quantize("--point", "1"), "name the front's file with --allocation")


def test_the_choice_alone_is_an_allocation(place: Path) -> None:
    Path("bits.json").write_text(json.dumps({"choice": CHOICE}))
    result = quantize("--allocation", "bits.json", "--json")
    assert result.exit_code == 0, result.output
    assert "NaN" not in result.stdout
    found = json.loads(result.stdout)
    assert {la["name"]: f"w{la['weight_bits']}a{la['activation_bits']}" for la in found["layers"]} == CHOICE
    assert (found["allocation"]["loss"], found["allocation"]["status"]) == (None, "given")
    assert found["allocation"]["rounds"][0]["predicted"] is None
    again = allocation_from_json(json.dumps(found["allocation"]))
    assert {name: str(bits) for name, bits in again.choice.items()} == CHOICE
    assert "nan" not in quantize("--allocation", "bits.json").stdout.split("loss: squared")[1]


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("words", [("inspect", "net.onnx"), ("inspect", "net.onnx", "--json"), ("--help",)])
def test_a_closed_pipe_changes_no_exit_code_and_shows_no_traceback(
    place: Path, words: tuple[str, ...], stream: str
) -> None:
    assert ended(stream, *words) == (0, b"")


def test_a_closed_pipe_leaves_a_refusal_a_refusal(place: Path) -> None:
    assert ended("stderr", "inspect", "none.onnx")[0] == 2


def ended(closed: str, *words: str) -> tuple[int, bytes]:
    """Exit code of the command, one of its streams a pipe that nobody reads, and what the other errors were."""
    read, write = os.pipe()
    os.close(read)
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, closed: write}
    process = subprocess.run([sys.executable, "-m", "onnxq", *words], check=False, **streams)
    os.close(write)
    return process.returncode, process.stderr or b""


def test_a_budget_of_a_latency_that_is_not_measured_says_how_it_is(place: Path) -> None:
    words = ("--calibration", "calib.npz", "--candidates", "w4a8,w8a8", "--method", "scaled", "-o", "table.json")
    assert run("sensitivity", "net.onnx", *words).exit_code == 0
    result = run("allocate", "table.json", "--budget", "latency=3ms")
    assert_refused(result, "the table holds no latency", "measure it with onnxq sensitivity --latency")


def test_quantize_checks_on_a_file_with_labels_and_counts_right_answers(place: Path) -> None:
    words = ("--check", "labelled.npz", "--labels", "classes", "--ignore", "names", "--json")
    result = quantize(*words, calibration="labelled.npz")
    assert result.exit_code == 0, result.output
    checked = json.loads(result.stdout)["check"]
    again = run(
        "verify", "net.onnx", "out.onnx", "--data", "labelled.npz", "--labels", "classes", "--ignore", "names", "--json"
    )
    verified = json.loads(again.stdout)
    for key in ("top1_fp32", "top1_quantized"):
        (told,), (known,) = ([o[key] for o in found["outputs"].values()] for found in (checked, verified))
        assert told == known and told is not None
    page = quantize(*words[:-1], "--report", "report.html")
    assert page.exit_code == 0, page.output
    assert "top-1" in Path("report.html").read_text()


def test_every_verb_passes_over_the_names_that_it_is_told(place: Path) -> None:
    words = ("--calibration", "labelled.npz", "--candidates", "w4a8,w8a8", "--method", "scaled", "-o", "table.json")
    assert_refused(run("sensitivity", "net.onnx", *words), "'classes'", "--ignore")
    result = run("sensitivity", "net.onnx", *words, "--ignore", "names,classes")
    assert result.exit_code == 0, result.output


def test_candidates_are_chosen_among_on_samples_with_labels_too(place: Path) -> None:
    result = quantize(*MIXED, "--ignore", "names,classes", calibration="labelled.npz")
    assert result.exit_code == 0, result.output


def test_labels_that_judge_nothing_are_refused(place: Path) -> None:
    assert_refused(quantize("--labels", "classes"), "--check")
    words = ("--check", "labelled.npz", "--labels")
    assert_refused(quantize(*words, "answers", "--ignore", "names,classes"), "no labels named 'answers'")
    np.savez("few.npz", image=tiny_images(20), classes=np.zeros(19, int))
    assert_refused(quantize("--check", "few.npz", "--labels", "classes"), "19 labels 'classes' for 20 samples")
    with pytest.raises(ConfigError, match="labels are for the samples of check"):
        onnxq.quantize(tiny_model(), tiny_images(8), labels="classes")


def test_labels_come_from_a_mapping_too() -> None:
    given = {"image": tiny_images(8, 9), "classes": np.zeros(8, int)}
    result = onnxq.quantize(tiny_model(), given, check=given, labels="classes")
    assert result.report.check is not None and result.report.check.outputs[0].top1_fp32 is not None
