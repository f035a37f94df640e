from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import numpy_helper

from onnxq.models import bundled


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    return onnx.load(bundled().model)


@pytest.fixture(scope="module")
def session() -> ort.InferenceSession:
    return ort.InferenceSession(bundled().model, providers=["CPUExecutionProvider"])


@pytest.fixture(scope="module")
def calibration() -> dict[str, np.ndarray]:
    with np.load(bundled().calibration, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def evaluation() -> dict[str, np.ndarray]:
    with np.load(bundled().evaluation, allow_pickle=False) as arrays:
        return dict(arrays)


def test_model_passes_the_full_onnx_check(model: onnx.ModelProto) -> None:
    onnx.checker.check_model(model, full_check=True)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 17)]


def test_network_holds_each_kind_of_layer_that_a_demonstration_needs(model: onnx.ModelProto) -> None:
    kinds = [node.op_type for node in model.graph.node]
    assert {"Conv", "BatchNormalization", "Relu", "Add", "GlobalAveragePool", "Gemm"} <= set(kinds)
    assert kinds.count("BatchNormalization") == kinds.count("Conv")
    shapes = {weight.name: tuple(weight.dims) for weight in model.graph.initializer}
    depthwise = 0
    for node in model.graph.node:
        group = next((a.i for a in node.attribute if a.name == "group"), 1)
        if node.op_type == "Conv" and group > 1:
            assert shapes[node.input[1]] == (group, 1, 3, 3)
            depthwise += 1
    assert depthwise == 2


def test_every_node_is_named_and_named_once(model: onnx.ModelProto) -> None:
    names = [node.name for node in model.graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


def test_normalisation_carries_statistics_of_training(model: onnx.ModelProto) -> None:
    values = {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}
    norms = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    for node in norms:
        gamma, beta, mean, variance = (values[name] for name in node.input[1:])
        assert np.isfinite([gamma, beta, mean, variance]).all()
        assert (variance > 0).all()
        # Neither of the statistics is what they were initialized to: 0 and 1 on every channel.
        assert np.abs(mean).max() > 0.01
        assert np.abs(variance - 1).max() > 0.01


def test_weights_are_float32_and_the_files_stay_small(model: onnx.ModelProto) -> None:
    assert {weight.data_type for weight in model.graph.initializer} == {onnx.TensorProto.FLOAT}
    files = bundled()
    assert files.model.stat().st_size < 2_000_000
    assert files.calibration.stat().st_size + files.evaluation.stat().st_size < 3_000_000


def test_data_files_feed_the_model_as_they_are(
    session: ort.InferenceSession, calibration: dict[str, np.ndarray], evaluation: dict[str, np.ndarray]
) -> None:
    (image,) = session.get_inputs()
    assert (image.name, image.type, image.shape) == ("image", "tensor(float)", ["batch", 1, 16, 16])
    assert set(calibration) == {"image"}
    assert set(evaluation) == {"image", "labels"}
    assert calibration["image"].shape == (256, 1, 16, 16)
    assert evaluation["image"].shape == (640, 1, 16, 16)
    for images in (calibration["image"], evaluation["image"]):
        assert images.dtype == np.float32
        assert images.min() == 0
        assert images.max() == 1


def test_labels_cover_the_ten_digits_about_evenly(evaluation: dict[str, np.ndarray]) -> None:
    labels = evaluation["labels"]
    assert labels.dtype == np.int64
    assert labels.shape == (640,)
    counts = np.bincount(labels)
    assert len(counts) == 10
    assert counts.min() >= 40


def test_no_image_is_both_calibration_and_evaluation(
    calibration: dict[str, np.ndarray], evaluation: dict[str, np.ndarray]
) -> None:
    first, second = ({image.tobytes() for image in arrays["image"]} for arrays in (calibration, evaluation))
    assert len(first) == 256
    assert len(second) == 640
    assert not first & second


def test_evaluation_accuracy_is_at_least_98_percent(
    session: ort.InferenceSession, evaluation: dict[str, np.ndarray]
) -> None:
    (logits,) = session.run(["logits"], {"image": evaluation["image"]})
    assert logits.shape == (640, 10)
    assert (logits.argmax(axis=1) == evaluation["labels"]).mean() >= 0.98


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_logits_do_not_depend_on_the_batch_size(
    session: ort.InferenceSession, evaluation: dict[str, np.ndarray], batch: int
) -> None:
    images = evaluation["image"][:64]
    (together,) = session.run(["logits"], {"image": images})
    parts = [session.run(["logits"], {"image": images[i : i + batch]})[0] for i in range(0, 64, batch)]
    # Logits are of size one to four; float32 sums of about a thousand terms, possibly in another order.
    np.testing.assert_allclose(np.concatenate(parts), together, rtol=0, atol=2e-5)


def test_unoptimised_model_agrees_with_the_optimised_one(
    session: ort.InferenceSession, evaluation: dict[str, np.ndarray]
) -> None:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    plain = ort.InferenceSession(bundled().model, options, providers=["CPUExecutionProvider"])
    feed = {"image": evaluation["image"][:64]}
    # Folding the normalization into the weights changes float32 rounding only.
    np.testing.assert_allclose(plain.run(None, feed)[0], session.run(None, feed)[0], rtol=0, atol=1e-4)


def test_finding_the_files_imports_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys, onnxq.models as models; paths = models.bundled();"
        "assert paths.model.is_absolute() and paths.model.is_file();"
        "print(sorted({'numpy', 'onnx', 'onnxruntime', 'jax', 'optax', 'sklearn'} & set(sys.modules)))"
    )
    # Elsewhere than in the source tree, whose `onnxq` folder would hide the installed package.
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "[]"
