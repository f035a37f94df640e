"""What is in a model before anything is done to it: layers, shapes, work, and the bits they would get."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, TypeAlias

import numpy as np
import onnx

from onnxq.data import Feed
from onnxq.data.feed import Signature
from onnxq.ir.activation_matmul import Product
from onnxq.ir.floats import told
from onnxq.ir.layer import Layer
from onnxq.ir.model import Model, Remark
from onnxq.ir.save import to_proto
from onnxq.ir.tensor import TensorInfo
from onnxq.plan.values import Plan

Shape: TypeAlias = tuple[int | None, ...] | None

NO_FEED: Feed = MappingProxyType({})

LARGEST_OPERAND = 1024
"""Elements of a float constant above which shape inference does without its values: it is a weight."""


@dataclass(frozen=True)
class LayerFacts:
    """A layer and what is planned for it.

    Attributes:
        name: of its node.
        op: operator of its node.
        input_shape, output_shape: for one sample, or for the batch that the model insists on; None in
            place of an axis, or as a whole, that depends on something else.
        weight_shape: shape of the weights as stored.
        parameters: number of weights, the bias not counted.
        macs: multiply-accumulate operations for one sample; None where the shapes leave it open.
        weight_bits: planned bits of the weights.
        activation_bits: planned bits of the input; 32 is float.
        edge: whether it is a first or a last layer.
    """

    name: str
    op: str
    input_shape: Shape
    weight_shape: tuple[int, ...]
    output_shape: Shape
    parameters: int
    macs: int | None
    weight_bits: int
    activation_bits: int
    edge: bool


@dataclass(frozen=True)
class Inspection:
    """What a quantization would start from.

    Attributes:
        opset: operator set of the model as it will be written.
        inputs: inputs of the model.
        outputs: outputs of the model.
        layers: what is known of each layer, in graph order.
        left_in_float: what will not be quantized or not be rewritten, and why.
        products: names of the products of two activations whose operands get 8 bits.
        tables: bits of the tables that rows are looked up in, by node name.
    """

    opset: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    layers: tuple[LayerFacts, ...]
    left_in_float: tuple[Remark, ...]
    products: tuple[str, ...] = ()
    tables: Mapping[str, int] = field(default_factory=dict)

    @property
    def parameters(self) -> int:
        """Weights of all layers."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int | None:
        """Multiply-accumulate operations of all layers for one sample; None where one of them is open."""
        known = [layer.macs for layer in self.layers if layer.macs is not None]
        return sum(known) if len(known) == len(self.layers) else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {
            "opset": self.opset,
            "inputs": {i.name: {"dtype": i.dtype.name, "shape": i.shape} for i in self.inputs},
            "outputs": {o.name: {"dtype": o.dtype.name, "shape": o.shape} for o in self.outputs},
            "layers": [dataclasses.asdict(layer) for layer in self.layers],
            "left_in_float": [dataclasses.asdict(remark) for remark in self.left_in_float],
            "products": list(self.products),
            "tables": dict(self.tables),
            "parameters": self.parameters,
            "macs": self.macs,
        }


def layer_macs(model: Model, layers: Iterable[Layer]) -> list[int | None]:
    """Multiply-accumulate operations of layers for one sample; None where the shapes leave them open."""
    samples = _samples(model)
    shapes = _shapes(model, samples)
    return [_macs(layer, shapes, samples) for layer in layers]


def pass_work(model: Model, layers: Iterable[Layer], feed: Feed) -> tuple[int, int]:
    """Multiply-accumulate operations of layers, and values of all tensors, for one sample, as far as shapes tell.

    Args:
        model: prepared.
        layers: of the model.
        feed: samples, for the sizes that the model leaves open.
    """
    samples = _samples(model)
    shapes = _shapes(model, samples, feed)
    known = ([d for d in shape if d is not None] for shape in shapes.values() if shape is not None)
    macs = sum(_macs(layer, shapes, samples) or 0 for layer in layers)
    return macs, sum(math.prod(sizes) for sizes in known) // samples


def product_macs(model: Model, products: Sequence[Product]) -> list[int | None]:
    """The same of products of two activations."""
    samples = _samples(model)
    shapes = _shapes(model, samples) if products else {}
    found: list[int | None] = []
    for product in products:
        made, left = shapes.get(product.output), shapes.get(product.left)
        sizes = [*(made or (None,)), *(left or (None,))[-1:]]
        known = [d for d in sizes if d is not None]
        found.append(math.prod(known) // samples if len(known) == len(sizes) else None)
    return found


def describe(model: Model, plan: Plan) -> Inspection:
    """The facts of a prepared model and the plan made for it."""
    samples = _samples(model)
    shapes = _shapes(model, samples)
    layers = []
    for planned in plan.layers:
        layer = planned.layer
        layers.append(
            LayerFacts(
                name=layer.name,
                op=layer.op,
                input_shape=shapes.get(layer.input),
                weight_shape=layer.weight_shape,
                output_shape=shapes.get(layer.output),
                parameters=layer.parameters,
                macs=_macs(layer, shapes, samples),
                weight_bits=planned.weights,
                activation_bits=planned.activations,
                edge=planned.edge,
            )
        )
    remarks = told(plan.remarks, plan.floats, plan.float_bytes)
    products = tuple(p.name for p in plan.products)
    tables = {p.table.name: p.bits for p in plan.tables}
    return Inspection(model.opset, model.inputs, model.outputs, tuple(layers), remarks, products, tables)


def _samples(model: Model) -> int:
    """Samples in a run: the model's own number, or one."""
    return Signature(model.inputs).fixed_batch or 1


def _macs(layer: Layer, shapes: dict[str, Shape], samples: int) -> int | None:
    """Every weight is used once at every position, of the output or (transposed convolution) of the input."""
    shape = shapes.get(layer.input if layer.op == "ConvTranspose" else layer.output)
    if shape is None or len(shape) < 2:
        return None
    channels = 1 if layer.window else len(shape) - 1
    positions = [d for axis, d in enumerate(shape) if axis != channels]
    sizes = [d for d in positions if d is not None]
    return layer.parameters * math.prod(sizes) // samples if len(sizes) == len(positions) else None


def _shapes(model: Model, samples: int, feed: Feed = NO_FEED) -> dict[str, Shape]:
    """Shapes of all tensors when so many samples run, of the sizes that a feed has, by onnx's inference."""
    proto = to_proto(model)
    sampled = Signature(model.inputs).has_sample_axis
    for value in proto.graph.input:
        dims = value.type.tensor_type.shape.dim
        if sampled and dims and not dims[0].HasField("dim_value"):
            dims[0].dim_value = samples
        given = np.shape(feed[value.name]) if value.name in feed else ()
        for dim, size in zip(dims, given, strict=False):
            if not dim.HasField("dim_value"):
                dim.dim_value = size
    for value in proto.graph.output:  # what is stated there may name the axis that was just set
        if value.type.HasField("tensor_type"):
            value.type.tensor_type.ClearField("shape")
    for tensor in proto.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and math.prod(tensor.dims) > LARGEST_OPERAND:
            tensor.ClearField("raw_data")  # a weight: only its shape matters, and a message holds 2 GiB at most
    del proto.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    return {v.name: _shape(v) for v in (*inferred.input, *inferred.value_info, *inferred.output)}


def _shape(value: onnx.ValueInfoProto) -> Shape:
    kind = value.type.tensor_type
    if not kind.HasField("shape"):
        return None
    return tuple(d.dim_value if d.HasField("dim_value") else None for d in kind.shape.dim)
