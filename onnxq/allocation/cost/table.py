"""The table of all costs of a model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from onnxq.allocation.choices import Choices
from onnxq.allocation.cost.measured import read_latency
from onnxq.allocation.cost.operations import EnergyTable, bit_operations
from onnxq.allocation.cost.placeholder import at_once, placeholder_model
from onnxq.allocation.cost.storage import layer_bytes
from onnxq.allocation.tables import CostTable, as_matrix
from onnxq.candidate import FLOAT, Candidate
from onnxq.config import Config
from onnxq.inspection import describe
from onnxq.ir.layer import Layer
from onnxq.ir.model import Model
from onnxq.plan import make_plan

Feed = Mapping[str, NDArray[np.generic]]


def cost_table(
    model: Model,
    choices: Choices,
    config: Config,
    *,
    float_bytes: int,
    energy: EnergyTable,
    latency: Path | Feed | None = None,
) -> CostTable:
    """What every layer spends at every candidate.

    Sizes are exact for the file but for its head. Bit operations and energy are left out where the model leaves
    the sizes of its tensors open.

    Args:
        model: prepared.
        choices: layers and candidates.
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
        return table.merged(read_latency(latency, table.layers, table.candidates))
    if latency is not None:
        from onnxq.allocation.cost.latency import latency_table  # onnxruntime is loaded by those who measure

        return table.merged(latency_table(model, choices, config, latency))
    return table


def _storage(model: Model, choices: Choices, config: Config, float_bytes: int) -> CostTable:
    kept = {node.name for node in model.graph.nodes}
    layers, columns = choices.layers, choices.candidates
    plain, _ = placeholder_model(model, config, dict.fromkeys((la.name for la in layers), FLOAT))
    in_float = layer_bytes(plain, layers, kept)
    size, packed = (np.full(choices.open.shape, math.nan) for _ in range(2))
    open_ = {la.name: choices.of(la.name) for la in layers}
    described = sum(1 + 3 + v.ByteSize() for v in plain.graph.value_info)  # not written to emitted models
    rests = []
    for j, candidate in enumerate(columns):
        if candidate == FLOAT:
            size[:, j] = packed[:, j] = [in_float[la.name] for la in layers]
            continue
        given = at_once(layers, open_, candidate)
        proto, _ = placeholder_model(model, config, given)
        stored = layer_bytes(proto, layers, kept)
        rests.append(proto.ByteSize() - sum(stored.values()))
        for i, layer in enumerate(layers):
            if given[layer.name] == candidate:
                size[i, j] = stored[layer.name]
                packed[i, j] = stored[layer.name] - _container(layer, candidate, config) + _ideal(layer, candidate)
    # Tables are quantised as soon as one layer is: the float rest counts only where every layer stays in float.
    rest = max(rests, default=plain.ByteSize() - described - sum(in_float.values()))
    size[~choices.open] = packed[~choices.open] = math.nan
    return CostTable(
        tuple(la.name for la in layers),
        columns,
        {"size": as_matrix(size), "packed": as_matrix(packed)},
        dict.fromkeys(("size", "packed"), float(float_bytes)),
        dict.fromkeys(("size", "packed"), float(rest)),
        {"size": f"emitted models, {config.container} container", "packed": "the same with k bits for a k-bit weight"},
    )


def _work(model: Model, choices: Choices, config: Config, energy: EnergyTable) -> CostTable | None:
    macs = [facts.macs for facts in describe(model, make_plan(model, config)).layers]
    if any(m is None for m in macs):
        return None
    bops, joules = np.empty(choices.open.shape), np.empty(choices.open.shape)
    whole = {"bops": 0.0, "energy": 0.0}
    for i, (layer, count) in enumerate(zip(choices.layers, macs, strict=True)):
        work = float(count or 0)
        whole["bops"] += bit_operations(work, FLOAT)
        whole["energy"] += energy.of(work, layer.parameters, FLOAT)
        for j, candidate in enumerate(choices.candidates):
            bops[i, j] = bit_operations(work, candidate)
            joules[i, j] = energy.of(work, layer.parameters, candidate)
    return CostTable(
        tuple(la.name for la in choices.layers),
        choices.candidates,
        {"bops": as_matrix(bops), "energy": as_matrix(joules)},
        whole,
        {"bops": 0.0, "energy": 0.0},
        {"bops": "multiplications × bits × bits", "energy": energy.source},
    )


def _container(layer: Layer, bits: Candidate, config: Config) -> int:
    """Bytes that a layer's weights take as they are stored."""
    if bits.weights == 16:
        return 2 * layer.parameters
    if bits.weights == 8 and config.rules.float_weights:
        return 4 * layer.parameters
    packed = bits.weights <= 4 and config.container != "int8"
    return -(-layer.parameters // 2) if packed else layer.parameters


def _ideal(layer: Layer, bits: Candidate) -> float:
    return layer.parameters * bits.weights / 8
