"""A model as it was handed over: what it is called, how large it is, how to feed it and start it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from onnxq.errors import CalibrationError, ModelError
from onnxq.verify.selection import not_comparable
from onnxq.verify.session import DEFAULT_LEVEL, reason, start_session

ModelLike: TypeAlias = str | Path | onnx.ModelProto
Feed: TypeAlias = Mapping[str, NDArray[Any]]


@dataclass(frozen=True)
class ModelSource:
    """A readable model and its interface, without its weights.

    Attributes:
        label: the model in the words of an error message.
        location: path, or the serialized model; what onnxruntime starts from.
        size: bytes, external data included.
        inputs: names that a feed may hold.
        required: names that a feed must hold (the others have a default).
        outputs: names, in graph order.
        numbers: those that may hold numbers: all but tensors of text.
        not_comparable: those that a quantized model may answer otherwise without a fault, and why.
    """

    label: str
    location: str | bytes
    size: int
    inputs: tuple[str, ...]
    required: tuple[str, ...]
    outputs: tuple[str, ...]
    numbers: frozenset[str] = frozenset()
    not_comparable: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, model: ModelLike, role: str) -> ModelSource:
        """Look at a model without starting it.

        Args:
            model: path or proto.
            role: ``float`` or ``quantized``, for messages.

        Raises:
            ModelError: there is no such file, it is not an ONNX model, or its external data are missing.
        """
        proto, folder = read_model(model, role)
        label = describe(model, role)
        defaults = {tensor.name for tensor in proto.graph.initializer}
        inputs, outputs = (tuple(v.name for v in values) for values in (proto.graph.input, proto.graph.output))
        if isinstance(model, onnx.ModelProto):
            location: str | bytes = serialized(proto, label)
            size = len(location)
        else:
            location = str(model)
            size = Path(model).stat().st_size + _external_bytes(proto, folder, label)
        return cls(
            label=label,
            location=location,
            size=size,
            inputs=inputs,
            required=tuple(name for name in inputs if name not in defaults),
            outputs=outputs,
            numbers=frozenset(v.name for v in proto.graph.output if _may_hold_numbers(v.type)),
            not_comparable={n: why for n, why in not_comparable(proto.graph).items() if n in outputs},
        )

    def fit(self, feed: Feed) -> Feed:
        """A feed whose names are the model's inputs, as arrays.

        Raises:
            CalibrationError: an input is missing, or a name is not an input.
        """
        missing = sorted(set(self.required) - set(feed))
        unknown = sorted(set(feed) - set(self.inputs))
        if missing or unknown:
            raise CalibrationError(
                f"a feed holds {sorted(feed)} where {self.label} takes {sorted(self.inputs)}"
                f" (missing: {missing or 'none'}, unknown: {unknown or 'none'}); name the arrays after the inputs"
            )
        return {name: np.asarray(array) for name, array in feed.items()}

    def batch_size(self, feed: Feed) -> int:
        """Samples in a feed: the first axis of the first input that has axes, otherwise 1."""
        shapes = [np.shape(feed[name]) for name in self.inputs if name in feed]
        return next((shape[0] for shape in shapes if shape), 1)

    def start(self, level: str = DEFAULT_LEVEL, *, threads: int = 0) -> Any:
        """An onnxruntime session of this model; see :func:`~onnxq.verify.session.start_session`."""
        return start_session(self.location, level, threads=threads)


def describe(model: ModelLike, role: str) -> str:
    """A model in the words of an error message."""
    return f"the {role} model" if isinstance(model, onnx.ModelProto) else f"the {role} model {str(model)!r}"


def read_model(model: ModelLike, role: str) -> tuple[onnx.ModelProto, Path | None]:
    """The model, external data not loaded, and the folder that such data lie in (None for a proto).

    Raises:
        ModelError: there is no such file, it is not an ONNX model, or a proto's weights lie elsewhere.
    """
    label = describe(model, role)
    if isinstance(model, onnx.ModelProto):
        proto, folder = model, None
        if any(uses_external_data(tensor) for tensor in _tensors(model)):
            raise ModelError(f"{label} keeps weights in external files; load them or hand over its path instead")
    else:
        folder = Path(model).parent
        if not Path(model).is_file():
            raise ModelError(f"{label} is not a file; check the path")
        try:
            proto = onnx.load(str(model), load_external_data=False)
        except Exception as error:  # the parser has its own error types
            raise ModelError(f"{label} cannot be read as ONNX ({reason(error)}); export it again") from error
    if not proto.graph.output:
        raise ModelError(f"{label} has no graph outputs; it is not an ONNX model or holds nothing to compare")
    return proto, folder


def serialized(proto: onnx.ModelProto, label: str) -> bytes:
    """The proto's bytes.

    Raises:
        ModelError: it is larger than the 2 GiB that the format allows.
    """
    try:
        data: bytes = proto.SerializeToString()
        return data
    except Exception as error:  # the serialiser has its own error types
        raise ModelError(
            f"{label} cannot be serialised ({reason(error)}); save it with external data and hand over its path"
        ) from error


def _may_hold_numbers(kind: onnx.TypeProto) -> bool:
    return not (kind.HasField("tensor_type") and kind.tensor_type.elem_type == onnx.TensorProto.STRING)


def _external_bytes(proto: onnx.ModelProto, folder: Path | None, label: str) -> int:
    """Bytes of the files that hold the model's external data, each counted once."""
    files = {ExternalDataInfo(tensor).location for tensor in _tensors(proto) if uses_external_data(tensor)}
    total = 0
    for name in sorted(files):
        path = (folder or Path()) / name
        if not path.is_file():
            raise ModelError(f"{label} keeps weights in {str(path)!r}, which is not there; put it beside the model")
        total += path.stat().st_size
    return total


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor: initializers and attributes, of all subgraphs and functions."""
    yield from _graph_tensors(proto.graph)
    for function in proto.functions:
        yield from _node_tensors(function.node)


def _graph_tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _node_tensors(graph.node)


def _node_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _graph_tensors(graph)
