from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser
from tiny_model import LAYERS, tiny_images, tiny_model

import onnxq

LIGHT = onnxq.Config(preset="light", weights=4)
HEAVY = (
    "cvxpy",
    "matplotlib",
    "scipy",
    "numpy",
    "onnx",
    "onnx_graphsurgeon",
    "onnxruntime",
    "jax",
    "pydantic",
    "PIL",
    "rich",
    "click",
    "jinja2",
)


class StoppedError(Exception):
    """Stands for a run that was killed."""


def stop_after_first_layer(folder: Path) -> onnxq.progress.Listener:
    def listener(moment: onnxq.Progress) -> None:
        if list(folder.glob("*.npz")):
            raise StoppedError

    return listener


def stored(result: onnxq.Result) -> bytes:
    return result.model.SerializeToString(deterministic=True)


def test_public_names_are_these() -> None:
    assert sorted(onnxq.__all__) == [
        "BitAllocation",
        "CalibrationError",
        "Config",
        "ConfigError",
        "InputError",
        "ModelError",
        "OnnxqError",
        "OutputError",
        "Progress",
        "Refinement",
        "Result",
        "RunReport",
        "UnsupportedError",
        "VerificationError",
        "VerificationReport",
        "quantize",
    ]
    assert dir(onnxq) == sorted(onnxq.__all__)


@pytest.mark.parametrize("name", onnxq.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    assert getattr(onnxq, name).__doc__


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="'onnxq' has no attribute 'quantise'"):
        onnxq.quantise  # noqa: B018


def test_import_loads_none_of_the_heavy_libraries() -> None:
    script = f"import sys, onnxq; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_light_quantisation_does_not_load_jax() -> None:
    script = (
        "import sys; from tiny_model import tiny_images, tiny_model; import onnxq; "
        "onnxq.quantize(tiny_model(), tiny_images(8), onnxq.Config(preset='light')); print('jax' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1] / "helpers",
    )
    assert done.stdout.strip() == "False"


def test_model_in_memory_comes_back_quantised_and_is_left_as_it_was() -> None:
    model = tiny_model()
    before = model.SerializeToString(deterministic=True)
    result = onnxq.quantize(model, tiny_images(24), LIGHT)
    assert isinstance(result.model, onnx.ModelProto)
    assert model.SerializeToString(deterministic=True) == before
    assert [layer.stored_weight_bits for layer in result.report.layers] == [8, 4, 8]
    assert [value.name for value in result.model.graph.input] == ["image"]


def test_path_and_model_in_memory_give_the_same_bytes(tmp_path: Path) -> None:
    onnx.save(tiny_model(), tmp_path / "net.onnx")
    first = onnxq.quantize(str(tmp_path / "net.onnx"), tiny_images(24), LIGHT)
    assert stored(first) == stored(onnxq.quantize(tiny_model(), tiny_images(24), LIGHT))


def test_bytes_do_not_depend_on_how_samples_are_cut_into_batches() -> None:
    images = tiny_images(30)

    def batches(size: int) -> Iterator[dict[str, NDArray[np.float32]]]:
        for start in range(0, len(images), size):
            yield {"image": images[start : start + size]}

    whole = stored(onnxq.quantize(tiny_model(), images, LIGHT))
    for size in (1, 7, 30):
        assert stored(onnxq.quantize(tiny_model(), batches(size), LIGHT)) == whole


def twins() -> onnx.ModelProto:
    """Two layers of one shape, for which the solver's gradients are compiled only once."""
    model = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        twins (float[N, 8] x) => (float[N, 8] y) {
            a = Gemm (x, w1, b1)
            b = Relu (a)
            c = Gemm (b, w2, b2)
            y = Relu (c)
        }""")
    rng = np.random.default_rng(1)
    for name, shape in {"w1": (8, 8), "b1": (8,), "w2": (8, 8), "b2": (8,)}.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name))
    return model


def test_two_advanced_runs_with_one_seed_give_the_same_bytes_and_a_stopped_one_goes_on_to_them(tmp_path: Path) -> None:
    config = onnxq.Config(weights=3, activations=6, edge_bits="same", refinement=onnxq.Refinement(steps=10))
    samples = np.random.default_rng(2).normal(0, 1, (64, 8)).astype(np.float32)
    first = stored(onnxq.quantize(twins(), samples, config))
    assert stored(onnxq.quantize(twins(), samples, config)) == first

    with pytest.raises(StoppedError):
        onnxq.quantize(twins(), samples, config, work_dir=tmp_path, progress=stop_after_first_layer(tmp_path))
    (kept,) = tmp_path.glob("*.npz")
    written = kept.stat().st_mtime_ns
    assert stored(onnxq.quantize(twins(), samples, config, work_dir=tmp_path, resume=True)) == first
    assert len(list(tmp_path.glob("*.npz"))) == 2
    assert kept.stat().st_mtime_ns == written


@pytest.mark.parametrize("mode", ["sequential", "parallel"])
def test_stopped_light_run_goes_on_to_the_same_bytes(tmp_path: Path, mode: str) -> None:
    config = onnxq.Config(preset="light", weights=4, mode=mode)
    whole = stored(onnxq.quantize(tiny_model(), tiny_images(24), config))
    with pytest.raises(StoppedError):
        onnxq.quantize(
            tiny_model(), tiny_images(24), config, work_dir=tmp_path, progress=stop_after_first_layer(tmp_path)
        )
    resumed = onnxq.quantize(tiny_model(), tiny_images(24), config, work_dir=tmp_path, resume=True)
    assert stored(resumed) == whole


def test_work_directory_of_another_run_is_refused(tmp_path: Path) -> None:
    onnxq.quantize(tiny_model(), tiny_images(8), LIGHT, work_dir=tmp_path)
    with pytest.raises(onnxq.ConfigError, match="resume it, or give another directory"):
        onnxq.quantize(tiny_model(), tiny_images(8), LIGHT, work_dir=tmp_path)
    with pytest.raises(onnxq.ConfigError, match="another model, configuration or calibration set"):
        onnxq.quantize(tiny_model(), tiny_images(9), LIGHT, work_dir=tmp_path, resume=True)


def test_two_results_are_saved_whole_and_progress_tells_every_stage(tmp_path: Path) -> None:
    moments: list[onnxq.Progress] = []
    result = onnxq.quantize(tiny_model(), tiny_images(8), LIGHT, progress=moments.append)
    result.save(tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == stored(result)
    stages = list(dict.fromkeys(moment.stage for moment in moments))
    assert stages == ["load", "read", "compare", "solve", "verify", "time"]
    solving = [moment for moment in moments if moment.stage == "solve"]
    assert [moment.done for moment in solving] == sorted(moment.done for moment in solving)
    assert solving[-1].done == solving[-1].total
    assert {moment.detail for moment in solving} == set(LAYERS)


def test_every_error_is_an_onnxq_error() -> None:
    errors = [getattr(onnxq, name) for name in onnxq.__all__ if name.endswith("Error")]
    assert all(issubclass(error, onnxq.OnnxqError) for error in errors)
    with pytest.raises(onnxq.ConfigError):
        onnxq.quantize(tiny_model(), tiny_images(8), onnxq.config.make_config({"weights": 17}))
