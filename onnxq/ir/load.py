"""Reading an ONNX model into the form the passes work on: the only door by which a model comes in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx
import onnx_graphsurgeon as gs
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
from onnx import checker, inliner, numpy_helper, shape_inference
from onnx.external_data_helper import uses_external_data

from onnxq.errors import ModelError, OnnxqError, UnsupportedError
from onnxq.ir.beyond import hide, name_standard_domain, show
from onnxq.ir.half_to_float import widen_half_floats
from onnxq.ir.header import read_header, without_foreign_types, write_header
from onnxq.ir.model import Model
from onnxq.ir.opset import raise_opset
from onnxq.ir.size import large_weights, without_large_weights
from onnxq.ir.sparse import make_dense
from onnxq.ir.surgeon import detach_constants, import_graph
from onnxq.ir.topological_sort import sort_nodes

OLDEST_OPSET, NEWEST_OPSET = 9, 27
UNREAD = "onnxq.unread"
"""Domain of nodes whose shapes are not to be inferred, for as long as that takes."""
OVERRIDABLE_IR = 4
"""First IR version in which an initializer that is listed as an input is a default that the caller may override."""


def load(source: str | Path | onnx.ModelProto, *, minimum_opset: int = 13) -> Model:
    """Read a model, inline its functions, widen half floats, and raise its opset where needed.

    Args:
        source: path of a ``.onnx`` file (external data beside it is read too) or a model in memory,
            which is not changed.
        minimum_opset: the operator set that the result needs (13 for 8-bit per-channel weights,
            21 for 4-bit and 16-bit types). An older model is converted; a newer one stays as it is.

    Raises:
        ModelError: the file is missing, truncated, not ONNX, or breaks the standard.
        UnsupportedError: its operator set is too old, too new, or cannot be raised.
    """
    proto = onnx.ModelProto()
    if isinstance(source, onnx.ModelProto):
        _require_own_weights(source)
        proto.CopyFrom(source)
        name = "the model"
    else:
        name = str(source)
        proto = _parse(Path(source))
    with _understood(name):
        return _read(proto, minimum_opset, name)


def _read(proto: onnx.ModelProto, minimum_opset: int, name: str) -> Model:
    """The model in a message that is the caller's own."""
    name_standard_domain(proto)
    _check_opset(proto, name)
    sort_nodes(proto.graph)
    beyond = hide(proto, _opset(proto))
    _check(proto, name)
    if proto.functions:
        proto = inliner.inline_local_functions(proto)
    make_dense(proto.graph)
    half = widen_half_floats(proto)
    _name_nodes(proto.graph)
    if proto.ir_version < OVERRIDABLE_IR:
        _unlist_defaults(proto)
    proto = _raise_opset(proto, minimum_opset, name)
    header = read_header(proto)
    _infer_shapes(proto)
    if beyond:
        show(proto)
    without_foreign_types(proto.graph)
    graph = import_graph(proto)
    _restore_overridable(graph, proto.graph)
    detach_constants(graph)
    return Model(graph=graph, header=replace(header, half=half))


def _require_own_weights(proto: onnx.ModelProto) -> None:
    """Refuse a model in memory whose weights are in files: nobody says in which folder."""
    apart = next((t for t in proto.graph.initializer if uses_external_data(t)), None)
    if apart is not None:
        raise ModelError(
            f"the model keeps its weights in other files ({apart.name!r} among them); load them with "
            "onnx.load_external_data_for_model, or give the path of the model instead."
        )


@contextmanager
def _understood(name: str) -> Iterator[None]:
    """Say of a model that it is damaged, whatever the libraries that read it raise."""
    try:
        yield
    except (OnnxqError, MemoryError):
        raise
    except Exception as error:  # each library has kinds of its own, RuntimeError and KeyError among them
        reason = " ".join(f"{type(error).__name__}: {error}".split("\n")[0].split())
        raise ModelError(f"{name} is damaged or breaks the ONNX standard ({reason[:300]}); export it again.") from error


def _infer_shapes(proto: onnx.ModelProto) -> None:
    """Add the shapes that can be inferred, in place; large weights are not copied for it.

    onnx misreads the shape that a ConvTranspose gives its output, so it sees no such node.
    """
    light = without_large_weights(proto)
    for node in light.graph.node:
        if node.op_type == "ConvTranspose" and any(a.name == "output_shape" for a in node.attribute):
            node.domain = UNREAD
    light.opset_import.add(domain=UNREAD, version=1)
    inferred = shape_inference.infer_shapes(light, data_prop=True)
    for node, plain in zip(inferred.graph.node, proto.graph.node, strict=True):
        node.domain = plain.domain
    for field in ("node", "output", "value_info"):
        proto.graph.ClearField(field)
        getattr(proto.graph, field).extend(getattr(inferred.graph, field))


def _unlist_defaults(proto: onnx.ModelProto) -> None:
    """Bring an old model, which lists all its initializers as inputs, to the IR version that tells them apart."""
    constants = {t.name for t in proto.graph.initializer}
    inputs = [value for value in proto.graph.input if value.name not in constants]
    del proto.graph.input[:]
    proto.graph.input.extend(inputs)
    proto.ir_version = OVERRIDABLE_IR


def _restore_overridable(graph: gs.Graph, source: onnx.GraphProto) -> None:
    """Put initializers that are listed as inputs back among the inputs, where onnx-graphsurgeon leaves them out."""
    defaults = {t.name: t for t in source.initializer}
    if any(value.name in defaults for value in source.input):
        known = {t.name: t for t in (*graph.inputs, *graph.tensors().values())}
        for name in defaults.keys() - known.keys():
            known[name] = gs.Constant(name, numpy_helper.to_array(defaults[name]))
        graph.inputs = [known[value.name] for value in source.input]


def _parse(path: Path) -> onnx.ModelProto:
    try:
        if not path.is_file():
            kind = "is a folder, not a file" if path.is_dir() else "does not exist"
            raise ModelError(f"model {path} {kind}; give the path of an .onnx file.")
        if path.stat().st_size == 0:
            raise ModelError(f"model {path} is empty; export it again.")
        proto = onnx.load(path, format="protobuf", load_external_data=False)
    except DecodeError as error:
        raise ModelError(f"model {path} is not an ONNX file, or it is truncated; export it again.") from error
    except OSError as error:
        raise ModelError(f"model {path} cannot be read: {error.strerror or error}.") from error
    if not proto.graph.node or not proto.opset_import:
        raise ModelError(f"model {path} is not an ONNX model: it holds no graph.")
    try:
        onnx.load_external_data_for_model(proto, str(path.parent))
    except (OSError, ValueError, checker.ValidationError) as error:
        reason = str(error).split("\n")[0]
        raise ModelError(
            f"model {path}: its external data cannot be read ({reason}); keep the data files beside it."
        ) from error
    return proto


def _opset(proto: onnx.ModelProto) -> int:
    return max((int(i.version) for i in proto.opset_import if i.domain in ("", "ai.onnx")), default=0)


def _check_opset(proto: onnx.ModelProto, name: str) -> None:
    opset = _opset(proto)
    if not OLDEST_OPSET <= opset <= NEWEST_OPSET:
        found = f"opset {opset}" if opset else "no standard operator set"
        raise UnsupportedError(
            f"{name} uses {found}; onnxq reads opsets {OLDEST_OPSET} to {NEWEST_OPSET}: export it with one of them."
        )


def _check(proto: onnx.ModelProto, name: str) -> None:
    try:
        checker.check_model(without_large_weights(proto))
        for tensor in large_weights(proto):  # one by one, for the checker copies twice what it is given
            checker.check_tensor(tensor)
    except checker.ValidationError as error:
        reason = " ".join(str(error).split("\n")[0].split())
        if "Field 'shape'" in reason:  # an output of unknown rank, which runtimes accept
            return
        raise ModelError(f"{name} breaks the ONNX standard: {reason}") from error


def _name_nodes(graph: onnx.GraphProto) -> None:
    """Give each node a name of its own: layers are known by it from here to the report."""
    given = {node.name for node in graph.node}
    taken: set[str] = set()
    for index, node in enumerate(graph.node):
        if not node.name or node.name in taken:
            name = f"{node.name or node.op_type}_{index}"
            while name in given or name in taken:
                name = f"{name}_{index}"
            node.name = name
        taken.add(node.name)


def _raise_opset(proto: onnx.ModelProto, minimum: int, name: str) -> onnx.ModelProto:
    opset = _opset(proto)
    if opset >= minimum:
        return proto
    header = read_header(proto)
    raised = raise_opset(proto, opset, minimum, name)
    write_header(raised, header)
    _name_nodes(raised.graph)
    return raised
