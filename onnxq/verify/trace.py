"""Where in a model an optimization level of onnxruntime first goes another way than the unoptimized graph.

Giving out inner tensors beside the outputs would change what is fused and hide the fault. So the model is cut off
behind one tensor at a time, and the cut model is run at both levels: everything before the cut is fused as it is in the
whole model, but for what would have joined at the cut. Between the inputs and a wrong output the cuts are bisected; as
branches need not go wrong in one order, the tensors that the found one is made of are then looked at too, and the
search goes on from any that is wrong. What it ends with is a tensor that is wrong although all it is made of is right.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from onnxq.verify.cut import Cutter
from onnxq.verify.findings import FirstDifference
from onnxq.verify.levels import deviation
from onnxq.verify.session import LEVELS, reason, start_session
from onnxq.verify.source import Feed, ModelLike, describe, read_model, serialized

TOLERANCE = 0.05
"""Root mean square of a difference, relative to the tensor, from which on it is a fault."""

_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
_PAIR = ("QuantizeLinear", "DequantizeLinear")


def first_difference(
    model: ModelLike, feeds: Iterable[Feed], level: str, *, tolerance: float = TOLERANCE
) -> FirstDifference | None:
    """The first tensor that a level computes otherwise than the unoptimized graph, or cannot compute at all.

    Args:
        model: path or proto.
        feeds: a few batches, ``{input: array}``; all are held.
        level: one of :data:`~onnxq.verify.session.LEVELS`; of the lowest only what fails is found.
        tolerance: relative root mean square from which on a tensor counts as different.

    Returns:
        None where every output is alike when it is computed alone.

    Raises:
        ModelError: the model cannot be read.
    """
    proto, folder = read_model(model, "quantised")
    search = _Search(proto, folder, list(feeds), level, tolerance, describe(model, "quantised"))
    wrong = next((o.name for o in proto.graph.output if o.name in search.maker and search.judge(o.name).wrong), None)
    if wrong is None:
        return None
    tensor = search.first(wrong)
    verdict, node, origin = search.judge(tensor), search.maker[tensor], search.maker[search.origin(tensor)]
    return FirstDifference(
        level=level,
        tensor=tensor,
        node=node.name or node.output[0],
        op=node.op_type,
        computed_by=origin.name or origin.output[0],
        computed_by_op=origin.op_type,
        relative_rms=verdict.relative_rms,
        error=verdict.error,
    )


def unoptimized_values(model: onnx.ModelProto, tensors: Sequence[str], feed: Feed) -> dict[str, NDArray[Any]]:
    """Inner tensors of a model as its unoptimized graph computes them, where nothing is fused.

    Args:
        model: in memory.
        tensors: names of tensors of the main graph.
        feed: one batch, ``{input: array}``.
    """
    open_ = onnx.ModelProto()
    open_.CopyFrom(model)
    known = {o.name for o in model.graph.output}
    open_.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(tensors) if name not in known)
    session = start_session(serialized(open_, "the quantised model"), LEVELS[0])
    return dict(zip(tensors, session.run(list(tensors), dict(feed)), strict=True))


@dataclass(frozen=True)
class _Verdict:
    """What a cut came to."""

    wrong: bool
    relative_rms: float | None = None
    error: str | None = None


class _Search:
    """A model with its cuts."""

    def __init__(
        self,
        proto: onnx.ModelProto,
        folder: Any,
        feeds: Sequence[Feed],
        level: str,
        tolerance: float,
        label: str,
    ) -> None:
        self._proto, self._folder, self._feeds = proto, folder, feeds
        self._level, self._tolerance, self._label = level, tolerance, label
        self._cutter = Cutter(proto)
        self.maker = self._cutter.maker
        self._judged = _computed_floats(proto, self._cutter)
        self._known: dict[str, _Verdict] = {}

    def first(self, tensor: str) -> str:
        """The first wrong tensor before a wrong one, or that one itself."""
        while True:
            line = [name for name in self._cutter.before(tensor) if name in self._judged and name != tensor] + [tensor]
            low, high = -1, len(line) - 1
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (low, middle) if self.judge(line[middle]).wrong else (middle, high)
            found = line[high]
            wrong = next((name for name in self._made_of(found) if self.judge(name).wrong), None)
            if wrong is None:
                return found
            tensor = wrong

    def origin(self, tensor: str) -> str:
        """The tensor behind which only Q/DQ pairs lead to this one."""
        while self.maker[tensor].op_type in _PAIR and self.maker[tensor].input[0] in self.maker:
            tensor = self.maker[tensor].input[0]
        return tensor

    def judge(self, tensor: str) -> _Verdict:
        """The model cut off behind a tensor, at the level and unoptimized."""
        if tensor not in self._known:
            self._known[tensor] = self._judge(tensor)
        return self._known[tensor]

    def _judge(self, tensor: str) -> _Verdict:
        cut = serialized(self._cutter.cut(tensor), self._label)
        made: dict[str, list[NDArray[Any]]] = {}
        for level in dict.fromkeys((LEVELS[0], self._level)):
            try:
                session = start_session(cut, level, weights_folder=self._folder)
                made[level] = [session.run([tensor], dict(feed))[0] for feed in self._feeds]
            except Exception as error:  # whatever onnxruntime raises is the finding
                return _Verdict(level == self._level, error=reason(error))
        exact, found = made[LEVELS[0]], made[self._level]
        relative = deviation(exact, found) if all(map(_comparable, exact, found)) else np.inf
        return _Verdict(bool(relative > self._tolerance), float(relative))

    def _made_of(self, tensor: str) -> list[str]:
        """The nearest judged tensors that a tensor is made of."""
        found: list[str] = []
        waiting = [tensor]
        while waiting:
            for name in self._cutter.reads(self.maker[waiting.pop()]):
                if name in self._judged:
                    found.append(name)
                elif name in self.maker:
                    waiting.append(name)
        return found


def _comparable(exact: NDArray[Any], found: NDArray[Any]) -> bool:
    return exact.shape == found.shape and bool((np.isfinite(exact) == np.isfinite(found)).all())


def _computed_floats(proto: onnx.ModelProto, cutter: Cutter) -> set[str]:
    """Floating-point tensors of the main graph that depend on its inputs."""
    live = cutter.live()
    try:
        typed = onnx.shape_inference.infer_shapes(proto).graph
    except Exception:  # a model that is broken enough: its outputs alone are judged
        return set()
    return {v.name for v in typed.value_info if v.name in live and v.type.tensor_type.elem_type in _FLOATS}
