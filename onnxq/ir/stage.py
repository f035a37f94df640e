"""The graph cut into stages between its layers, each a small model of its own.

The depth of a tensor is the largest number of layers on a path that leads to it. Stage d holds the
layers of depth d and whatever follows them before the next layer. Running the stages in order runs the
network once; between two stages only the tensors that cross the cut (the frontier) have to be kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxq.ir.external_weights import Outline
from onnxq.ir.layer import Layer
from onnxq.ir.model import Model
from onnxq.ir.reads import reads as reads
from onnxq.ir.subgraph import Kind, part_model, set_ends
from onnxq.quant.spec import QuantParams

QUANTIZED_INPUT = "{}/for/{}"
"""Name of the tensor that a layer reads in a stage: its input, quantized for it alone."""


@dataclass(frozen=True)
class Stage:
    """The layers of one depth and the nodes that follow them.

    Attributes:
        depth: 0 for what precedes every layer.
        layers: the layers solved at this stage.
        nodes: names of all its nodes, the layers included.
        reads: tensors of earlier stages that it reads, other than as a layer's input.
        frontier: tensors that later stages or the graph's outputs need once it has run.
        makes: those of ``frontier`` that this stage produces.
        tensors: all that its nodes make.
    """

    depth: int
    layers: tuple[Layer, ...]
    nodes: tuple[str, ...]
    reads: tuple[str, ...]
    frontier: tuple[str, ...]
    makes: tuple[str, ...]
    tensors: tuple[str, ...] = ()


def split_stages(model: Model, layers: Sequence[Layer]) -> tuple[Stage, ...]:
    """Cut a model in topological order into stages around the given layers."""
    by_name = {layer.name: layer for layer in layers}
    depth: dict[str, int] = {t.name: 0 for t in model.graph.inputs if not isinstance(t, gs.Constant)}
    node_depth: dict[str, int] = {}
    for node in model.graph.nodes:
        at = max((depth.get(t.name, 0) for t in reads(node)), default=0) + (node.name in by_name)
        node_depth[node.name] = at
        depth.update({t.name: at for t in node.outputs})
    last: dict[str, int] = {}
    for node in model.graph.nodes:
        for tensor in reads(node):
            last[tensor.name] = max(last.get(tensor.name, 0), node_depth[node.name])
    deepest = max(node_depth.values(), default=0)
    last.update({t.name: deepest + 1 for t in model.graph.outputs})
    groups: list[list[gs.Node]] = [[] for _ in range(deepest + 1)]
    for node in model.graph.nodes:
        groups[node_depth[node.name]].append(node)
    coming: list[list[tuple[int, str]]] = [[] for _ in range(deepest + 1)]
    for order, (name, at) in enumerate(depth.items()):
        coming[at].append((order, name))
    stages, alive = [], list[tuple[int, str]]()
    for at, nodes in enumerate(groups):
        alive = sorted(entry for entry in (*alive, *coming[at]) if at < last.get(entry[1], -1))
        stages.append(_stage(by_name, depth, nodes, tuple(name for _, name in alive), at))
    return tuple(stages)


def _stage(
    by_name: Mapping[str, Layer], depth: Mapping[str, int], nodes: Sequence[gs.Node], frontier: tuple[str, ...], at: int
) -> Stage:
    layers = tuple(by_name[n.name] for n in nodes if n.name in by_name)
    inside = {t.name for n in nodes for t in n.outputs}
    needed: dict[str, None] = {}
    for node in nodes:
        for i, tensor in enumerate(reads(node)):
            quantized = node.name in by_name and i == 0
            if tensor.name in depth and tensor.name not in inside and not quantized:
                needed[tensor.name] = None
    return Stage(
        depth=at,
        layers=layers,
        nodes=tuple(n.name for n in nodes),
        reads=tuple(needed),
        frontier=frontier,
        makes=tuple(t for t in frontier if t in inside),
        tensors=tuple(t.name for n in nodes for t in n.outputs),
    )


def read_by_subgraphs(model: Model) -> frozenset[str]:
    """Names of the tensors that nodes with subgraphs read, outside or inside of these."""
    return model.read_inside


def stage_model(
    model: Model,
    stage: Stage,
    outputs: Sequence[str],
    types: Mapping[str, Kind],
    constants: Mapping[tuple[str, str], NDArray[np.float32]],
    quantizers: Mapping[str, QuantParams],
) -> Outline:
    """A stage as a model that onnxruntime runs.

    Args:
        model: the whole model.
        stage: which part of it.
        outputs: names of the tensors it gives back.
        types: element types of the tensors it reads.
        constants: values to put in place of constants (quantized weights, biases and tables) for one node, by
            the constant's and the layer's or node's name.
        quantizers: tensors to quantize to 8 or 16 bits where they are made.
    """
    part = part_model(model, set(stage.nodes), f"stage {stage.depth}")
    proto = part.proto
    inputs: dict[str, Kind] = {name: types[name] for name in stage.reads}
    layer_of = {layer.name: layer for layer in stage.layers}
    for node in proto.graph.node:
        layer = layer_of.get(node.name)
        if layer:
            node.input[0] = QUANTIZED_INPUT.format(layer.input, layer.name)
            inputs[node.input[0]] = np.dtype(np.float32)
    for layer in stage.layers:
        _replace_constants(part, layer, constants)
    for node in proto.graph.node:
        if node.name not in layer_of:
            _replace(part, node, node.name, constants)
    for name, params in quantizers.items():
        _quantize(proto.graph, name, params)
    set_ends(proto, inputs, outputs)
    part.drop_unread()
    return part


def _replace_constants(part: Outline, layer: Layer, constants: Mapping[tuple[str, str], NDArray[np.float32]]) -> None:
    """Let one layer read other values, while whoever shares the constant with it keeps reading the old ones."""
    for node in part.proto.graph.node:
        if node.name != layer.name and layer.output not in node.output:
            continue
        _replace(part, node, layer.name, constants)


def _replace(
    part: Outline, node: onnx.NodeProto, owner: str, constants: Mapping[tuple[str, str], NDArray[np.float32]]
) -> None:
    for i, name in enumerate(node.input):
        if (name, owner) in constants:
            node.input[i] = QUANTIZED_INPUT.format(name, owner)
            part.add(node.input[i], constants[name, owner])


def _quantize(graph: onnx.GraphProto, name: str, params: QuantParams) -> None:
    """Put a Q/DQ pair behind the node that makes a tensor."""
    index, node = next((i, n) for i, n in enumerate(graph.node) if name in n.output)
    raw, integer, scale, zero = (f"{name}/{part}" for part in ("raw", "integer", "scale", "zero_point"))
    graph.initializer.append(numpy_helper.from_array(np.asarray(params.scale, np.float32), scale))
    graph.initializer.append(numpy_helper.from_array(np.asarray(params.zero_point, params.spec.container), zero))
    node.output[list(node.output).index(name)] = raw
    graph.node.insert(index + 1, helper.make_node("QuantizeLinear", [raw, scale, zero], [integer], f"{name}/Q"))
    graph.node.insert(index + 2, helper.make_node("DequantizeLinear", [integer, scale, zero], [name], f"{name}/DQ"))
