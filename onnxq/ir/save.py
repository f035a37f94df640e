"""Writing a model: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs

from onnxq.errors import OutputError
from onnxq.ir.load import write_header
from onnxq.ir.model import Model
from onnxq.ir.order import subgraphs
from onnxq.ir.outline import Outline, outlined
from onnxq.ir.size import fits_one_message, large_weights, without_large_weights

# The IR version that introduced what an operator set may hold; a model must state at least this one.
IR_OF_OPSET = ((25, 13), (24, 12), (23, 11), (21, 10), (19, 9), (15, 8), (12, 7), (11, 6), (10, 5), (0, 4))


def to_proto(model: Model) -> onnx.ModelProto:
    """The model as a protobuf message with its header, names and metadata as they came."""
    return to_outline(model).filled()


def to_outline(model: Model) -> Outline:
    """The same message without its large constants, which are those of the graph."""
    with outlined(model.graph) as constants:
        proto: onnx.ModelProto = gs.export_onnx(model.graph, do_type_check=False)
    _drop_twins(proto.graph, set())
    proto.ir_version = next(ir for opset, ir in IR_OF_OPSET if model.opset >= opset)
    write_header(proto, model.header)
    return Outline(proto, constants)


def identity(model: Model) -> Iterator[bytes]:
    """Everything a model consists of, piece by piece, for one message holds 2 GiB at most."""
    proto = to_proto(model)
    yield without_large_weights(proto).SerializeToString(deterministic=True)
    yield from (tensor.SerializeToString(deterministic=True) for tensor in large_weights(proto))


def _drop_twins(graph: onnx.GraphProto, outer: set[str]) -> None:
    """Drop the copies of outer constants that onnx-graphsurgeon writes into every subgraph that reads them."""
    kept = [t for t in graph.initializer if t.name not in outer]
    if len(kept) < len(graph.initializer):
        kept = [onnx.TensorProto.FromString(t.SerializeToString()) for t in kept]
        del graph.initializer[:]
        graph.initializer.extend(kept)
    for node in graph.node:
        for subgraph in subgraphs(node):
            _drop_twins(subgraph, outer | {t.name for t in graph.initializer})


def check_writable(path: Path) -> None:
    """Fail now rather than after minutes of work when a result could not be written.

    Raises:
        OutputError: the folder is missing or not writable, or the path is a folder.
    """
    if path.is_dir():
        raise OutputError(f"output {path} is a folder; give the path of the file to write.")
    if not path.parent.is_dir():
        raise OutputError(f"output {path}: the folder {path.parent} does not exist; create it first.")
    try:
        handle, probe = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
        os.unlink(probe)
    except OSError as error:
        raise OutputError(f"output {path} cannot be written: {error.strerror}.") from error


def save(proto: onnx.ModelProto, path: Path) -> None:
    """Write a model so that the file appears complete or not at all.

    Weights of a model over 2 GiB go to a file of the same name with ``.data`` behind it.

    Args:
        proto: the model.
        path: of the file.

    Raises:
        OutputError: the disk is full, or the place cannot be written; nothing is left behind.
    """
    with _drafted(path) as draft:
        if fits_one_message(proto):
            _write(draft, proto.SerializeToString(deterministic=True))
        else:
            onnx.save(proto, draft, save_as_external_data=True, location=f"{path.name}.data")
            # Writing left references to the file in place of the weights.
            onnx.load_external_data_for_model(proto, str(draft.parent))
            if Path(f"{draft}.data").exists():  # small tensors stay in the message
                os.replace(f"{draft}.data", f"{path}.data")


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all (UTF-8).

    Raises:
        OutputError: the disk is full, or the place cannot be written.
    """
    with _drafted(path) as draft:
        _write(draft, text.encode())


@contextmanager
def _drafted(path: Path) -> Iterator[Path]:
    """A place beside a path to write a draft, which takes the path's name when the block ends well."""
    check_writable(path)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        try:
            yield draft
            os.replace(draft, path)
        except OSError as error:
            raise OutputError(
                f"output {path} could not be written: {error.strerror}; nothing was left behind."
            ) from error


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
