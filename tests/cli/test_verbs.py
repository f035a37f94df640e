"""The verbs beside quantize: inspect, verify and demo; and the progress bars."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from onnx import helper, parser
from rich.console import Console
from tiny_model import CLASSES, LAYERS, tiny_images, tiny_model

import onnxq
import onnxq.demo
from onnxq.cli import main
from onnxq.cli.progress_bars import Bars
from onnxq.models import BundledModel
from onnxq.progress import Progress

SAMPLES = 50


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a float and a quantized model and labelled samples, where the command runs."""
    onnx.save(tiny_model(), tmp_path / "net.onnx")
    result = onnxq.quantize(tiny_model(), tiny_images(16), onnxq.Config(preset="light"))
    result.save(tmp_path / "q.onnx")
    labels = np.random.default_rng(0).integers(0, CLASSES, SAMPLES)
    np.savez(tmp_path / "data.npz", image=tiny_images(SAMPLES, 9), classes=labels)
    np.savez(tmp_path / "plain.npz", image=tiny_images(SAMPLES, 9))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def test_inspect_lists_layers_with_shapes_work_and_planned_bits(place: Path) -> None:
    result = run("inspect", "net.onnx", "--weights", "4", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert [layer["name"] for layer in found["layers"]] == LAYERS
    assert [layer["weight_bits"] for layer in found["layers"]] == [8, 4, 8]
    assert [layer["output_shape"] for layer in found["layers"]] == [[1, 8, 8, 8], [1, 12, 3, 3], [1, CLASSES]]
    assert [layer["macs"] for layer in found["layers"]] == [8 * 64 * 27, 12 * 9 * 72, CLASSES * 12]
    assert found["macs"] == sum(layer["macs"] for layer in found["layers"])
    assert found["inputs"] == {"image": {"dtype": "float32", "shape": [None, 3, 8, 8]}}
    text = run("inspect", "net.onnx").stdout
    assert all(name in text for name in LAYERS)
    assert "8/8 edge" in text


def test_inspect_says_why_a_node_stays_in_float(place: Path) -> None:
    onnx.save(
        parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 4] x) => (float[N, N] z) <float[4, 4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}>
        { a = MatMul (x, w)
          b = Transpose (a)
          z = MatMul (a, b) }"""),
        "products.onnx",
    )
    found = json.loads(run("inspect", "products.onnx", "--attention", "32", "--json").stdout)
    assert len(found["layers"]) == 1
    assert [remark["reason"] for remark in found["left_in_float"]] == ["product of two activations: left in float"]
    assert found["products"] == []
    assert "product of two activations" in run("inspect", "products.onnx", "--attention", "32").stdout
    quantised = json.loads(run("inspect", "products.onnx", "--json").stdout)
    assert not quantised["left_in_float"]
    assert quantised["products"] == ["MatMul_2"]


def test_inspect_refuses_a_model_without_layers(place: Path) -> None:
    onnx.save(
        parser.parse_model('<ir_version: 8, opset_import: ["" : 17]> g (float[N] x) => (float[N] y) { y = Relu (x) }'),
        "relu.onnx",
    )
    result = run("inspect", "relu.onnx")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "no layer to quantise" in result.stderr


def test_verify_json_holds_what_programs_are_promised(place: Path) -> None:
    result = run("verify", "net.onnx", "q.onnx", "--data", "data.npz", "--labels", "classes", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert {"fp32", "quantized", "samples", "outputs", "loads", "latency_ms", "bits"} <= found.keys()
    assert (found["fp32"], found["quantized"]) == (Path("net.onnx").stat().st_size, Path("q.onnx").stat().st_size)
    assert found["samples"] == SAMPLES
    promised = {"sqnr_db", "cosine", "kl", "top1_agreement", "top1_fp32", "top1_quantized"}
    assert promised <= found["outputs"]["scores"].keys()
    assert 0 < found["outputs"]["scores"]["top1_fp32"] < 100  # labels are random
    assert list(found["loads"]) == ["disable", "basic", "extended", "all"]
    assert all({"ok", "max_abs_diff"} <= level.keys() for level in found["loads"].values())
    assert {"fp32", "quantized"} <= found["latency_ms"].keys()
    assert list(found["bits"]) == LAYERS
    assert {"weight_bits", "activation_bits", "weight_levels_used"} <= found["bits"]["first"].keys()


def test_verify_tells_people_the_same(place: Path) -> None:
    result = run("verify", "net.onnx", "q.onnx", "--data", "plain.npz", "--classification")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    assert "3 at 8/8" in result.stdout
    assert "at every optimisation level" in result.stdout
    assert "scores" in result.stdout


def test_verify_measures_ranges_where_it_is_told_to(place: Path) -> None:
    np.savez("bright.npz", image=4 * tiny_images(SAMPLES, 9))
    words = ("verify", "net.onnx", "q.onnx", "--data", "bright.npz")
    assert json.loads(run(*words, "--json").stdout)["ranges"] is None
    found = json.loads(run(*words, "--ranges", "--json").stdout)["ranges"]
    assert max(found, key=lambda one: one["lost"]) == found[0]
    assert found[0]["share_outside"] > 0.1 and found[0]["layers"]
    assert "Ranges that the samples leave" in run(*words, "--ranges").stdout


def test_verify_uses_as_many_samples_and_labels_as_it_is_told(place: Path) -> None:
    words = ("verify", "net.onnx", "q.onnx", "--data", "data.npz", "--labels", "classes", "--json")
    assert json.loads(run(*words, "--samples", "13").stdout)["samples"] == 13


def test_verify_drops_the_labels_of_an_incomplete_batch_of_a_fixed_size(place: Path) -> None:
    onnx.save(tiny_model(batch="8"), "fixed.onnx")
    onnxq.quantize(tiny_model(batch="8"), tiny_images(16), onnxq.Config(preset="light")).save("fixed.q.onnx")
    words = ("verify", "fixed.onnx", "fixed.q.onnx", "--data", "data.npz", "--labels", "classes", "--json")
    result = run(*words)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["samples"] == SAMPLES // 8 * 8
    assert json.loads(run(*words, "--samples", "20").stdout)["samples"] == 16


def test_verify_refuses_what_it_cannot_use_in_one_sentence(place: Path) -> None:
    for words, told in {
        ("none.onnx", "q.onnx", "--data", "plain.npz"): "none.onnx does not exist",
        ("net.onnx", "none.onnx", "--data", "plain.npz"): "none.onnx",
        ("net.onnx", "q.onnx", "--data", "none.npz"): "none.npz",
        ("net.onnx", "q.onnx", "--data", "data.npz"): "classes",
        ("net.onnx", "q.onnx", "--data", "data.npz", "--labels", "answers"): "no labels named 'answers'",
        ("net.onnx", "q.onnx", "--data", "plain.npz", "--samples", "0"): "samples is 0",
    }.items():
        result = run("verify", *words)
        assert (result.exit_code, result.stdout) == (2, ""), words
        assert result.stderr.startswith("onnxq: ")
        assert result.stderr.count("\n") == 1
        assert told in result.stderr


def test_verify_ends_with_1_where_the_quantised_model_does_not_load(place: Path) -> None:
    broken = onnx.load("q.onnx")
    broken.graph.node.append(helper.make_node("Nonsense", ["scores"], ["unused"], domain="nowhere"))
    broken.opset_import.add(domain="nowhere", version=1)
    onnx.save(broken, "broken.onnx")
    result = run("verify", "net.onnx", "broken.onnx", "--data", "plain.npz", "--json")
    assert result.exit_code == 1, result.output
    assert not any(level["ok"] for level in json.loads(result.stdout)["loads"].values())
    assert "not at level disable" in run("verify", "net.onnx", "broken.onnx", "--data", "plain.npz").stdout


@pytest.fixture
def small_demo(place: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The demonstration with a tiny model in the place of the bundled one."""
    np.savez("data.npz", image=tiny_images(SAMPLES, 9), labels=np.zeros(SAMPLES, np.int64))
    paths = BundledModel(model=place / "net.onnx", calibration=place / "plain.npz", evaluation=place / "data.npz")
    monkeypatch.setattr("onnxq.models.bundled", lambda: paths)
    return place


def test_demo_shows_each_variant_and_writes_nothing(small_demo: Path) -> None:
    before = sorted(small_demo.iterdir())
    result = run("demo")
    assert result.exit_code == 0, result.output
    assert all(name in result.stdout for name in ("float32", "W8A8", "W4A8", "accuracy"))
    assert sorted(small_demo.iterdir()) == before


def test_demo_writes_models_where_it_is_told(small_demo: Path) -> None:
    result = run("demo", "--json", "-o", "new/folder")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert list(found["variants"]) == ["W8A8", "W4A8"]
    assert sorted(path.name for path in Path("new/folder").iterdir()) == ["net.w4a8.onnx", "net.w8a8.onnx"]
    assert found["variants"]["W4A8"]["verify"]["bits"]["middle"]["weight_bits"] == 4
    assert run("demo", "-o", "net.onnx").exit_code == 2


def test_demo_of_the_bundled_model_keeps_its_accuracy(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = onnxq.Config(preset="light", weights=4, samples=32, second_order=False)
    monkeypatch.setattr("onnxq.demo.CONFIGS", {"W4A8": quick})
    (variant,) = onnxq.demo.demonstrate().variants
    (output,) = variant.verification.outputs
    assert output.top1_fp32 is not None
    assert output.top1_quantized is not None
    assert output.top1_fp32 > 99
    assert output.top1_quantized > output.top1_fp32 - 1  # six of 640 images
    assert variant.verification.fp32 > 5 * variant.verification.quantized


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_show_stage_and_layer_on_a_terminal_and_nothing_in_a_pipe() -> None:
    for stream in (Terminal(), io.StringIO()):
        console = Console(file=stream, width=100, force_terminal=True)
        with Bars(console) as bars:
            bars(Progress("load", 0, None))
            bars(Progress("solve", 1, 4, "a[bold]layer\x1b"))
            bars._bars.refresh()
        if isinstance(stream, Terminal):
            assert "solve" in stream.getvalue()
            assert "1/4" in stream.getvalue()
            assert "a[bold]layer\N{REPLACEMENT CHARACTER}" in stream.getvalue()
        else:
            assert stream.getvalue() == ""
