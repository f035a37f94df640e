"""An ONNX graph as a differentiable function.

The graph is read once into a program; running it walks the nodes in order, as in JAX's guide to custom
interpreters (https://docs.jax.dev/en/latest/notebooks/Writing_custom_interpreters_in_Jax.html). Weights
come in as arguments. Shapes are static, and whatever depends on shapes and integer constants alone is
computed with numpy while tracing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

# Importing a family enters its operators in the registry.
from onnxq.errors import UnsupportedError
from onnxq.jax_graph import (  # noqa: F401
    convolution,
    elementwise,
    matrix,
    normalization,
    pooling,
    reduction,
    resampling,
    shape,
)
from onnxq.jax_graph.registry import Array, Operator, find_operator, is_static

Arrays = Mapping[str, Array]
Read = Callable[[Array | None], Array]
Replace = Callable[[Array], Array]


@dataclass(frozen=True)
class Hooks:
    """Values put in place of a program's own while it runs.

    Attributes:
        reads: what one node reads in place of a tensor, by the tensor's and the node's name; called with
            None for a parameter that was not given.
        makes: what everybody reads in place of a tensor that a node makes, by the tensor's name.
    """

    reads: Mapping[tuple[str, str], Read] = field(default_factory=dict)
    makes: Mapping[str, Replace] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A node ready to run: its operator, operands, results and attributes."""

    name: str
    op: str
    operator: Operator
    reads: tuple[str, ...]
    makes: tuple[str, ...]
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Program:
    """A graph as a function.

    Attributes:
        inputs: names of the tensors to be given.
        outputs: names of the graph's outputs.
        parameters: floating-point constants of more than one element, to be given as arguments.
        constants: everything else that is known while tracing: integers, single numbers, shapes.
        steps: nodes in order.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: Mapping[str, NDArray[np.generic]]
    constants: Mapping[str, NDArray[np.generic]]
    steps: tuple[Step, ...]

    def run(
        self,
        parameters: Arrays,
        inputs: Arrays,
        hooks: Hooks | None = None,
        *,
        outputs: Sequence[str] | None = None,
        cuts: Collection[str] | None = None,
    ) -> dict[str, Array]:
        """Tensors by name.

        Args:
            parameters: values for :attr:`parameters`.
            inputs: values for :attr:`inputs`.
            hooks: values to put in place of the program's own.
            outputs: which tensors to give back; the graph's outputs when None.
            cuts: names of nodes behind which the program is cut. The backward pass keeps only what
                crosses a cut and computes the rest again; it keeps everything when None.

        Raises:
            UnsupportedError: an operand that must be known while tracing is not.
        """
        wanted = tuple(self.outputs if outputs is None else outputs)
        known = dict(self.constants)
        live: dict[str, Array] = {**parameters, **inputs}
        for steps, kept in self._segments(wanted, cuts):
            segment = _Segment(steps, kept, known, hooks or Hooks())
            reads = {name for step in steps for name in step.reads}
            operands = {name: value for name, value in live.items() if name in reads}
            live |= (segment if cuts is None else jax.checkpoint(segment))(operands)
        return {name: live[name] if name in live else known[name] for name in wanted}

    def shapes(self, inputs: Arrays) -> dict[str, jax.ShapeDtypeStruct]:
        """Shape and type of every tensor that is not known while tracing, for inputs of these shapes."""
        made = [name for step in self.steps for name in step.makes]
        found: dict[str, jax.ShapeDtypeStruct] = jax.eval_shape(
            lambda given: self.run(self.parameters, given, outputs=made), dict(inputs)
        )
        return found

    def crossing(self, cuts: Collection[str]) -> frozenset[str]:
        """Names of the tensors that are kept for the backward pass when the program is cut there."""
        return frozenset(name for _, kept in self._segments(self.outputs, cuts) for name in kept)

    def _segments(
        self, wanted: Sequence[str], cuts: Collection[str] | None
    ) -> Iterable[tuple[tuple[Step, ...], frozenset[str]]]:
        """The steps between the cuts, and which of their results are read behind them."""
        segments: list[list[Step]] = [[]]
        for step in self.steps:
            segments[-1].append(step)
            if cuts is not None and step.name in cuts:
                segments.append([])
        later = set(wanted)
        found = []
        for segment in reversed(segments):
            makes = {name for step in segment for name in step.makes}
            found.append((tuple(segment), frozenset(makes & later)))
            later |= {name for step in segment for name in step.reads}
        return reversed(found)


@dataclass(frozen=True, eq=False)
class _Segment:
    """Consecutive steps as a function of the traced tensors that they read; adds to ``known`` on the way."""

    steps: tuple[Step, ...]
    kept: frozenset[str]
    known: dict[str, NDArray[np.generic]]
    hooks: Hooks

    def __call__(self, operands: dict[str, Array]) -> dict[str, Array]:
        values = dict(operands)
        for step in self.steps:
            for name, value in zip(step.makes, self._results(step, values), strict=False):
                if name in self.hooks.makes:
                    value = self.hooks.makes[name](value)
                if is_static(value):
                    self.known[name] = np.asarray(value)
                else:
                    values[name] = value
        return {name: values[name] for name in self.kept if name in values}

    def _results(self, step: Step, values: Mapping[str, Array]) -> tuple[Array, ...]:
        operands = []
        for index, name in enumerate(step.reads):
            value = values[name] if name in values else self.known.get(name)
            if (name, step.name) in self.hooks.reads:
                value = self.hooks.reads[name, step.name](value)
            if index in step.operator.static and value is not None and not is_static(value):
                raise UnsupportedError(
                    f"node {step.name} ({step.op}) cannot be differentiated: its operand {name} depends on the data, "
                    "but has to be a constant or follow from shapes."
                )
            operands.append(value)
        made = step.operator.function(*operands, **step.attributes)
        return made if isinstance(made, tuple) else (made,)


@dataclass(frozen=True)
class Lacking:
    """A node that the interpreter cannot run.

    Attributes:
        node: its name.
        op: its operator, with the domain where it is not the standard one.
        opset: the version of the operator set.
        detail: the attribute or output in the way; empty when it is the operator itself.
    """

    node: str
    op: str
    opset: int
    detail: str

    def __str__(self) -> str:
        return f"{self.node} ({self.op} of opset {self.opset}{', ' if self.detail else ''}{self.detail})"


def unsupported(model: onnx.ModelProto) -> tuple[Lacking, ...]:
    """Every node of a model that the interpreter cannot run; empty when it can run them all."""
    opset = _opset(model)
    lacking = []
    for node in model.graph.node:
        found = find_operator(node.op_type, opset) if node.domain in ("", "ai.onnx") else None
        op = node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"
        if found is None:
            lacking.append(Lacking(_name(node), op, opset, ""))
            continue
        refusal = found.refusal(_attributes(node), sum(bool(name) for name in node.output))
        if refusal:
            lacking.append(Lacking(_name(node), op, opset, refusal))
    return tuple(lacking)


def read_program(model: onnx.ModelProto) -> Program:
    """A model as a program.

    Raises:
        UnsupportedError: it has nodes that the interpreter cannot run; names them all.
    """
    lacking = unsupported(model)
    if lacking:
        raise UnsupportedError(
            "the network cannot be differentiated, because these nodes have no JAX form: "
            f"{'; '.join(map(str, lacking))}."
        )
    opset = _opset(model)
    steps = tuple(_step(node, opset) for node in model.graph.node)
    fixed = {step.reads[i] for step in steps for i in step.operator.static if i < len(step.reads)}
    held = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    parameters = {
        name: value
        for name, value in held.items()
        if np.issubdtype(value.dtype, np.floating) and value.size > 1 and name not in fixed
    }
    return Program(
        inputs=tuple(i.name for i in model.graph.input if i.name not in held),
        outputs=tuple(o.name for o in model.graph.output),
        parameters=parameters,
        constants={name: value for name, value in held.items() if name not in parameters},
        steps=steps,
    )


def _step(node: onnx.NodeProto, opset: int) -> Step:
    found = find_operator(node.op_type, opset)
    assert found is not None
    attributes = _attributes(node)
    if "outputs" in found.attributes:
        attributes["outputs"] = len(node.output)
    return Step(_name(node), node.op_type, found, tuple(node.input), tuple(node.output), attributes)


def _name(node: onnx.NodeProto) -> str:
    return node.name or next((name for name in node.output if name), node.op_type)


def _opset(model: onnx.ModelProto) -> int:
    return max((i.version for i in model.opset_import if i.domain in ("", "ai.onnx")), default=1)


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """Attributes as Python values: text as str, tensors as arrays, lists as tuples."""
    return {a.name: _plain(helper.get_attribute_value(a)) for a in node.attribute}


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    if isinstance(value, onnx.TensorProto):
        return numpy_helper.to_array(value)
    return tuple(_plain(v) for v in value) if isinstance(value, (list, tuple)) else value
