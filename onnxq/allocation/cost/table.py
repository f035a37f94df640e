"""The table of all costs of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxq.allocation.choices import Choices
from onnxq.allocation.cost.dummy_model import at_once, placeholder_model
from onnxq.allocation.cost.measured import read_latency
from onnxq.allocation.cost.operations import EnergyTable, bit_operations
from onnxq.allocation.cost.storage import part_bytes
from onnxq.allocation.sensitivity_table import CostTable, as_matrix
from onnxq.config import Config
from onnxq.config.bit_widths import FLOAT, Candidate
from onnxq.ir.activation_matmul import Product
from onnxq.ir.layer import Layer
from onnxq.ir.model import Model
from onnxq.plan.inspection import layer_macs, product_macs

Feed = Mapping[str, NDArray[np.generic]]

PRODUCT = Candidate(8, 8)
"""Bits of both operands of a product that is quantized."""


def cost_table(
    model: Model,
    choices: Choices,
    config: Config,
    *,
    float_bytes: int,
    energy: EnergyTable,
    latency: Path | Feed | None = None,
) -> CostTable:
    """What every part spends at every candidate.

    Sizes are exact for the file but for its head. Bit operations and energy are left out where the model leaves
    the sizes of its tensors open.

    Args:
        model: prepared.
        choices: parts and candidates.
        config: the container.
        float_bytes: size of the original file.
        energy: of elementary steps.
        latency: a CSV file, or inputs of one run to measure with; None to do without.

    Raises:
        ConfigError: the CSV file cannot be used.
    """
    table = _storage(model, choices, config, float_bytes)
    work = _work(model, choices, config, energy)
    table = table.merged(work) if work else table
    if isinstance(latency, Path):
        needed = {layer.name for layer in choices.layers}
        return table.merged(read_latency(latency, table.layers, table.candidates, needed))
    if latency is not None:
        from onnxq.allocation.cost.latency import latency_table  # onnxruntime is loaded by those who measure

        return table.merged(latency_table(model, choices, config, latency))
    return table


def _storage(model: Model, choices: Choices, config: Config, float_bytes: int) -> CostTable:
    kept = {node.name for node in model.graph.nodes}
    parts, columns = choices.parts, choices.candidates
    plain, _ = placeholder_model(model, config, dict.fromkeys(choices.names, FLOAT))
    in_float = part_bytes(plain, parts, kept)
    size = np.full(choices.open.shape, math.nan)
    open_ = {name: choices.of(name) for name in choices.names}
    described = sum(1 + 3 + v.ByteSize() for v in plain.graph.value_info)  # not written to emitted models
    rests = []
    for j, candidate in enumerate(columns):
        if candidate == FLOAT:
            size[:, j] = [in_float[name] for name in choices.names]
            continue
        given = at_once(open_, candidate)
        proto, _ = placeholder_model(model, config, given)
        stored = part_bytes(proto, parts, kept)
        rests.append(proto.ByteSize() - sum(stored.values()))
        for i, part in enumerate(parts):
            if given[part.name] == candidate:
                size[i, j] = stored[part.name]
    rest = max(rests, default=plain.ByteSize() - described - sum(in_float.values()))
    size[~choices.open] = math.nan
    return CostTable(
        choices.names,
        columns,
        {"size": as_matrix(size)},
        {"size": float(float_bytes)},
        {"size": float(rest)},
        {"size": f"emitted models, {config.form} container"},
    )


def _work(model: Model, choices: Choices, config: Config, energy: EnergyTable) -> CostTable | None:
    macs = [*layer_macs(model, choices.layers), *(0 for _ in choices.tables), *product_macs(model, choices.products)]
    if any(m is None for m in macs):
        return None
    bops, joules = np.empty(choices.open.shape), np.empty(choices.open.shape)
    whole = {"bops": 0.0, "energy": 0.0}
    for i, (part, count) in enumerate(zip(choices.parts, macs, strict=True)):
        work, read = float(count or 0), part.parameters if isinstance(part, Layer) else 0
        whole["bops"] += bit_operations(work, FLOAT)
        whole["energy"] += energy.of(work, read, FLOAT)
        for j, candidate in enumerate(choices.candidates):
            bits = candidate
            if isinstance(part, Product):
                bits = PRODUCT if config.quantizes_products(candidate.activations) else FLOAT
            bops[i, j] = bit_operations(work, bits)
            joules[i, j] = energy.of(work, read, bits)
    return CostTable(
        choices.names,
        choices.candidates,
        {"bops": as_matrix(bops), "energy": as_matrix(joules)},
        whole,
        {"bops": 0.0, "energy": 0.0},
        {"bops": "multiplications × bits × bits", "energy": energy.source},
    )
