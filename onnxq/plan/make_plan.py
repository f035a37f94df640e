"""What will be quantized, at how many bits, where the quantizers stand, and why the rest stays float."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from onnxq.config import FLOAT_BITS, Config
from onnxq.config.bit_widths import FLOAT, Candidate
from onnxq.config.without_effect import idle_block
from onnxq.errors import ConfigError, UnsupportedError
from onnxq.ir.activation_matmul import find_products
from onnxq.ir.floats import float_constants
from onnxq.ir.layer import Layer, find_layers
from onnxq.ir.mask import find_mask
from onnxq.ir.model import Model, Remark
from onnxq.ir.reachability import edge_layers
from onnxq.ir.singular import find_singularities
from onnxq.ir.table import Table, find_tables
from onnxq.plan.quantizers import find_places
from onnxq.plan.target_constraints import fit_bits, require_opset, require_taken
from onnxq.plan.values import LayerPlan, Plan, TablePlan

FEW_ROWS = 2048
"""Rows of a table that is treated as an edge layer: every sample meets each of them, and it takes little space."""

SMALLEST_BLOCK = 16
"""Least size of a block that onnxruntime has kernels for."""


def make_plan(model: Model, config: Config, choice: Mapping[str, Candidate] | None = None) -> Plan:
    """Decide bits and places for a prepared model.

    Args:
        model: prepared.
        config: the bits of all layers, the target, and the container of the weights.
        choice: each layer's own bits, by its name, in place of the configuration's. A table or product that it names
            too gets what it would have in a model of that candidate throughout; others follow the configuration.

    Raises:
        UnsupportedError: the model has no layer to quantize, here or for this target; says what stands in the way.
        ConfigError: the choice is not of this model's layers, or has bits that the target does not take.
    """
    layers, remarks = require_layers(model)
    first, last = edge_layers(model, layers)
    edges = first | last
    require_opset(model, config.rules)
    raised: tuple[Remark, ...] = ()
    if choice is None:
        asked = {la.name: config.at_edge(config.bits) if la.name in edges else config.bits for la in layers}
        choice, raised = fit_bits(asked, layers, config.rules)
    tables = find_tables(model)
    _require_matching(
        choice, [la.name for la in layers], [*(t.name for t in tables), *(p.name for p in find_products(model))]
    )
    require_taken(choice, layers, config.rules)
    planned = []
    for layer in layers:
        bits = choice[layer.name]
        if bits == FLOAT:
            remarks += tuple(r for r in raised if r.node == layer.name) or (
                Remark(layer.name, "left in float by the allocation"),
            )
            continue
        integer = layer.op == "Conv" and bits.activations == 8 and config.integer_weights(bits.weights)
        block = block_of(layer, bits, config)
        planned.append(LayerPlan(layer, bits.weights, bits.activations, layer.name in edges, integer, block))
    products = tuple(
        p for p in find_products(model) if config.quantizes_products(choice.get(p.name, config.bits).activations)
    )
    outputs = find_places(model, planned, products, config)
    exact = find_singularities(model).exact
    names = {p.name for p in products}
    remarks = tuple(r for r in model.remarks + remarks if r.node not in names)
    remarks += tuple(Remark(q.tensor, exact[q.tensor]) for q in outputs if q.tensor in exact)
    outputs = tuple(q for q in outputs if q.tensor not in exact)
    known = tuple(r for r in raised if choice[r.node] != FLOAT)
    stored = tuple(TablePlan(t, table_bits(t, choice.get(t.name, config.bits), config)) for t in tables)
    stored = tuple(p for p in stored if p.bits != FLOAT_BITS)
    floats = float_constants(model, _read_as_integers(planned, stored, config))
    return Plan(tuple(planned), outputs, remarks, products, stored, find_mask(model), known, floats)


def _read_as_integers(layers: Sequence[LayerPlan], tables: Sequence[TablePlan], config: Config) -> set[tuple[str, str]]:
    """Names of nodes and of the constants that they read as integers."""
    found = {(p.layer.name, p.layer.weight) for p in layers} | {(p.table.name, p.table.weight) for p in tables}
    for planned in layers if not config.rules.float_bias else ():
        layer = planned.layer
        if layer.bias and layer.op != "MatMul" and planned.activations != FLOAT_BITS:
            found.add((layer.name, layer.bias))
    return found


def require_layers(model: Model) -> tuple[tuple[Layer, ...], tuple[Remark, ...]]:
    """The layers of a model, and what is no layer and why.

    Raises:
        UnsupportedError: there is none; says what stands in the way.
    """
    layers, remarks = find_layers(model)
    if not layers:
        why = "; ".join(f"{r.node}: {r.reason}" for r in remarks[:5])
        raise UnsupportedError(
            "the model has no layer to quantise: "
            + (why or "it holds no Conv, ConvTranspose, Gemm or MatMul with constant weights")
            + "."
        )
    return layers, remarks


def block_of(layer: Layer, bits: Candidate, config: Config) -> int | None:
    """Inputs of a matrix that share a scale: as configured, or less where that does not divide them."""
    if layer.window is not None or config.block is None or not config.blocked(bits.weights, bits.activations):
        return None
    inputs = layer.parameters // layer.channels
    sizes = (config.block >> shift for shift in range(5))
    return next((size for size in sizes if size >= SMALLEST_BLOCK and inputs % size == 0), None)


def require_block(candidates: Iterable[tuple[Layer, Candidate]], config: Config) -> None:
    """Refuse a size of blocks that was asked for and that no layer has.

    Args:
        candidates: layers with bits that they have, or may have.
        config: the size of blocks; its default asks for nothing, and None is kept by every layer.

    Raises:
        ConfigError: no layer has blocks.
    """
    if config.block not in (None, Config.block) and not any(block_of(la, bits, config) for la, bits in candidates):
        raise idle_block(config)


def table_bits(table: Table, candidate: Candidate, config: Config) -> int:
    """Bits of a table in a model of one candidate throughout; 32 where it stays in float."""
    edge = table.shape[0] <= FEW_ROWS and config.edge_bits != "same"
    return max(config.table_bits(candidate.weights), 8 if edge else 0)


def _require_matching(choice: Mapping[str, Candidate], layers: Sequence[str], others: Sequence[str]) -> None:
    missing, foreign = [n for n in layers if n not in choice], [n for n in choice if n not in {*layers, *others}]
    if missing or foreign:
        told = [f"lacks {', '.join(missing[:5])}"] * bool(missing) + [f"names {', '.join(foreign[:5])}"] * bool(foreign)
        raise ConfigError(
            f"the allocation does not fit the model's {len(layers)} layers: it {' and '.join(told)}; "
            "make one from a table of this model."
        )
    if all(choice[name] == FLOAT for name in layers):
        raise ConfigError(
            "the allocation leaves every layer in float, so there is nothing to quantise; lower a budget."
        )


def without_chosen(model: Model, plan: Plan) -> Plan:
    """The plan without layers whose rows depend on values: some samples may have none of them."""
    chosen = model.chosen
    return replace(plan, layers=tuple(p for p in plan.layers if p.layer.input not in chosen)) if chosen else plan
