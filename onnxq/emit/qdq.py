"""Solutions written into the graph as QuantizeLinear and DequantizeLinear nodes, in the forms that
onnxruntime runs at every optimization level with the same answers.

The rules, each measured (a test holds each):

1. Weights are signed, zero point 0: the form that the fast kernels take. 8-bit ones beside 8-bit activations
   must not saturate on CPUs without VNNI; the solver sees to that (:mod:`onnxq.quant.saturation`).
2. 8-bit activations are unsigned; after a ReLU the zero point is 0, so that merging the two is exact.
3. A bias is int32 with scale s_x·s_w, the only one that integer kernels accept. Beside 16-bit grids, which
   no integer kernel takes, it has a finer scale of its own: onnxruntime would put a float one on s_x·s_w,
   where it may overflow.
4. Beside 16-bit activations, a matrix is stored in a form that MatMulNBits does not take (it takes its input at
   8 bits): transposed in a Gemm, with a leading axis in a MatMul.
5. Activations of less than 8 bits are a narrowed 8-bit grid, kept by a Clip before the QuantizeLinear. As
   uint4 they would not load behind a Clip or a MaxPool, nor before a layer with other weights.

Other targets have other forms (:mod:`onnxq.config.targets`): grids come with the solutions; the form of biases and
weights is decided here.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxq.config import FLOAT_BITS, Config
from onnxq.config.targets import Target
from onnxq.emit.bounds import drop_superfluous_bounds
from onnxq.emit.graph_writer import GraphWriter, redirect
from onnxq.emit.half import narrow_constants
from onnxq.emit.packed import emit_packed, pays
from onnxq.emit.spare import spare_outputs
from onnxq.emit.tables import emit_tables
from onnxq.emit.windows import write_out_windows
from onnxq.ir.external_weights import Outline
from onnxq.ir.header import write_notes_of_constants
from onnxq.ir.layer import Layer
from onnxq.ir.model import Model
from onnxq.ir.save import to_outline
from onnxq.ir.table import Table
from onnxq.ir.topological_sort import sort_nodes
from onnxq.plan.values import LayerPlan, Plan
from onnxq.quant.packing import Packing, pack
from onnxq.quant.solution import LayerSolution, bias_integers, bias_scale, free_bias_scale
from onnxq.quant.spec import Granularity, QuantParams
from onnxq.quant.table import TableSolution
from onnxq.runtime.quantized_network import QuantizedNetwork

UNSIGNED_ZERO = 128
"""Zero point of weights that are stored as uint8."""


def emit(
    model: Model,
    plan: Plan,
    network: QuantizedNetwork,
    config: Config,
    *,
    byte_weights: Container[str] = (),
    no_nbits: Container[str] = (),
) -> onnx.ModelProto:
    """The quantized model.

    Args:
        model: the prepared float model, left unchanged.
        plan: which layers and places.
        network: solutions of both.
        config: the container of small weights, and the target.
        byte_weights: layers whose weights take a byte each whatever the container.
        no_nbits: layers whose matrices take the form of rule 4 whatever their inputs' bits.
    """
    writer = _Writer(to_outline(model), config.rules, model.raised)
    for name, params in network.outputs.items():
        writer.quantize_for_all(name, params)
    for layer_plan in plan.layers:
        layer, solution = layer_plan.layer, network.layers[layer_plan.layer.name]
        if solution.input is not None and layer.input not in network.outputs:
            writer.quantize_input(layer, solution.input)
        if solution.weight.scale.ndim == 2:
            writer.quantize_blocks(layer, solution)
        else:
            form = "int8" if layer.name in byte_weights else stored_form(layer, solution, config)
            writer.quantize_weight(layer, solution, form, layer.name in no_nbits)
        writer.write_bias(layer_plan, solution)
    writer.replace_tables([p.table for p in plan.tables], network.tables)
    proto = writer.finish()
    write_notes_of_constants(proto, model.header, ("/quantized", "/packed", "/float"))
    if model.header.half:
        narrow_constants(proto)
    return proto


def stored_form(layer: Layer, solution: LayerSolution, config: Config) -> str:
    """How a layer's weights are stored: one of :data:`onnxq.config.CONTAINERS`."""
    activations = FLOAT_BITS if solution.input is None else solution.input.spec.bits
    return config.stored(solution.weight.spec.bits, activations, window=layer.window is not None)


class _Writer(GraphWriter):
    """A graph whose layers become quantized."""

    def __init__(self, outline: Outline, target: Target, raised: Collection[str]) -> None:
        super().__init__(outline)
        self._target, self._raised = target, raised
        self._pairs: dict[tuple[str, str], str] = {}
        self._kernels: dict[str, Sequence[int]] = {}
        self._helpers: dict[tuple[str, bytes], str] = {}
        values = [v for v in (*self.graph.value_info, *self.graph.input) if v.type.tensor_type.HasField("shape")]
        self._ranks = {v.name: len(v.type.tensor_type.shape.dim) for v in values}

    def quantize_for_all(self, tensor: str, params: QuantParams) -> None:
        """Quantize a tensor where it is made; everything reads the quantized values."""
        final = tensor in {o.name for o in self.graph.output}
        raw = self.fresh(f"{tensor}/float") if final else tensor
        if final:
            for node in self.graph.node:
                node.output[:] = [raw if name == tensor else name for name in node.output]
        readers = [] if final else list(self.graph.node)
        quantized = self._pair(raw, tensor, params, tensor if final else None)
        for node in readers:
            redirect(node, tensor, quantized)

    def quantize_input(self, layer: Layer, params: QuantParams) -> None:
        """Put a Q/DQ pair before a layer; layers that read the same tensor on the same grid share it."""
        key = (layer.input, f"{params.spec.bits} {float(params.scale)!r} {params.zero_point}")
        if key not in self._pairs:
            self._pairs[key] = self._pair(layer.input, layer.input, params, None)
        self.nodes[layer.name].input[0] = self._pairs[key]

    def quantize_weight(self, layer: Layer, solution: LayerSolution, form: str, no_nbits: bool) -> None:
        """Store the integers behind a DequantizeLinear, or floats on their grid before a QuantizeLinear too."""
        bits, integers, zero = solution.weight.spec.bits, solution.integers, 0
        if bits == 8 and self._target.layers[layer.op].unsigned:
            zero = UNSIGNED_ZERO
            stored = (integers + zero).astype(np.uint8)
        elif bits == 16:
            stored = integers.astype(np.int16)
        elif form == "int4":
            stored = integers.astype(ml_dtypes.int4)
        else:
            stored = integers.astype(np.int8)
        if layer.window is not None:
            self._kernels[layer.name] = layer.window.kernel
        scale, axis = solution.weight.scale, layer.channel_axis
        if no_nbits or (solution.input is not None and solution.input.spec.bits == 16):
            stored, axis = self._apart(layer, stored)
        if solution.weight.spec.granularity is Granularity.PER_TENSOR:
            scale = scale.reshape(())
        zeros = np.full(scale.shape, zero, stored.dtype)
        base = layer.weight if self.has_one_reader(layer.weight) else f"{layer.weight}/{layer.name}"
        packing = pack(stored, bits, axis) if form == "packed" else None
        if packing is not None and pays(packing, base):
            self.nodes[layer.name].input[1] = self._dequantize_packed(
                base, packing, scale, axis, layer.window is not None
            )
            return
        real = solution.dequantized(layer.channel_axis) if bits == 8 and self._target.float_weights else None
        self.nodes[layer.name].input[1] = self._dequantize(base, stored, scale, zeros, axis, real)

    def quantize_blocks(self, layer: Layer, solution: LayerSolution) -> None:
        """Store 4-bit integers with their blocks' scales, inputs first: the form that MatMulNBits takes."""
        integers, scale = solution.integers.astype(ml_dtypes.int4), solution.weight.scale
        node = self.nodes[layer.name]
        if layer.transposed:
            integers, scale = np.ascontiguousarray(integers.T), np.ascontiguousarray(scale.T)
            _set_transposed(node, False)
        base = layer.weight if self.has_one_reader(layer.weight) else f"{layer.weight}/{layer.name}"
        block = len(integers) // len(scale)
        names = [self.constant(f"{base}/quantized", integers), self.constant(f"{base}/scale", scale)]
        node.input[1] = self.node("DequantizeLinear", names, f"{base}/dequantized", axis=0, block_size=block)

    def replace_tables(self, tables: Sequence[Table], solutions: Mapping[str, TableSolution]) -> None:
        """Look rows up as integers; see :mod:`onnxq.emit.tables`."""
        emit_tables(self.outline.proto, tables, solutions)

    def _apart(self, layer: Layer, stored: NDArray[Any]) -> tuple[NDArray[Any], int]:
        """The weights in a form that is not taken for MatMulNBits, which would round the input to 8 bits; its axis."""
        node = self.nodes[layer.name]
        if layer.op == "Gemm" and not layer.transposed:
            _set_transposed(node, True)
            return np.ascontiguousarray(stored.T), 0
        if layer.op == "MatMul" and self._ranks.get(layer.input, 0) > 2:
            return stored[None], 2
        return stored, layer.channel_axis

    def write_bias(self, plan: LayerPlan, solution: LayerSolution) -> None:
        """Store the bias: int32 where the input is quantized; float for a MatMul, where it is not, on some targets."""
        layer, bias = plan.layer, solution.bias
        if bias is None:
            return
        base = layer.bias if layer.bias and self.has_one_reader(layer.bias) else f"{layer.name}/bias"
        if layer.op != "MatMul" and solution.input is not None and not self._target.float_bias:
            wide = max(plan.weights, plan.activations) > 8
            shared = bias_scale(solution.input.scale, solution.weight.scale, len(bias))
            scale = free_bias_scale(bias) if wide else shared
            name = self._dequantize(base, bias_integers(bias, scale), scale, None, 0)
        else:
            name = self.constant(base, bias)
        node = self.nodes[layer.name]
        if layer.op == "MatMul":
            node = next(n for n in self.graph.node if layer.output in n.output)
            redirect(node, layer.bias or "", name)
        elif len(node.input) > 2:
            node.input[2] = name
        else:
            node.input.append(name)

    def finish(self) -> onnx.ModelProto:
        """The model with its nodes in order and without what nothing reads any more."""
        spare_outputs(self.graph, self.fresh)
        drop_superfluous_bounds(self.graph, self._raised)
        sort_nodes(self.graph)
        write_out_windows(self.graph, self._kernels)
        self.outline.drop_unread()
        del self.graph.value_info[:]
        return self.outline.filled()

    def _pair(self, source: str, base: str, params: QuantParams, output: str | None) -> str:
        """Q and DQ behind a tensor, a Clip before them where the grid is narrower than its type."""
        dtype = params.spec.container
        scale = self.constant(f"{base}/scale", np.asarray(params.scale, np.float32))
        zero = self.constant(f"{base}/zero_point", np.asarray(params.zero_point).astype(dtype))
        if params.spec.bits < 8 * dtype.itemsize:
            low = self.constant(f"{base}/low", np.asarray(params.lowest, np.float32))
            high = self.constant(f"{base}/high", np.asarray(params.highest, np.float32))
            source = self.node("Clip", [source, low, high], f"{base}/clipped")
        quantized = self.node("QuantizeLinear", [source, scale, zero], f"{base}/quantized")
        return self.node(
            "DequantizeLinear", [quantized, scale, zero], output or f"{base}/dequantized", fixed=bool(output)
        )

    def _dequantize(
        self,
        base: str,
        stored: NDArray[np.generic],
        scale: NDArray[np.float32],
        zeros: NDArray[np.generic] | None,
        axis: int,
        real: NDArray[np.float32] | None = None,
    ) -> str:
        """A DequantizeLinear behind integers, or behind a QuantizeLinear of the real numbers that they stand for."""
        along: dict[str, Any] = {"axis": axis} if scale.ndim else {}
        first = self.constant(
            f"{base}/quantized" if real is None else f"{base}/float", stored if real is None else real
        )
        grid = self._grid(base, scale, zeros)
        if real is not None:
            first = self.node("QuantizeLinear", [first, *grid], f"{base}/quantized", **along)
        return self.node("DequantizeLinear", [first, *grid], f"{base}/dequantized", **along)

    def _dequantize_packed(
        self, base: str, packing: Packing, scale: NDArray[np.float32], axis: int, window: bool
    ) -> str:
        """A DequantizeLinear behind integers that are unpacked on the way."""
        along: dict[str, Any] = {"axis": axis} if scale.ndim else {}
        integers = emit_packed(packing, base, self.node, self.constant, self._helper)
        # Integer kernels of matrices want a zero point, those of convolutions do without.
        grid = self._grid(base, scale, None if window else np.zeros(scale.shape, np.int8))
        return self.node("DequantizeLinear", [integers, *grid], f"{base}/dequantized", **along)

    def _grid(self, base: str, scale: NDArray[np.float32], zeros: NDArray[np.generic] | None) -> list[str]:
        """Names of the scales and of the zero points, where there are any."""
        names = [self.constant(f"{base}/scale", scale)]
        if zeros is not None:
            names.append(self.constant(f"{base}/zero_point", zeros))
        return names

    def _helper(self, name: str, value: NDArray[np.generic]) -> str:
        """A constant that all who ask for its name and value share."""
        key = (name, value.tobytes())
        if key not in self._helpers:
            self._helpers[key] = self.constant(name, value)
        return self._helpers[key]


def _set_transposed(gemm: onnx.NodeProto, transposed: bool) -> None:
    """State whether a Gemm takes its weights outputs first."""
    kept = [a for a in gemm.attribute if a.name != "transB"]
    del gemm.attribute[:]
    gemm.attribute.extend([*kept, helper.make_attribute("transB", 1)] if transposed else kept)
