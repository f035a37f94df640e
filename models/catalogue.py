"""The reference networks by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType

from onnxq.models.bert import bert_base, minilm_l6
from onnxq.models.mobilenet import mobilenet_v2
from onnxq.models.network import Network
from onnxq.models.resnet import resnet18, resnet50, resnet101

NETWORKS: Mapping[str, Callable[[], Network]] = MappingProxyType(
    {
        "resnet18": resnet18,
        "resnet50": resnet50,
        "resnet101": resnet101,
        "mobilenet_v2": mobilenet_v2,
        "bert_base": bert_base,
        "bert_base_qa": partial(bert_base, "question_answering"),
        "minilm_l6": minilm_l6,
    }
)
"""Makers of the architectures; ``bert_base`` has a pooler, ``bert_base_qa`` the head for question answering,
and ``minilm_l6`` gives sentence embeddings."""
