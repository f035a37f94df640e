from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import parser
from tiny_model import LAYERS, tiny_images, tiny_model

import onnxq.api
from onnxq.cli import main
from onnxq.cli.options import FIELDS
from onnxq.config import Config


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and its samples, where the command runs; temporary files go below it too."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    onnx.save(tiny_model(), tmp_path / "net.onnx")
    np.savez(tmp_path / "calib.npz", image=tiny_images(40))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def quantize(*words: str, model: str = "net.onnx", output: str = "out.onnx", calibration: str = "calib.npz") -> Result:
    return run("quantize", model, "-o", output, "--calibration", calibration, "--preset", "light", *words)


def assert_refused(result: Result, *parts: str) -> None:
    """It ended with 2, told why in one sentence on stderr, and nothing else."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("onnxq: ")
    assert result.stderr.count("\n") == 1
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in result.stderr


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def _save_model(text: str) -> None:
    onnx.save(parser.parse_model(text), "other.onnx")


def _truncated() -> None:
    Path("other.onnx").write_bytes(Path("net.onnx").read_bytes()[:-900])


def _samples(name: str = "image", **arrays: Any) -> Callable[[], None]:
    return lambda: np.savez("other.npz", **(arrays or {name: tiny_images(4)}))


def _with_nan() -> None:
    images = tiny_images(20)
    images[17, 1, 2, 3] = np.nan
    np.savez("other.npz", image=images)


def _without_layers() -> None:
    _save_model('<ir_version: 8, opset_import: ["" : 17]> g (float[N, 3, 8, 8] image) => (float[N, 3, 8, 8] y) '
                "{ y = Relu (image) }")  # fmt: skip


BAD_INPUTS: dict[str, tuple[Callable[[], object], dict[str, str], str]] = {
    "missing model": (lambda: None, {"model": "none.onnx"}, "none.onnx does not exist"),
    "folder as model": (lambda: Path("other").mkdir(), {"model": "other"}, "is a folder"),
    "empty model": (lambda: Path("other.onnx").touch(), {"model": "other.onnx"}, "is empty"),
    "truncated model": (_truncated, {"model": "other.onnx"}, "truncated"),
    "text as model": (lambda: Path("other.onnx").write_text("no model"), {"model": "other.onnx"}, "other.onnx is not"),
    "model without layers": (_without_layers, {"model": "other.onnx"}, "no layer to quantise"),
    "missing samples": (lambda: None, {"calibration": "none.npz"}, "none.npz"),
    "text as samples": (lambda: Path("other.npz").write_text("no"), {"calibration": "other.npz"}, "other.npz cannot"),
    "no samples": (_samples(image=tiny_images(0)), {"calibration": "other.npz"}, "the calibration set is empty"),
    "wrong input name": (_samples("picture"), {"calibration": "other.npz"}, "rename 'picture' to 'image'"),
    "wrong shape": (_samples(image=np.zeros((4, 3, 9, 8), np.float32)), {"calibration": "other.npz"}, "[4, 3, 9, 8]"),
    "wrong type": (_samples(image=np.zeros((4, 3, 8, 8), np.uint8)), {"calibration": "other.npz"}, "uint8"),
    "samples that are not finite": (_with_nan, {"calibration": "other.npz"}, "17"),
    "output in no folder": (lambda: None, {"output": "none/out.onnx"}, "folder none does not exist"),
    "output is a folder": (lambda: Path("other").mkdir(), {"output": "other"}, "other is a folder"),
    "output over the model": (lambda: None, {"output": "./net.onnx"}, "is the model itself"),
    "output over the samples": (lambda: None, {"output": "calib.npz"}, "is the calibration set itself"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_input_ends_with_2_and_a_sentence_and_leaves_nothing(place: Path, case: str) -> None:
    prepare, given, told = BAD_INPUTS[case]
    prepare()
    before = contents(place)
    assert_refused(quantize(**given), told)
    assert contents(place) == before


BAD_FLAGS = {
    "no bits": (["--weights", "0"], "weights is 0"),
    "too many bits": (["--weights", "17"], "weights is 17"),
    "bits that are no number": (["--activations", "many"], "'many' is not a valid integer"),
    "unknown edge bits": (["--edge-bits", "none"], "edge_bits is 'none'"),
    "unknown preset": (["--preset", "heavy"], "'light' or 'advanced'"),
    "unknown mode": (["--mode", "upwards"], "'sequential' or 'parallel'"),
    "unknown container": (["--container", "box"], "container is 'box'"),
    "unknown target": (["--target", "moon"], "target is 'moon'"),
    "bits that the target does not run": (
        ["--target", "tensorrt", "--activations", "4"],
        "target tensorrt does not run w8a4",
    ),
    "no samples": (["--samples", "0"], "samples is 0"),
    "no speed": (["--require-speedup", "0"], "0.0 is not in the range x>0"),
    "size without a unit": (["--memory-limit", "4 elephants"], "'4 elephants' is not understood"),
    "too little memory": (["--memory-limit", "1KiB"], "memory_limit is 1024"),
    "negative seed": (["--seed", "-1"], "seed is -1"),
    "missing configuration": (["--config", "none.toml"], "none.toml cannot be read"),
    "resume without a folder": (["--resume"], "--work-dir"),
    "report in no folder": (["--report", "none/r.html"], "folder none does not exist"),
    "report over the output": (["--report", "out.onnx"], "is the output itself"),
    "unknown flag": (["--frobnicate"], "--frobnicate"),
}


@pytest.mark.parametrize("case", BAD_FLAGS)
def test_bad_flag_ends_with_2_and_a_sentence_and_leaves_nothing(place: Path, case: str) -> None:
    words, told = BAD_FLAGS[case]
    before = contents(place)
    assert_refused(quantize(*words), told)
    assert contents(place) == before


def test_missing_option_and_unknown_verb_are_refused(place: Path) -> None:
    assert_refused(run("quantize", "net.onnx", "--calibration", "calib.npz"), "--output")
    assert_refused(run("frobnicate"), "frobnicate")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("wieghts = 4", "wieghts is not an option"),
        ("weights = 17", "weights is 17"),
        ("weights = ", "is not TOML"),
        ("memory_limit = 1.5", "memory_limit is 1.5"),
        ("[refinement]\nsteps = 0", "refinement.steps is 0"),
    ],
)
def test_bad_configuration_file_is_refused(place: Path, text: str, told: str) -> None:
    Path("options.toml").write_text(text)
    assert_refused(quantize("--config", "options.toml"), told)


def test_full_disk_ends_with_2_and_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(28, "No space left on device")

    before = contents(place)
    monkeypatch.setattr("onnxq.ir.save.os.fsync", full)
    assert_refused(quantize(), "No space left on device")
    assert_refused(quantize("--report", "r.html"), "No space left on device")
    assert contents(place) == before


def test_disk_that_fills_up_after_the_report_leaves_no_report(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def filling(handle: int) -> None:
        calls.append(handle)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")

    before = contents(place)
    monkeypatch.setattr("onnxq.ir.save.os.fsync", filling)
    assert_refused(quantize("--report", "r.html"), "No space left on device")
    assert contents(place) == before


def test_good_run_ends_with_0_and_tells_people_what_it_did(place: Path) -> None:
    result = quantize("--weights", "4", "--report", "r.html")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert "2 at 8/8, 1 at 4/8" in result.stdout
    assert "at every optimisation level" in result.stdout
    assert all(name in result.stdout for name in LAYERS)
    assert set(contents(place)) == {"net.onnx", "calib.npz", "out.onnx", "r.html"}
    onnx.checker.check_model(onnx.load("out.onnx"), full_check=True)
    assert "net.onnx → out.onnx" in Path("r.html").read_text()


def test_json_is_one_object_alone_on_stdout(place: Path) -> None:
    result = quantize("--weights", "4", "--json")
    assert result.exit_code == 0
    assert result.stderr == ""
    report = json.loads(result.stdout)
    assert report["ok"] is True
    assert report["output"] == "out.onnx"
    assert report["quantized"] == Path("out.onnx").stat().st_size
    assert report["fp32"] == Path("net.onnx").stat().st_size
    assert [layer["stored_weight_bits"] for layer in report["layers"]] == [8, 4, 8]
    assert list(report["loads"]) == ["disable", "basic", "extended", "all"]


def test_flags_override_the_configuration_file(place: Path) -> None:
    Path("options.toml").write_text('weights = 5\nsamples = 30\nedge_bits = "same"\nmemory_limit = "128MiB"\n')
    config = json.loads(quantize("--config", "options.toml", "--weights", "3", "--json").stdout)["config"]
    assert (config["weights"], config["samples"], config["edge_bits"]) == (3, 30, "same")
    assert config["memory_limit"] == 2**27
    assert config["activations"] == 8


@pytest.mark.parametrize("words", [["--weights", "4"], ["--weights", "3", "--mode", "parallel", "--seed", "7"]])
def test_two_runs_with_one_seed_write_the_same_bytes(place: Path, words: list[str]) -> None:
    assert quantize(*words, output="one.onnx").exit_code == 0
    assert quantize(*words, output="two.onnx").exit_code == 0
    assert Path("one.onnx").read_bytes() == Path("two.onnx").read_bytes()


def test_interruption_ends_with_130_and_says_how_to_go_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: object, **keywords: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("onnxq.api.quantize", interrupted)
    result = quantize()
    assert (result.exit_code, result.stdout) == (130, "")
    assert result.stderr == "onnxq: interrupted, nothing was written.\n"
    assert "--work-dir layers --resume" in quantize("--work-dir", "layers").stderr
    assert not Path("out.onnx").exists()


def test_missed_bits_end_with_1_and_are_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = onnxq.api.quantize

    def below(*args: Any, **keywords: Any) -> Any:
        result = real(*args, **keywords)
        layers = [dataclasses.replace(layer, stored_weight_bits=16) for layer in result.report.layers[:1]]
        return dataclasses.replace(result, report=dataclasses.replace(result.report, layers=tuple(layers)))

    monkeypatch.setattr("onnxq.api.quantize", below)
    result = quantize()
    assert result.exit_code == 1
    assert "More bits than were asked for in: first" in result.stdout
    assert Path("out.onnx").exists()
    assert json.loads(quantize("--json").stdout)["ok"] is False


def test_less_speed_than_required_ends_with_1_and_the_model_is_written(place: Path) -> None:
    assert quantize("--require-speedup", "2").exit_code == 0  # every result is twice as fast in these tests
    result = quantize("--require-speedup", "2.1", output="slow.onnx")
    assert result.exit_code == 1
    assert "Its speed is 2.00 times the float model's, and 2.1 times was asked for; it is written" in result.stdout
    assert Path("slow.onnx").read_bytes() == Path("out.onnx").read_bytes()
    report = json.loads(quantize("--require-speedup", "2.1", "--json").stdout)
    assert (report["ok"], report["speedup"], report["required_speedup"]) == (False, 2.0, 2.1)


def test_debug_shows_where_an_error_arose(place: Path) -> None:
    result = quantize("--debug", model="none.onnx")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("onnxq: model none.onnx does not exist; give the path of an .onnx file.\n")


def test_error_that_nobody_foresaw_is_one_sentence_too(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: object, **keywords: object) -> None:
        raise ZeroDivisionError("a\nb\x1b[31m")

    monkeypatch.setattr("onnxq.api.quantize", broken)
    result = quantize()
    assert_refused(result, "ZeroDivisionError", "--debug")
    assert "\x1b" not in result.stderr


def test_version_and_help_of_every_verb() -> None:
    assert run("--version").stdout.startswith("onnxq, version ")
    assert run("--help").exit_code == 0
    for verb in main.commands:
        shown = run(verb, "--help")
        assert shown.exit_code == 0
        assert "--json" in shown.stdout


def test_every_option_of_every_verb_has_help_and_configuration_flags_tell_their_default() -> None:
    for verb in main.commands.values():
        for parameter in verb.params:
            if parameter.param_type_name == "option":
                assert parameter.help, (verb.name, parameter.name)
    quantize_flags = {parameter.name: parameter.help for parameter in main.commands["quantize"].params[1:]}
    known = {field.name for field in dataclasses.fields(Config)}
    assert FIELDS.keys() <= known & quantize_flags.keys()
    for name in FIELDS.keys() - {"samples", "memory_limit", "candidates", "budget", "exclude"}:
        assert f"[default: {getattr(Config(), name)}]" in quantize_flags[name]
    assert "[default: all]" in quantize_flags["samples"]
    assert "[default: none]" in quantize_flags["exclude"]
    assert "[default: 1GiB]" in quantize_flags["memory_limit"]


def test_module_runs_as_the_command_and_help_loads_nothing_heavy() -> None:
    done = subprocess.run([sys.executable, "-m", "onnxq", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("onnxq, version ")
    script = (
        "import sys, onnxq.cli; print([m for m in ('jax', 'onnx', 'onnxruntime', 'numpy', 'rich') if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"
