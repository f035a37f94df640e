"""Weights on disk under the names that torchvision, timm and transformers give them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from onnxq.errors import ModelError
from onnxq.models.bert import bert_base, minilm_l6
from onnxq.models.mobilenet import mobilenet_v2
from onnxq.models.naming import translate
from onnxq.models.network import Network, Parameter
from onnxq.models.resnet import resnet18, resnet50, resnet101
from onnxq.models.state_dict import fit, read_state_dict


def small(network: Network) -> Network:
    """The network's names with tiny shapes, for it is names that are at stake."""
    parameters = tuple(Parameter(p.name, p.shape and (2, 3)[: len(p.shape)], p.kind) for p in network.parameters)
    return Network(network.name, network.inputs, network.outputs, (), parameters, {})


def tensors(network: Network, rename: Callable[[str], str] = str) -> dict[str, np.ndarray]:
    """Other numbers for each parameter, under a published name."""
    return {rename(p.name): np.full(p.shape, i, np.float32) for i, p in enumerate(network.parameters)}


# Written down from each project's module tree, the other way round than the code under test goes.
def in_transformers_resnet(name: str) -> str:
    stem = {"conv1": "convolution", "bn1": "normalization"}
    module, tensor = name.rsplit(".", 1)
    if module in stem:
        return f"resnet.embedder.embedder.{stem[module]}.{tensor}"
    if module == "fc":
        return f"classifier.1.{tensor}"
    layer, block, rest = re.fullmatch(r"layer(\d)\.(\d+)\.(.*)", module).groups()  # type: ignore[union-attr]
    place = f"resnet.encoder.stages.{int(layer) - 1}.layers.{block}"
    if rest.startswith("downsample"):
        return f"{place}.shortcut.{'convolution' if rest.endswith('0') else 'normalization'}.{tensor}"
    kind, number = rest[:-1], int(rest[-1]) - 1
    return f"{place}.layer.{number}.{'convolution' if kind == 'conv' else 'normalization'}.{tensor}"


def in_old_bert(name: str) -> str:
    return "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")


@pytest.mark.parametrize(
    ("network", "rename"),
    [
        (resnet18(), str),
        (resnet101(), lambda name: f"module.{name}"),
        (resnet50(), in_transformers_resnet),
        (mobilenet_v2(), str),
        (bert_base(), str),
        (bert_base(), in_old_bert),
        (minilm_l6(), str),
    ],
)
def test_every_parameter_is_found_under_its_published_name(network: Network, rename: Callable[[str], str]) -> None:
    network = small(network)
    published = tensors(network, rename)
    others = {"bn1.num_batches_tracked": np.array(3), "cls.predictions.bias": np.zeros(4)}
    values = fit(network, published | others)
    expected = tensors(network)
    assert values.keys() == expected.keys()
    assert all(np.array_equal(values[name], expected[name]) for name in expected)


def test_mobilenet_of_timm_is_found_block_by_block() -> None:
    # timm's mobilenetv2_100: (theirs, torchvision's) at the places where a block differs from the one before.
    pairs = {
        "conv_stem.weight": "features.0.0.weight",
        "bn1.running_var": "features.0.1.running_var",
        "blocks.0.0.conv_dw.weight": "features.1.conv.0.0.weight",
        "blocks.0.0.bn1.bias": "features.1.conv.0.1.bias",
        "blocks.0.0.conv_pw.weight": "features.1.conv.1.weight",
        "blocks.0.0.bn2.weight": "features.1.conv.2.weight",
        "blocks.1.0.conv_pw.weight": "features.2.conv.0.0.weight",
        "blocks.1.1.conv_dw.weight": "features.3.conv.1.0.weight",
        "blocks.3.3.bn2.bias": "features.10.conv.1.1.bias",
        "blocks.5.2.conv_pwl.weight": "features.16.conv.2.weight",
        "blocks.6.0.bn3.running_mean": "features.17.conv.3.running_mean",
        "conv_head.weight": "features.18.0.weight",
        "bn2.weight": "features.18.1.weight",
        "classifier.bias": "classifier.1.bias",
    }
    wanted = [p.name for p in mobilenet_v2().parameters]
    assert set(pairs.values()) <= set(wanted)
    assert translate(pairs, wanted) == {ours: theirs for theirs, ours in pairs.items()}


def test_safetensors_come_back_in_float32(tmp_path: Path) -> None:
    save_file = pytest.importorskip("safetensors.numpy").save_file
    network = small(resnet18())
    path = tmp_path / "weights.safetensors"
    save_file({name: value.astype(np.float16) for name, value in tensors(network).items()}, path)
    values = fit(network, read_state_dict(path))
    for name, value in tensors(network).items():
        assert values[name].dtype == np.float32
        assert np.array_equal(values[name], value)  # whole numbers below 2,048 are exact in half precision


def test_matrices_of_bert_are_multiplied_transposed() -> None:
    weight = np.arange(6, dtype=np.float32).reshape(2, 3)
    parameter = Parameter("w", (2, 3), "linear", transposed=True)
    (tensor,) = Network("n", (), (), (), (parameter,), {}).model({"w": weight}).graph.initializer
    assert tensor.dims == [3, 2]
    assert np.array_equal(np.frombuffer(tensor.raw_data, np.float32).reshape(3, 2), weight.T)


def test_missing_parameters_are_counted_and_named() -> None:
    network = small(resnet18())
    published = tensors(network)
    del published["layer2.0.conv1.weight"], published["fc.bias"]
    with pytest.raises(ModelError, match=r"lack 2 of the 102 parameters .*layer2\.0\.conv1\.weight, fc\.bias"):
        fit(network, published)


def test_parameters_of_another_shape_are_named() -> None:
    network = small(resnet18())
    published = tensors(network) | {"fc.weight": np.zeros((5, 3), np.float32)}
    with pytest.raises(ModelError, match=r"fc\.weight has shape \[5, 3\] instead of \[2, 3\]"):
        fit(network, published)


def test_files_of_an_unknown_kind_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"ending '\.h5'; give a file that ends in \.safetensors"):
        read_state_dict(tmp_path / "weights.h5")


def test_what_is_not_a_safetensors_file_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"not a header")
    with pytest.raises(ModelError, match=r"weights\.safetensors cannot be read"):
        read_state_dict(path)
