"""What is planned for layers, tables and the tensors between them, as values."""

from __future__ import annotations

from dataclasses import dataclass

from onnxq.ir.activation_matmul import Product
from onnxq.ir.floats import FloatConstant
from onnxq.ir.layer import Layer
from onnxq.ir.model import Remark
from onnxq.ir.table import Table


@dataclass(frozen=True)
class Quantizer:
    """A place where a tensor is quantized for everything that reads it.

    Attributes:
        tensor: which.
        like: a layer's input behind operators that only move values, whose grid it shares; None when
            it has a grid of its own.
        bits: 8 or 16.
    """

    tensor: str
    like: str | None
    bits: int = 8


@dataclass(frozen=True)
class LayerPlan:
    """A layer and its bits.

    Attributes:
        layer: which.
        weights: 2 to 8, or 16.
        activations: 2 to 8, 16, or 32 for an input that stays in float.
        edge: it is a first or a last layer.
        integer_kernel: its output is quantized to 8 bits, so that onnxruntime computes it on integers.
        block: inputs that share a scale of the weights; None for one scale a channel.
    """

    layer: Layer
    weights: int
    activations: int
    edge: bool
    integer_kernel: bool
    block: int | None = None


@dataclass(frozen=True)
class TablePlan:
    """A table and its bits, 4 or 8."""

    table: Table
    bits: int


@dataclass(frozen=True)
class Plan:
    """What is quantized, and how.

    Attributes:
        layers: every layer's bits.
        outputs: quantizers on layer outputs and on the operands of products.
        remarks: what stays float, and why.
        products: products of two activations whose operands are quantized.
        tables: tables whose rows are stored as integers.
        mask: the input that tells padding from tokens; None where there is none.
        raised: layers that have other bits than were asked for because of the target.
        floats: constants that stay in float.
    """

    layers: tuple[LayerPlan, ...]
    outputs: tuple[Quantizer, ...]
    remarks: tuple[Remark, ...]
    products: tuple[Product, ...] = ()
    tables: tuple[TablePlan, ...] = ()
    mask: str | None = None
    raised: tuple[Remark, ...] = ()
    floats: tuple[FloatConstant, ...] = ()

    @property
    def numbers(self) -> int:
        """Weights and entries of tables that are quantized."""
        return sum(p.layer.parameters for p in self.layers) + sum(p.table.parameters for p in self.tables)

    @property
    def float_bytes(self) -> int:
        """Bytes that the constants take before anything is quantized."""
        return 4 * self.numbers + sum(constant.bytes for constant in self.floats)

    @property
    def share(self) -> float:
        """Share of the numbers in weights and tables, and whatever else is no vector, that are quantized, 0 to 1."""
        others = sum(constant.elements for constant in self.floats if not constant.is_vector)
        return self.numbers / max(self.numbers + others, 1)
