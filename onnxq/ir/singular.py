"""Tensors that must not be rounded because of what reads them: a divisor, an argument of a logarithm or a root.

Rounding makes small numbers 0, and a quotient, a reciprocal, a logarithm or a negative power of 0 is infinite; it makes
a small difference negative, and a root of that is not a number. From each such argument the graph is followed back to
where a zero can no longer come from: a sum with a positive constant, a lower limit, an exponential.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_graphsurgeon as gs

from onnxq.ir.constant import is_plain
from onnxq.ir.layer import LAYER_OPS
from onnxq.ir.model import Model
from onnxq.ir.operators import STANDARD, Trait, operators_with

FIRM = 1e-3
"""A positive constant from which on it keeps a sum from being small; a smaller one only keeps it from being 0."""

ROOTS = operators_with(Trait.LIMITED)
"""Operators without a value beyond a limit, which rounding may overstep."""

APART = operators_with(Trait.STOPS_ZERO)
"""Operators behind which nothing that rounding does to their argument makes a zero."""

REDUCING = operators_with(Trait.REDUCES, Trait.AVERAGES)
"""Operators that take many numbers together."""

HANDING_ON = REDUCING | operators_with(Trait.MOVES, Trait.PICKS, Trait.PARTS, Trait.CONVERTS)
"""Those, and operators that hand numbers on."""

CARRIERS = HANDING_ON | operators_with(Trait.STAYS_SMALL, Trait.LIMITS, Trait.PADS, Trait.AFFINE)
"""Operators that make a small number of small numbers, or hand numbers on."""

SIGNLESS = operators_with(Trait.NOT_NEGATIVE)
"""Operators whose results are not negative."""

KEEPING_SIGN = HANDING_ON | operators_with(Trait.KEEPS_SIGN)
"""Operators whose results are not negative where none of their operands is."""


@dataclass(frozen=True)
class Singularities:
    """What hangs on operators that are not defined everywhere.

    Attributes:
        exact: tensors that must not be rounded, and why.
        exposed: names of nodes whose argument nothing keeps from the place where they have no value.
        layers: names of layers whose outputs those arguments are made of.
    """

    exact: dict[str, str] = field(default_factory=dict)
    exposed: tuple[str, ...] = ()
    layers: tuple[str, ...] = ()


def find_singularities(model: Model) -> Singularities:
    """The tensors of a prepared model's main graph that must not be rounded."""
    exact: dict[str, str] = {}
    exposed: list[str] = []
    layers: dict[str, None] = {}
    for node in model.graph.nodes:
        for tensor, zero, what in _arguments(node):
            walk = _Walk(zero)
            walk.follow(tensor, guarded=False)
            reason = f"not quantised: {node.name} ({node.op}) {what}, which must not be rounded"
            for name in walk.found:
                exact.setdefault(name, reason)
            if walk.exposed:
                exposed.append(node.name)
                layers |= dict.fromkeys(walk.layers)
    return Singularities(exact, tuple(exposed), tuple(layers))


def _arguments(node: gs.Node) -> Iterator[tuple[gs.Tensor, bool, str]]:
    """Computed arguments for which a node may have no value: the tensor, whether 0 is the danger, and in words."""
    if node.domain not in STANDARD:
        return
    if node.op == "Div" and _computed(node.inputs[1]) and _is_float(node):
        yield node.inputs[1], True, "divides by what is made of it"
    elif node.op == "Reciprocal":
        yield node.inputs[0], True, "divides by what is made of it"
    elif node.op in ("Log", "ReduceLogSum"):
        yield node.inputs[0], True, "takes the logarithm of what is made of it"
    elif node.op in ROOTS:
        yield node.inputs[0], False, "has values only within limits"
    elif node.op == "Pow":
        exponent = node.inputs[1]
        powers = np.asarray(exponent.values, np.float64) if is_plain(exponent) else np.array([-1.0])
        if (powers < 0).any():
            yield node.inputs[0], True, "takes a negative power of what is made of it"
        elif (powers != np.round(powers)).any():
            yield node.inputs[0], False, "takes a root of what is made of it"


class _Walk:
    """The way back from one argument."""

    def __init__(self, zero: bool) -> None:
        self._zero = zero
        self._seen: dict[int, bool] = {}
        self.found: list[str] = []
        self.layers: list[str] = []
        self.exposed = False

    def follow(self, tensor: gs.Tensor, *, guarded: bool) -> None:
        """Everything before a tensor that must be exact; guarded where a zero, but not a small number, is ruled out."""
        waiting = [(tensor, guarded)]
        while waiting:
            at, safe = waiting.pop()
            known = self._seen.get(id(at))
            if isinstance(at, gs.Constant) or not at.name or known is False or known is safe:
                continue
            self._seen[id(at)] = safe
            if known is None:
                self.found.append(str(at.name))
            if not at.inputs:  # an input of the graph
                self.exposed |= not safe
                continue
            waiting += self._before(at.inputs[0], safe)

    def _before(self, node: gs.Node, safe: bool) -> list[tuple[gs.Tensor, bool]]:
        """Where to go on behind what a node makes."""
        if node.domain not in STANDARD or node.op in APART:
            self.exposed |= node.op not in APART and not safe
            return []
        if node.op in LAYER_OPS or node.op not in CARRIERS:
            self.layers += [node.name] if node.op in LAYER_OPS else []
            self.exposed |= not safe
            return []
        if not self._zero and not_negative(node.outputs[0]):
            return []
        guard = _least(node) if self._zero else 0.0
        if guard >= FIRM or ((safe or guard > 0) and (node.op in REDUCING or node.op == "Einsum")):
            return []
        operands = node.inputs[1:] if node.op == "Where" else node.inputs
        return [(t, safe or guard > 0) for t in operands if t.dtype is None or np.dtype(t.dtype).kind == "f"]


def _least(node: gs.Node) -> float:
    """The positive constant below which a node's result cannot fall; 0 where there is none."""
    if node.op == "Add":
        for constant, other in (node.inputs, node.inputs[::-1]):
            if _lowest(constant) > 0 and not_negative(other):
                return _lowest(constant)
    if node.op == "Max":
        return max(0.0, *(_lowest(t) for t in node.inputs))
    if node.op == "Clip" and len(node.inputs) > 1:
        return max(0.0, _lowest(node.inputs[1]))
    return 0.0


def not_negative(tensor: gs.Tensor, depth: int = 24) -> bool:
    """Whether what makes a tensor makes nothing negative, whatever it is made of."""
    if isinstance(tensor, gs.Constant):
        return _lowest(tensor) >= 0
    if not tensor.inputs or depth == 0:
        return False
    node = tensor.inputs[0]
    if node.domain not in STANDARD:
        return False
    if node.op in SIGNLESS or _is_square(node):
        return True
    if node.op == "Clip" and len(node.inputs) > 1 and _lowest(node.inputs[1]) >= 0:
        return True
    if node.op == "Max":
        return any(not_negative(t, depth - 1) for t in node.inputs)
    operands = [t for t in node.inputs if t.dtype is None or np.dtype(t.dtype).kind == "f"]
    return node.op in KEEPING_SIGN and bool(operands) and all(not_negative(t, depth - 1) for t in operands)


def _is_square(node: gs.Node) -> bool:
    if node.op == "Mul":
        return node.inputs[0] is node.inputs[1]
    if node.op == "Pow" and is_plain(node.inputs[1]):
        powers = np.asarray(node.inputs[1].values, np.float64)
        return bool((powers % 2 == 0).all())
    return False


def _lowest(tensor: gs.Tensor) -> float:
    """The smallest value of a constant; minus infinity of anything else."""
    if not is_plain(tensor) or 0 in tensor.shape:
        return -math.inf
    return float(np.asarray(tensor.values, np.float64).min())


def _computed(tensor: gs.Tensor) -> bool:
    return not isinstance(tensor, gs.Constant)


def _is_float(node: gs.Node) -> bool:
    kinds = [t.dtype for t in (*node.inputs, *node.outputs) if t.dtype is not None]
    return all(np.dtype(kind).kind == "f" for kind in kinds)
