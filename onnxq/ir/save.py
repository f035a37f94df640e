"""Writing a model: whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from onnxq.errors import OutputError
from onnxq.ir.external_weights import Outline, outline_of
from onnxq.ir.header import write_header
from onnxq.ir.model import Model
from onnxq.ir.size import fits_one_message, large_weights, without_large_weights
from onnxq.ir.whole_file import replaced_whole


def to_proto(model: Model) -> onnx.ModelProto:
    """The model as a protobuf message with its header, names and metadata as they came."""
    return to_outline(model).filled()


def to_outline(model: Model) -> Outline:
    """The same message without its large constants, which are those of the graph."""
    outline = outline_of(model.graph)
    write_header(outline.proto, model.header)
    return outline


def identity(model: Model) -> Iterator[bytes]:
    """Everything a model consists of, piece by piece, for one message holds 2 GiB at most."""
    proto = to_proto(model)
    yield without_large_weights(proto).SerializeToString(deterministic=True)
    yield from (tensor.SerializeToString(deterministic=True) for tensor in large_weights(proto))


def check_writable(path: Path) -> None:
    """Fail now rather than after minutes of work when a result could not be written.

    Raises:
        OutputError: the folder is missing or not writable, or the path is a folder.
    """
    if path.is_dir():
        raise OutputError(f"output {path} is a folder; give the path of the file to write.")
    if path.exists() and not path.is_file():
        raise OutputError(f"output {path} is a device or a pipe, not a file; give the path of the file to write.")
    if path.is_symlink():
        path = behind_links(path)
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
    path = behind_links(path)
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
    with _drafted(behind_links(path)) as draft:
        _write(draft, text.encode())


def behind_links(path: Path) -> Path:
    """The file that a path means: that which a symbolic link points to, whether it is there yet or not."""
    return Path(os.path.realpath(path)) if path.is_symlink() else path


@contextmanager
def _drafted(path: Path) -> Iterator[Path]:
    """A place beside a path to write a draft, which takes the path's name when the block ends well."""
    check_writable(path)
    try:
        with replaced_whole(path) as draft:
            yield draft
    except OSError as error:
        raise OutputError(f"output {path} could not be written: {error.strerror}; nothing was left behind.") from error


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
