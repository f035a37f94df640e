"""Small graphs drawn at random over the operators that onnxq meets, with samples and options.

A graph grows from its inputs by one operator at a time, each applied to tensors that are there already, so branches,
shared tensors and shared weights come about by themselves. Shapes are tracked without the axis of samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, checker, helper, numpy_helper

from onnxq.config import Config

OPSETS = (9, 10, 11, 12, 13, 15, 17, 18, 19, 21, 22, 23, 24, 25, 26)
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A random graph with what it is quantized on.

    Attributes:
        model: float.
        samples: one array an input, first axis samples.
        config: bits and options, drawn too.
    """

    model: onnx.ModelProto
    samples: dict[str, np.ndarray]
    config: Config

    def __repr__(self) -> str:
        """The graph as text: what one wants to read of a counterexample."""
        graph = onnx.GraphProto()
        graph.CopyFrom(self.model.graph)
        del graph.initializer[:]
        facts = [f"{t.name}{list(t.dims)}" for t in self.model.graph.initializer]
        opset = self.model.opset_import[0].version
        bits = f"w{self.config.weights}a{self.config.activations} edges {self.config.edge_bits}"
        options = f"{bits} {self.config.container} {self.config.mode} equalise={self.config.equalise}"
        return f"opset {opset}, {options}\n{', '.join(facts)}\n{onnx.printer.to_text(graph)}"


def random_case(random: Random) -> Case:
    """A graph of one to a dozen nodes with at least one layer, its samples, and options."""
    grower = _Grower(random)
    for _ in range(random.randint(1, 9)):
        grower.grow()
    return Case(grower.model(), grower.samples(), _config(random))


def _config(random: Random) -> Config:
    weights = random.choice((8, 8, 8, 7, 6, 5, 4, 4, 3, 2))
    return Config(
        weights=weights,  # type: ignore[arg-type]
        activations=random.choice((8, 8, 8, 4, 16, 32)),  # type: ignore[arg-type]
        edge_bits=random.choice((8, "same")),  # type: ignore[arg-type]
        container=random.choice(("auto", "auto", "int8")),  # type: ignore[arg-type]
        mode=random.choice(("sequential", "sequential", "sequential", "parallel")),  # type: ignore[arg-type]
        equalise=random.random() < 0.8,
        second_order=random.random() < 0.5,
    )


def sizes_are_misread(model: onnx.ModelProto) -> bool:
    """Whether a node is there whose shape onnx infers wrongly: the output_shape of a ConvTranspose lacks two axes."""
    return any(a.name == "output_shape" for node in model.graph.node for a in node.attribute)


class _Grower:
    """A graph under construction."""

    def __init__(self, random: Random) -> None:
        self._random = random
        self._numbers = np.random.default_rng(random.randint(0, 2**32 - 1))
        self._opset = random.choice(OPSETS)
        self._nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, np.ndarray] = {}
        self._shapes: dict[str, Shape] = {}
        self._read: set[str] = set()
        self._batch = random.choice((None, None, None, 2))
        self._inputs: list[str] = []
        for _ in range(random.choice((1, 1, 1, 2))):
            self._inputs.append(name := f"x{len(self._inputs)}")
            self._shapes[name] = self._input_shape()
        self._layer(self._inputs[0])

    def _input_shape(self) -> Shape:
        channels = self._random.choice((1, 2, 3, 4, 6))
        kind = self._random.choice(("image", "image", "image", "signal", "volume", "vector", "tokens"))
        axes = {"image": 2, "signal": 1, "volume": 3}.get(kind)
        if axes:
            return (channels, *(self._random.randint(4, 8 if axes < 3 else 5) for _ in range(axes)))
        return (2 * channels,) if kind == "vector" else (self._random.randint(2, 6), 2 * channels)

    def samples(self) -> dict[str, np.ndarray]:
        """Normal samples with an offset and a size of their own."""
        count = 2 * self._random.randint(2, 8)
        scale, offset = self._random.choice((1.0, 1.0, 0.01, 30.0)), self._random.choice((0.0, 0.0, 1.0))
        return {n: self._normal(count, *self._shapes[n]) * np.float32(scale) + np.float32(offset) for n in self._inputs}

    def model(self) -> onnx.ModelProto:
        """The graph, its outputs what nothing reads and sometimes more."""
        made = [n for n in self._shapes if n not in self._inputs]
        outputs = [n for n in made if n not in self._read]
        if self._random.random() < 0.3:
            outputs += [n for n in self._random.sample(made, 1) if n not in outputs]
        batch: int | str = self._batch or "N"
        known = self._random.random() < 0.8
        graph = helper.make_graph(
            self._nodes,
            "random",
            [helper.make_tensor_value_info(n, TensorProto.FLOAT, (batch, *self._shapes[n])) for n in self._inputs],
            [
                helper.make_tensor_value_info(
                    n, TensorProto.FLOAT, (batch, *(s if known else f"{n}_{i}" for i, s in enumerate(self._shapes[n])))
                )
                for n in outputs
            ],
            [numpy_helper.from_array(v, k) for k, v in self._constants.items()],
        )
        opsets = [helper.make_opsetid("", self._opset)]
        model = helper.make_model(
            graph, opset_imports=opsets, ir_version=max(4, helper.find_min_ir_version_for(opsets))
        )
        checker.check_model(model, full_check=not sizes_are_misread(model))
        return model

    def grow(self) -> None:
        """One more operator, or a few that belong together."""
        source = self._random.choice(list(self._shapes))
        steps: list[Callable[[str], None]] = [*[self._layer] * 4, *[self._activation] * 2]
        steps += [self._norm, self._pair, self._concat, self._split, self._move, self._scale]
        if len(self._shapes[source]) > 1:
            steps += [self._softmax, self._flatten]
        if len(self._shapes[source]) in (2, 3) and self._random.random() < 0.3:
            steps += [self._product]
        if self._is_image(source):
            steps += [self._pool, self._pad, self._resize]
        self._random.choice(steps)(source)

    def _is_image(self, name: str) -> bool:
        """Whether a tensor is channels and one to three axes (tokens count too)."""
        return 2 <= len(self._shapes[name]) <= 4

    def _normal(self, *shape: int) -> np.ndarray:
        return self._numbers.standard_normal(shape).astype(np.float32)

    def _constant(self, value: np.ndarray) -> str:
        """A constant; now and then one that is there already and has the shape."""
        like = [
            n for n, v in self._constants.items() if v.shape == value.shape and v.dtype == value.dtype == np.float32
        ]
        if like and value.ndim and self._random.random() < 0.3:
            return self._random.choice(like)
        name = f"k{len(self._constants)}"
        self._constants[name] = value
        return name

    def _fixed(self, *values: float, dtype: type = np.int64) -> str:
        """A constant of just these values."""
        name = f"k{len(self._constants)}"
        self._constants[name] = np.array(values, dtype)
        return name

    def _add(self, op: str, inputs: Sequence[str], *shapes: Shape, **attributes: Any) -> str:
        names = [f"t{len(self._shapes) + i}" for i in range(len(shapes))]
        self._nodes.append(helper.make_node(op, list(inputs), names, names[0], **attributes))
        self._shapes.update(zip(names, shapes, strict=True))
        self._read.update(inputs)
        return names[0]

    # Layers.

    def _layer(self, x: str) -> None:
        shape = self._shapes[x]
        if len(shape) == 1:
            self._random.choice((self._gemm, self._gemm, self._matmul))(x)
        elif len(shape) == 2:
            self._random.choice((self._conv, self._transposed, self._matmul))(x)
        elif len(shape) in (3, 4):
            self._random.choice((self._conv, self._conv, self._transposed))(x)

    def _conv(self, x: str) -> None:
        channels, *sizes = self._shapes[x]
        groups = self._random.choice([g for g in (1, 1, 2, 3, channels) if channels % g == 0])
        outputs = groups * self._random.randint(1, 3)
        kernel, strides, dilations, begins, ends = [], [], [], [], []
        auto = self._random.choice(("", "", "", "SAME_UPPER", "SAME_LOWER", "VALID"))
        for size in sizes:
            k, dilation = self._random.randint(1, min(3, size)), self._random.choice((1, 1, 2))
            if (k - 1) * dilation + 1 > size or auto.startswith("SAME"):
                dilation = 1
            kernel.append(k)
            dilations.append(dilation)
            strides.append(self._random.choice((1, 1, 2)))
            begins.append(self._random.randint(0, k - 1))
            ends.append(self._random.randint(0, k - 1))
        spans = list(zip(sizes, kernel, strides, dilations, begins, ends, strict=True))
        if auto.startswith("SAME"):
            made = [-(-n // s) for n, _, s, *_ in spans]
            padding: dict[str, Any] = {"auto_pad": auto}
        elif auto == "VALID":
            made = [(n - (k - 1) * d - 1) // s + 1 for n, k, s, d, *_ in spans]
            padding = {"auto_pad": auto}
        else:
            made = [(n + b + e - (k - 1) * d - 1) // s + 1 for n, k, s, d, b, e in spans]
            padding = {"pads": [*begins, *ends]}
        inputs = [x, self._weight(outputs, channels // groups, *kernel)]
        if self._random.random() < 0.6:
            inputs.append(self._constant(0.2 * self._normal(outputs)))
        named = {"kernel_shape": kernel} if self._random.random() < 0.5 else {}
        attributes = {"strides": strides, "dilations": dilations, "group": groups, **padding, **named}
        self._add("Conv", inputs, (outputs, *made), **attributes)

    def _transposed(self, x: str) -> None:
        channels, *sizes = self._shapes[x]
        groups = self._random.choice([g for g in (1, 1, 2, channels) if channels % g == 0])
        each = self._random.randint(1, 3)
        kernel, strides, dilations, begins, ends, extras = [], [], [], [], [], []
        for _ in sizes:
            k, s, d = self._random.randint(1, 3), self._random.choice((1, 2, 2, 3)), self._random.choice((1, 1, 2))
            kernel.append(k)
            strides.append(s)
            dilations.append(d)
            reach = (k - 1) * d + 1
            begins.append(self._random.randint(0, reach - 1))
            ends.append(self._random.randint(0, min(1, reach - 1)))
            extras.append(self._random.randint(0, max(0, s - 1)))
        spans = list(zip(sizes, kernel, strides, dilations, begins, ends, extras, strict=True))
        made = [(n - 1) * s + (k - 1) * d + 1 + extra - b - e for n, k, s, d, b, e, extra in spans]
        padding: dict[str, Any] = {"pads": [*begins, *ends], "output_padding": extras}
        form = self._random.choice(("", "", "SAME_UPPER", "SAME_LOWER", "output_shape"))
        if form.startswith("SAME") and all((k - 1) * d + 1 >= s for _, k, s, d, *_ in spans):
            made, padding = [n * s for n, _, s, *_ in spans], {"auto_pad": form}
        elif form == "output_shape":
            padding = {"output_shape": made, "output_padding": extras}
        if min(made) < 1:
            return self._conv(x)
        inputs = [x, self._weight(channels, each, *kernel, inputs=channels // groups)]
        if self._random.random() < 0.6:
            inputs.append(self._constant(0.2 * self._normal(each * groups)))
        attributes = {"strides": strides, "dilations": dilations, "group": groups, **padding}
        self._add("ConvTranspose", inputs, (each * groups, *made), **attributes)
        return None

    def _weight(self, *shape: int, inputs: int | None = None) -> str:
        """Normal weights that keep the size of what they multiply, sometimes with an odd channel."""
        taps = (shape[1] if inputs is None else inputs) * math.prod(shape[2:])
        values = self._normal(*shape) / np.float32(np.sqrt(max(taps, 1)))
        if self._random.random() < 0.15:
            values[self._random.randint(0, shape[0] - 1)] *= self._random.choice((0.0, 1e-7, 100.0))
        return self._constant(values.astype(np.float32))

    def _gemm(self, x: str) -> None:
        (inputs,) = self._shapes[x]
        outputs = self._random.randint(1, 8)
        attributes: dict[str, Any] = {}
        values = self._normal(inputs, outputs) / np.float32(np.sqrt(inputs))
        if self._random.random() < 0.5:
            attributes["transB"], values = 1, np.ascontiguousarray(values.T)
        for name in ("alpha", "beta"):
            if self._random.random() < 0.2:
                attributes[name] = self._random.choice((0.5, 2.0, -1.0))
        operands = [x, self._constant(values)]
        bias = self._random.choice((None, (outputs,), (outputs,), (1, outputs), ()))
        if bias is not None or self._opset < 11:
            operands.append(self._constant(np.asarray(0.2 * self._normal(*(bias or ())), np.float32)))
        self._add("Gemm", operands, (outputs,), **attributes)

    def _matmul(self, x: str) -> None:
        *lead, inputs = self._shapes[x]
        outputs = self._random.randint(1, 8)
        y = self._add(
            "MatMul", [x, self._constant(self._normal(inputs, outputs) / np.float32(np.sqrt(inputs)))], (*lead, outputs)
        )
        if self._random.random() < 0.5:
            bias = self._constant(0.2 * self._normal(outputs))
            self._add("Add", self._random.choice(([y, bias], [bias, y])), (*lead, outputs))

    def _product(self, x: str) -> None:
        *lead, rows, columns = self._shapes[x]
        order = [0, *range(1, len(lead) + 1), len(lead) + 2, len(lead) + 1]
        t = self._add("Transpose", [x], (*lead, columns, rows), perm=order)
        self._add("MatMul", self._random.choice(([x, t],)), (*lead, rows, rows))

    # What stands between layers.

    def _activation(self, x: str) -> None:
        shape = self._shapes[x]
        kinds = ["Relu", "Relu", "Clip", "LeakyRelu", "Sigmoid", "PRelu", "Tanh", "Elu", "Identity", "HardSigmoid"]
        kinds += ["HardSwish"] * (self._opset >= 14) + ["Gelu"] * (self._opset >= 20)
        kind = self._random.choice(kinds)
        if kind == "Clip":
            low, high = self._random.choice(((0.0, 6.0), (0.0, 1.0), (-1.0, 1.0), (-0.5, 3.0)))
            if self._opset < 11:
                self._add("Clip", [x], shape, min=low, max=high)
            else:
                bounds = [self._scalar(low), self._scalar(high)]
                self._add("Clip", [x, *self._random.choice((bounds, bounds[:1], ["", bounds[1]]))], shape)
        elif kind == "PRelu":
            slope = self._constant(np.abs(self._normal(shape[0], *(1 for _ in shape[1:]))) * np.float32(0.3))
            self._add("PRelu", [x, slope], shape)
        else:
            self._add(kind, [x], shape)

    def _scalar(self, value: float) -> str:
        name = f"k{len(self._constants)}"
        self._constants[name] = np.array(value, np.float32)
        return name

    def _norm(self, x: str) -> None:
        shape = self._shapes[x]
        if self._opset >= 17 and self._random.random() < 0.4:
            width = shape[-1]
            self._add(
                "LayerNormalization",
                [x, self._constant(1 + 0.2 * self._normal(width)), self._constant(0.2 * self._normal(width))],
                shape,
                axis=-1,
            )
            return
        channels = shape[0]
        names = [
            self._constant(1 + 0.3 * self._normal(channels)),
            self._constant(0.2 * self._normal(channels)),
            self._constant(0.2 * self._normal(channels)),
        ]
        variance = self._fixed(*(0.3 + np.abs(self._normal(channels))), dtype=np.float32)
        self._add("BatchNormalization", [x, *names, variance], shape)

    def _pair(self, x: str) -> None:
        """A sum, difference or product with another tensor of the shape, itself, or a constant."""
        shape = self._shapes[x]
        others = [n for n, s in self._shapes.items() if s == shape]
        other = self._random.choice(others)
        if self._random.random() < 0.3:
            other = self._constant(self._normal(shape[0], *(1 for _ in shape[1:])))
        operands = [x, other] if self._random.random() < 0.5 else [other, x]
        self._add(self._random.choice(("Add", "Add", "Mul", "Sub")), operands, shape)

    def _scale(self, x: str) -> None:
        self._add(
            self._random.choice(("Mul", "Add", "Div")),
            [x, self._scalar(self._random.choice((0.5, 3.0)))],
            self._shapes[x],
        )

    def _concat(self, x: str) -> None:
        first, *rest = self._shapes[x]
        others = [n for n, s in self._shapes.items() if s[1:] == tuple(rest) and s[0] + first <= 16]
        if others:
            other = self._random.choice(others)
            self._add("Concat", [x, other], (first + self._shapes[other][0], *rest), axis=1)

    def _split(self, x: str) -> None:
        first, *rest = self._shapes[x]
        if first < 2:
            return
        cut = self._random.randint(1, first - 1)
        shapes = [(cut, *rest), (first - cut, *rest)]
        if self._opset < 13:
            self._add("Split", [x], *shapes, axis=1, split=[cut, first - cut])
        else:
            self._add("Split", [x, self._fixed(cut, first - cut)], *shapes, axis=1)

    def _move(self, x: str) -> None:
        """Transpose, Reshape, Slice or a Squeeze and Unsqueeze."""
        shape = self._shapes[x]
        kind = self._random.choice(("transpose", "reshape", "slice"))
        if kind == "transpose" and len(shape) > 1:
            order = self._random.sample(range(len(shape)), len(shape))
            self._add("Transpose", [x], tuple(shape[i] for i in order), perm=[0, *(i + 1 for i in order)])
        elif kind == "reshape" and 1 < len(shape) < 5:
            made = (
                (shape[0], math.prod(shape[1:])) if self._random.random() < 0.5 else (math.prod(shape[:2]), *shape[2:])
            )
            first = self._random.choice((-1, 0))
            self._add("Reshape", [x, self._fixed(first, *made)], made)
        elif kind == "slice" and shape[-1] > 2:
            axis = len(shape)
            if self._opset < 10:
                self._add("Slice", [x], (*shape[:-1], shape[-1] - 1), axes=[axis], starts=[1], ends=[shape[-1]])
            else:
                operands = [x, self._fixed(1), self._fixed(shape[-1]), self._fixed(axis)]
                self._add("Slice", operands, (*shape[:-1], shape[-1] - 1))

    def _flatten(self, x: str) -> None:
        if math.prod(self._shapes[x]) <= 256:
            self._add("Flatten", [x], (math.prod(self._shapes[x]),), axis=1)

    def _softmax(self, x: str) -> None:
        axis = -1 if self._opset >= 13 else len(self._shapes[x])
        self._add("Softmax", [x], self._shapes[x], axis=axis)

    def _pool(self, x: str) -> None:
        channels, *sizes = self._shapes[x]
        kind = self._random.choice(("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean"))
        if kind == "ReduceMean":
            axes = list(range(2, 2 + len(sizes)))
            if self._opset < 18:
                self._add(kind, [x], (channels, *(1 for _ in sizes)), axes=axes, keepdims=1)
            else:
                self._add(kind, [x, self._fixed(*axes)], (channels, *(1 for _ in sizes)), keepdims=1)
        elif kind.startswith("Global"):
            self._add(kind, [x], (channels, *(1 for _ in sizes)))
        else:
            kernel = [self._random.randint(1, min(3, n)) for n in sizes]
            strides = [self._random.choice((1, 2)) for _ in sizes]
            pads = [self._random.randint(0, k // 2) for k in kernel]
            made = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(sizes, kernel, strides, pads, strict=True)]
            extra = {"count_include_pad": self._random.choice((0, 1))} if kind == "AveragePool" else {}
            self._add(kind, [x], (channels, *made), kernel_shape=kernel, strides=strides, pads=pads * 2, **extra)

    def _pad(self, x: str) -> None:
        channels, *sizes = self._shapes[x]
        mode = self._random.choice(("constant", "constant", "reflect", "edge"))
        begins = [self._random.randint(0, 1) for _ in sizes]
        ends = [self._random.randint(0, 1) for _ in sizes]
        if mode == "reflect" and min(sizes) < 3:
            mode = "edge"
        made = (channels, *(n + b + e for n, b, e in zip(sizes, begins, ends, strict=True)))
        amounts = [0, 0, *begins, 0, 0, *ends]
        value = self._random.choice((0.0, 0.0, 0.5))
        if self._opset < 11:
            self._add("Pad", [x], made, mode=mode, pads=amounts, value=value)
        else:
            operands = [x, self._fixed(*amounts)] + ([self._scalar(value)] if mode == "constant" else [])
            self._add("Pad", operands, made, mode=mode)

    def _resize(self, x: str) -> None:
        channels, *sizes = self._shapes[x]
        factors = [self._random.choice((1, 2)) for _ in sizes]
        made = (channels, *(n * f for n, f in zip(sizes, factors, strict=True)))
        if math.prod(made) > 1000:
            return
        scales = self._fixed(1, 1, *factors, dtype=np.float32)
        mode = "linear" if len(sizes) == 2 and self._random.random() < 0.4 else "nearest"
        if self._opset == 9:
            self._add("Upsample", [x, scales], made, mode=mode)
        elif self._opset == 10:
            self._add("Resize", [x, scales], made, mode=mode)
        else:
            roi = self._fixed(dtype=np.float32) if self._opset < 13 else ""
            self._add("Resize", [x, roi, scales], made, mode=mode)
