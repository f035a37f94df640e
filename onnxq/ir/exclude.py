"""Nodes that are left in float because somebody asked for it, by name or pattern."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase

from onnxq.errors import ConfigError
from onnxq.ir.activation_matmul import find_products
from onnxq.ir.layer import find_layers
from onnxq.ir.model import Model
from onnxq.ir.table import find_tables

ASKED = "left in float as asked"


def exclude(model: Model, patterns: Sequence[str]) -> Model:
    """The model with layers, tables and products that some patterns name left in float.

    Args:
        model: prepared.
        patterns: names, or patterns of the shell such as ``*/decoder/*``.

    Raises:
        ConfigError: a pattern names nothing that would be quantized.
    """
    layers = [layer.name for layer in find_layers(model)[0]]
    names = dict.fromkeys((*layers, *(t.name for t in find_tables(model)), *(p.name for p in find_products(model))))
    found = {pattern: [name for name in names if fnmatchcase(name, pattern)] for pattern in patterns}
    lost = [pattern for pattern in patterns if not found[pattern]]
    if lost:
        raise ConfigError(
            f"exclude names {', '.join(map(repr, lost))}, which none of the model's {len(names)} layers, tables and "
            f"products is called ({', '.join(map(repr, list(names)[:3]))}, …): onnxq inspect lists them."
        )
    return model.leaving_in_float({name: ASKED for some in found.values() for name in some})
