"""Which kernels onnxruntime runs a model's layers with at its default level."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import onnx
from onnx.inliner import inline_local_functions

from onnxq.verify.bits import named_layers
from onnxq.verify.session import start_session
from onnxq.verify.source import ModelLike, read_model
from onnxq.verify.value_origin import Scope

INTEGER_KERNELS: Final = frozenset(
    {
        "ConvInteger",
        "DynamicQuantizeMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
        "MatMulNBits",
        "QGemm",
        "QLinearConv",
        "QLinearMatMul",
    }
)
"""Operators that take the weights as integers."""

# Layout changes of onnxruntime append this to the name of a node that they replace.
_REPLACED: Final = re.compile(r"_token_\d+$")


@dataclass(frozen=True)
class KernelCensus:
    """The optimized graph in numbers.

    Attributes:
        counts: operators, subgraphs included, and how often each occurs; most frequent first.
        integer: kernel on integers by layer name; see :func:`~onnxq.verify.bits.named_layers`.
    """

    counts: Mapping[str, int] = field(default_factory=dict)
    integer: Mapping[str, str] = field(default_factory=dict)


def take_census(model: ModelLike) -> KernelCensus:
    """Let onnxruntime optimize a model at its default level and count what it became.

    Layers are followed by node name, which onnxruntime keeps through most fusions; a layer that is
    lost is not in ``integer``. The census is empty where onnxruntime cannot build the graph.

    Args:
        model: path or proto.

    Raises:
        ModelError: the model cannot be read.
    """
    proto, folder = read_model(model, "quantised")
    named = onnx.ModelProto()
    named.CopyFrom(inline_local_functions(proto) if proto.functions else proto)
    for name, _, node in named_layers(Scope(named.graph)):
        node.name = name
    with TemporaryDirectory(prefix="onnxq-") as workplace:
        path = Path(workplace) / "optimised.onnx"
        try:
            start_session(named.SerializeToString(), optimized_model=path, weights_folder=folder)
            optimised = onnx.load(str(path), load_external_data=False)
        except Exception:  # a model that fails to load has its sentence in the level checks
            return KernelCensus()
    nodes = [node for _, node in Scope(optimised.graph).nodes()]
    counts = Counter(node.op_type for node in nodes)
    integer = {_REPLACED.sub("", node.name): node.op_type for node in nodes if node.op_type in INTEGER_KERNELS}
    return KernelCensus(dict(counts.most_common()), integer)
