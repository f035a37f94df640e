"""The reference networks against torchvision, timm and transformers, wherever those are installed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from onnxq.models.catalogue import NETWORKS
from onnxq.models.samples import samples
from onnxq.models.state_dict import fit, read_state_dict

torch = pytest.importorskip("torch")

# Warnings of these packages about themselves are no matter here.
pytestmark = pytest.mark.filterwarnings("ignore")


def normalised_at_random(network: Any) -> Any:
    """The network ready for inference, its normalizations no longer neutral."""
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, 0.0, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2.0)
            torch.nn.init.uniform_(module.weight, 0.5, 1.0)
            torch.nn.init.normal_(module.bias, 0.0, 0.1)
    return network.eval()


def ours(name: str, published: Any, folder: Path, feed: dict[str, np.ndarray]) -> np.ndarray:
    """First output of our network with the published one's weights, which travel through a file."""
    path = folder / "weights.pth"
    torch.save(published.state_dict(), path)
    network = NETWORKS[name]()
    model = network.model(fit(network, read_state_dict(path)))
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feed)[0]


def check_images(name: str, published: Any, folder: Path) -> None:
    feed = next(samples(NETWORKS[name](), 2))
    with torch.no_grad():
        answer = normalised_at_random(published)(torch.from_numpy(feed["input"]))
    expected = getattr(answer, "logits", answer).numpy()
    # A hundred layers of float32 in two implementations.
    np.testing.assert_allclose(ours(name, published, folder, feed), expected, rtol=0, atol=1e-5 * np.ptp(expected))


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "resnet101", "mobilenet_v2"])
def test_torchvision_gives_the_same_logits(name: str, tmp_path: Path) -> None:
    torchvision = pytest.importorskip("torchvision")
    check_images(name, getattr(torchvision.models, name)(), tmp_path)


@pytest.mark.parametrize(("name", "published"), [("resnet50", "resnet50"), ("mobilenet_v2", "mobilenetv2_100")])
def test_timm_gives_the_same_logits(name: str, published: str, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    check_images(name, timm.create_model(published, pretrained=False), tmp_path)


def test_resnet_of_transformers_gives_the_same_logits(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    network = transformers.ResNetForImageClassification(transformers.ResNetConfig(num_labels=1000))
    check_images("resnet50", network, tmp_path)


@pytest.mark.parametrize(
    ("name", "published"), [("bert_base", "BertModel"), ("bert_base_qa", "BertForQuestionAnswering")]
)
def test_bert_of_transformers_gives_the_same_answers(name: str, published: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    network = getattr(transformers, published)(transformers.BertConfig()).eval()
    feed = next(samples(NETWORKS[name](), 2, sequence=16))
    with torch.no_grad():
        expected = network(**{key: torch.from_numpy(value) for key, value in feed.items()})[0].numpy()
    kept = feed["attention_mask"].astype(bool)
    found = ours(name, network, tmp_path, feed)
    # Twelve layers of float32 in two implementations.
    np.testing.assert_allclose(found[kept], expected[kept], rtol=0, atol=1e-5 * np.ptp(expected))
