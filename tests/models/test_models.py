"""The reference networks against what their authors publish, without weights where none are needed."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, checker, helper, numpy_helper, shape_inference

from onnxq.models import bert
from onnxq.models.bert import bert_base, minilm_l6
from onnxq.models.build import main
from onnxq.models.catalogue import NETWORKS
from onnxq.models.network import Network
from onnxq.models.random_weights import random_values
from onnxq.models.resnet import resnet18
from onnxq.models.samples import natural_image, samples

# Parameters: torchvision's model pages (``num_params`` of the weights' metadata) and, for BERT, the sum of the
# shapes of bert-base-uncased as transformers' BertModel (with and without pooler) and BertForQuestionAnswering.
PARAMETERS = {
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "mobilenet_v2": 3_504_872,
    "bert_base": 109_482_240,
    "bert_base_qa": 108_893_186,
    "minilm_l6": 22_713_216 - (384 * 384 + 384),  # all-MiniLM-L6-v2 as BertModel, less its pooler
}

# Multiply-accumulates in thousands of millions: torchvision's ``_ops`` in the weights' metadata, one 224 × 224 image;
# BERT: half of the 22.5 thousand million operations of X. Jiao et al., TinyBERT, 2020, table 1, for 128 tokens.
GIGAMACS = {"resnet18": 1.814, "resnet50": 4.089, "resnet101": 7.801, "mobilenet_v2": 0.301, "bert_base": 11.25}

# Convolutions, linear layers (Gemm, or MatMul with a weight) and normalizations.
LAYERS = {
    "resnet18": (20, 1, 20),
    "resnet50": (53, 1, 53),
    "resnet101": (104, 1, 104),
    "mobilenet_v2": (52, 1, 52),
    "bert_base": (0, 73, 25),
    "bert_base_qa": (0, 73, 25),
    "minilm_l6": (0, 36, 13),
}

LAST_MAP = {"resnet18": 512, "resnet50": 2048, "resnet101": 2048, "mobilenet_v2": 1280}
"""Channels of the last feature map, 7 × 7."""

TOKENS = 128


def outline(network: Network, batch: int = 1) -> onnx.ModelProto:
    """The network for one batch size with shapes of everything; weights are inputs, so that none are made."""
    values = [
        helper.make_tensor_value_info(p.name, TensorProto.FLOAT, tuple(reversed(p.shape)) if p.transposed else p.shape)
        for p in network.parameters
    ]
    fixed = {"batch": batch, "sequence": TOKENS}
    inputs = [
        helper.make_tensor_value_info(name, kind, [fixed[a] if isinstance(a, str) else a for a in shape])
        for name, kind, shape in network.inputs
    ]
    graph = helper.make_graph(
        network.nodes,
        network.name,
        inputs + values,
        [helper.make_tensor_value_info(*o) for o in network.outputs],
        [numpy_helper.from_array(v, k) for k, v in network.constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    return shape_inference.infer_shapes(model, check_type=True, strict_mode=True, data_prop=True)


@cache
def shapes(name: str, batch: int = 1) -> dict[str, tuple[int | None, ...]]:
    graph = outline(NETWORKS[name](), batch).graph
    values = [*graph.input, *graph.value_info, *graph.output]
    known = {v.name: tuple(d.dim_value or None for d in v.type.tensor_type.shape.dim) for v in values}
    return known | {t.name: tuple(t.dims) for t in graph.initializer}


def macs(name: str) -> int:
    """Products of every Conv, Gemm and MatMul, from shapes alone."""
    known, total = shapes(name), 0
    for node in NETWORKS[name]().nodes:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            left, right, out = (known[n] for n in (node.input[0], node.input[1], node.output[0]))
            inner = math.prod(right[1:]) if node.op_type == "Conv" else left[-1]
            total += math.prod(out) * inner
    return total


@pytest.mark.parametrize("name", PARAMETERS)
def test_number_of_parameters_is_the_published_one(name: str) -> None:
    assert NETWORKS[name]().size == PARAMETERS[name]


def test_bert_without_pooler_lacks_just_the_pooler() -> None:
    assert bert_base("none").size == PARAMETERS["bert_base"] - (768 * 768 + 768) == 108_891_648


@pytest.mark.parametrize("name", [n for n in GIGAMACS if n != "bert_base"])
def test_number_of_operations_is_the_published_one(name: str) -> None:
    # The published figure has three decimals.
    assert macs(name) / 1e9 == pytest.approx(GIGAMACS[name], abs=0.0005)


def test_number_of_operations_of_bert_follows_from_its_sizes() -> None:
    dense = 12 * (4 * 768 * 768 + 2 * 768 * 3072) * TOKENS
    attention = 12 * 2 * TOKENS * TOKENS * 768
    assert macs("bert_base") == dense + attention + 768 * 768
    # The published one also counts what is not a product: softmax, normalization, GELU.
    assert macs("bert_base") / 1e9 == pytest.approx(GIGAMACS["bert_base"], rel=0.01)


@pytest.mark.parametrize("name", LAYERS)
def test_number_of_layers_is_the_published_one(name: str) -> None:
    network = NETWORKS[name]()
    weights = {p.name for p in network.parameters}
    kinds = Counter(n.op_type for n in network.nodes if len(n.input) > 1 and n.input[1] in weights)
    linear = kinds["Gemm"] + kinds["MatMul"]
    assert (kinds["Conv"], linear, kinds["BatchNormalization"] + kinds["LayerNormalization"]) == LAYERS[name]


@pytest.mark.parametrize("name", LAST_MAP)
@pytest.mark.parametrize("batch", [1, 3])
def test_images_become_maps_of_7_by_7_and_logits_for_any_batch(name: str, batch: int) -> None:
    known = shapes(name, batch)
    (pool,) = (n for n in NETWORKS[name]().nodes if n.op_type == "GlobalAveragePool")
    assert known[pool.input[0]] == (batch, LAST_MAP[name], 7, 7)
    assert known["logits"] == (batch, 1000)


def test_bert_gives_a_state_for_every_token_of_any_batch() -> None:
    known = shapes("bert_base", 3)
    assert known["last_hidden_state"] == (3, TOKENS, 768)
    assert known["pooler_output"] == (3, 768)


@pytest.mark.parametrize("name", NETWORKS)
def test_every_node_and_parameter_has_a_name_of_its_own(name: str) -> None:
    network = NETWORKS[name]()
    nodes = [n.name for n in network.nodes]
    assert all(nodes) and len(set(nodes)) == len(nodes)
    assert len({p.name for p in network.parameters}) == len(network.parameters)


def test_plain_normalisation_leaves_no_layer_normalisation_and_the_same_parameters() -> None:
    plain, short = bert_base(plain_normalisation=True), bert_base()
    assert not [n for n in plain.nodes if n.op_type == "LayerNormalization"]
    assert plain.parameters == short.parameters
    assert len(plain.nodes) == len(short.nodes) + 25 * 8


@pytest.fixture(scope="module")
def model() -> onnx.ModelProto:
    network = resnet18()
    return network.model(random_values(network))


def test_random_weights_keep_every_normalised_activation_near_unit_scale(model: onnx.ModelProto) -> None:
    norms = [n.output[0] for n in model.graph.node if n.op_type == "BatchNormalization"]
    ends = {f"layer{stage}.{block}.bn2:0" for stage in range(1, 5) for block in range(2)}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    watched.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in norms)
    session = ort.InferenceSession(watched.SerializeToString(), providers=["CPUExecutionProvider"])
    # Samples that the statistics were not taken of.
    seen = session.run(norms, next(samples(resnet18(), 2, seed=1)))
    deviation = {name: values.std() for name, values in zip(norms, seen, strict=True)}
    # gamma is about 1 and beta ± 0.3, at the end of a residual branch 0.3 and ± 0.3; images differ by a factor of 1.5.
    assert all(0.25 < deviation[n] < 1.0 for n in norms if n in ends), deviation
    assert all(0.6 < deviation[n] < 1.8 for n in norms if n not in ends), deviation


def test_random_statistics_are_of_data_and_not_neutral(model: onnx.ModelProto) -> None:
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    for node in (n for n in model.graph.node if n.op_type == "BatchNormalization"):
        gamma, _, mean, variance = (values[n] for n in node.input[1:])
        assert (variance > 0).all() and variance.std() / variance.mean() > 0.05
        assert np.abs(mean).max() > 0.05
        assert gamma.max() > 1.5 * gamma.min()


def test_random_network_tells_images_apart(model: onnx.ModelProto) -> None:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, next(samples(resnet18(), 8, seed=1)))
    assert np.isfinite(logits).all()
    assert len(set(logits.argmax(axis=1))) > 4
    assert logits.std(axis=0).mean() > 1


def test_random_weights_follow_the_seed() -> None:
    network = bert_base("none")
    few = [p for p in network.parameters if p.kind != "embedding" and math.prod(p.shape) < 600_000][:5]
    small = Network("small", network.inputs, network.outputs, (), tuple(few), {})
    first, again, other = random_values(small), random_values(small), random_values(small, seed=1)
    assert all(np.array_equal(first[p.name], again[p.name]) for p in few)
    assert not all(np.array_equal(first[p.name], other[p.name]) for p in few)


def test_samples_do_not_depend_on_the_batch() -> None:
    network = bert_base()
    one = list(samples(network, 5, batch=1, sequence=16))
    together = next(samples(network, 5, batch=8, sequence=16))
    for name, rows in together.items():
        assert rows.shape == (5, 16) and rows.dtype == np.int64
        assert np.array_equal(np.concatenate([feed[name] for feed in one]), rows)


def test_sentences_are_marked_as_bert_expects() -> None:
    feed = next(samples(bert_base(), 20, batch=20, sequence=32))
    tokens, mask, segments = feed["input_ids"], feed["attention_mask"], feed["token_type_ids"]
    assert (tokens[:, 0] == 101).all()
    assert ((tokens == 102).sum(axis=1) == 2).all()
    assert ((tokens > 0) == (mask == 1)).all()
    assert (np.diff(mask, axis=1) <= 0).all() and len(set(mask.sum(axis=1))) > 5
    assert (segments <= mask).all() and (segments.max(axis=1) == 1).all()
    assert tokens.min() >= 0 and tokens.max() < 30522


def test_neighbouring_pixels_of_an_image_are_alike_and_channels_agree() -> None:
    image = natural_image(np.random.default_rng(0), (3, 64, 64))
    assert image.shape == (3, 64, 64) and image.dtype == np.float32
    assert np.corrcoef(image[:, :, :-1].ravel(), image[:, :, 1:].ravel())[0, 1] > 0.7  # white noise: 0
    assert np.corrcoef(image[0].ravel(), image[1].ravel())[0, 1] > 0.5


def test_command_writes_network_and_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = tmp_path / "net.onnx", tmp_path / "data.npz"
    status = main(["mobilenet_v2", "-o", str(model), "--samples", "2", "--samples-out", str(data)])
    assert status == 0
    assert "3,504,872 parameters" in capsys.readouterr().out
    checker.check_model(onnx.load(model), full_check=True)
    with np.load(data) as arrays:
        (logits,) = ort.InferenceSession(model, providers=["CPUExecutionProvider"]).run(None, dict(arrays))
    assert logits.shape == (2, 1000)


def test_command_refuses_weights_that_are_missing_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = main(["resnet18", "-o", str(tmp_path / "net.onnx"), "--weights", str(tmp_path / "none.npz")])
    assert status == 2
    assert "none.npz cannot be read" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def little_bert() -> dict[bool, ort.InferenceSession]:
    """BERT of one layer and few words in both forms of its normalization, with the same weights."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bert, "WORDS", 200)
        little = dataclasses.replace(bert.BASE, layers=1)
        values = random_values(bert_base(size=little))
        protos = {plain: bert_base(plain_normalisation=plain, size=little).model(values) for plain in (False, True)}
    return {
        plain: ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
        for plain, proto in protos.items()
    }


def test_both_forms_of_normalisation_compute_the_same(little_bert: dict[bool, ort.InferenceSession]) -> None:
    rng = np.random.default_rng(0)
    feed = {
        "input_ids": rng.integers(0, 200, (2, 9)),
        "attention_mask": np.ones((2, 9), np.int64),
        "token_type_ids": rng.integers(0, 2, (2, 9)),
    }
    short, plain = (little_bert[form].run(None, feed) for form in (False, True))
    for one, other in zip(short, plain, strict=True):
        # Values of size one to four after about ten float32 roundings in another order.
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_a_sentence_is_the_mean_of_its_real_tokens_at_length_1(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bert, "WORDS", 200)
    little = bert.Size(1, 32, 2, 64)
    sentence, encoder = minilm_l6(size=little), bert_base("none", size=little)
    values = random_values(sentence)
    assert {p.name for p in sentence.parameters} == {p.name for p in encoder.parameters}
    real = np.arange(9) < np.array([[9], [4]])
    rng = np.random.default_rng(0)
    feed = {
        "input_ids": rng.integers(0, 200, (2, 9)),
        "attention_mask": real.astype(np.int64),
        "token_type_ids": np.zeros((2, 9), np.int64),
    }
    found, states = (
        ort.InferenceSession(n.model(values).SerializeToString(), providers=["CPUExecutionProvider"]).run(None, feed)[0]
        for n in (sentence, encoder)
    )
    mean = np.stack([states[i, real[i]].mean(axis=0) for i in range(2)])
    np.testing.assert_allclose(found, mean / np.linalg.norm(mean, axis=1, keepdims=True), rtol=0, atol=1e-6)


def test_masked_tokens_have_no_influence(little_bert: dict[bool, ort.InferenceSession]) -> None:
    tokens = np.random.default_rng(0).integers(0, 200, (1, 8))
    other = np.concatenate([tokens[:, :5], tokens[:, :3]], axis=1)
    rest = {"attention_mask": (np.arange(8) < 5).astype(np.int64)[None], "token_type_ids": np.zeros((1, 8), np.int64)}
    first, second = (little_bert[False].run(None, {"input_ids": ids, **rest})[0] for ids in (tokens, other))
    assert np.array_equal(first[:, :5], second[:, :5])
    assert not np.array_equal(first[:, 5:], second[:, 5:])
