"""A network's architecture, apart from the values of its weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

OPSET, IR_VERSION = 17, 8
"""The first operator set with LayerNormalization, and the IR version that came with it: both load in old runtimes."""

Kind = Literal["convolution", "linear", "embedding", "bias", "gamma", "last_gamma", "beta", "mean", "variance"]
Axis = int | str
"""Size of an axis, or the name of one that is free."""


@dataclass(frozen=True)
class Parameter:
    """A tensor that is learnt, or measured in training.

    Attributes:
        name: as torchvision names it in its state dicts, for BERT as transformers does.
        shape: in the state dict.
        kind: what it does; ``last_gamma`` ends a residual branch; ``mean`` and ``variance`` are a batch
            normalization's running statistics.
        transposed: the graph holds it with its two axes swapped, as the right operand of a MatMul.
    """

    name: str
    shape: tuple[int, ...]
    kind: Kind
    transposed: bool = False

    @property
    def learnt(self) -> bool:
        """Whether it counts as a parameter in published counts."""
        return self.kind not in ("mean", "variance")


@dataclass(frozen=True)
class Network:
    """An architecture as an ONNX graph whose weights are still to be given.

    Attributes:
        name: of the network.
        inputs: name, ONNX element type and shape of each; the first axis is the batch and free.
        outputs: likewise.
        nodes: in graph order, named after the modules of the published code.
        parameters: in graph order.
        constants: values that belong to the architecture, such as bounds of a clip.
    """

    name: str
    inputs: tuple[tuple[str, int, tuple[Axis, ...]], ...]
    outputs: tuple[tuple[str, int, tuple[Axis, ...]], ...]
    nodes: tuple[onnx.NodeProto, ...]
    parameters: tuple[Parameter, ...]
    constants: Mapping[str, NDArray[Any]]

    @property
    def size(self) -> int:
        """Number of learnt values, as publications count them."""
        return sum(math.prod(p.shape) for p in self.parameters if p.learnt)

    def model(self, values: Mapping[str, NDArray[Any]]) -> onnx.ModelProto:
        """The network with weights.

        Args:
            values: float32 by parameter name, in the parameter's shape; what else it holds is not read.
        """
        tensors = [numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        for parameter in self.parameters:
            value = values[parameter.name]
            assert value.shape == parameter.shape and value.dtype == np.float32, parameter.name
            stored = np.ascontiguousarray(value.T) if parameter.transposed else value
            tensors.append(numpy_helper.from_array(stored, parameter.name))
        return helper.make_model(
            helper.make_graph(
                self.nodes,
                self.name,
                [helper.make_tensor_value_info(*i) for i in self.inputs],
                [helper.make_tensor_value_info(*o) for o in self.outputs],
                tensors,
            ),
            opset_imports=[helper.make_opsetid("", OPSET)],
            ir_version=IR_VERSION,
            producer_name="onnxq.models",
        )


class Writer:
    """Writes down an architecture node by node.

    Example:
        >>> writer = Writer()
        >>> weight = writer.parameter("fc.weight", (10, 4), "linear")
        >>> writer.node("Gemm", "fc", ["x", weight], transB=1)
        'fc:0'
    """

    def __init__(self) -> None:
        self._nodes: list[onnx.NodeProto] = []
        self._parameters: list[Parameter] = []
        self._constants: dict[str, NDArray[Any]] = {}

    def parameter(self, name: str, shape: tuple[int, ...], kind: Kind, *, transposed: bool = False) -> str:
        """Declare a parameter; returns its name."""
        self._parameters.append(Parameter(name, shape, kind, transposed))
        return name

    def constant(self, name: str, value: float | Sequence[int]) -> str:
        """State a float32 scalar, or int64 numbers; returns the name. The same value may be stated twice under it."""
        array = np.array(value, np.float32 if isinstance(value, float) else np.int64)
        assert name not in self._constants or np.array_equal(self._constants[name], array), name
        self._constants[name] = array
        return name

    def node(self, op: str, name: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        """Add a node; returns its output, ``name:0`` unless told otherwise."""
        output = output or f"{name}:0"
        self._nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        return output

    def finish(
        self,
        name: str,
        inputs: Sequence[tuple[str, int, tuple[Axis, ...]]],
        outputs: Sequence[tuple[str, int, tuple[Axis, ...]]],
    ) -> Network:
        """The network that was written."""
        return Network(
            name, tuple(inputs), tuple(outputs), tuple(self._nodes), tuple(self._parameters), dict(self._constants)
        )
