"""Bits that were asked for, fitted to what a target takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from onnxq.config.bit_widths import FLOAT, Candidate
from onnxq.config.targets import Target
from onnxq.errors import ConfigError, UnsupportedError
from onnxq.ir.layer import Layer
from onnxq.ir.model import Model, Remark


def fit_bits(
    asked: Mapping[str, Candidate], layers: Sequence[Layer], target: Target
) -> tuple[dict[str, Candidate], tuple[Remark, ...]]:
    """The bits that layers get on a target in place of those asked for, and a remark for each that gets others.

    Args:
        asked: bits by layer name.
        layers: of the model.
        target: what the runtime takes.

    Raises:
        UnsupportedError: all layers would stay in float.
    """
    given = {la.name: target.least(la.op, asked[la.name]) for la in layers}
    if all(bits == FLOAT for bits in given.values()):
        raise UnsupportedError(
            f"target {target.name} runs none of the model's {len(layers)} layers at "
            f"{', '.join(sorted({str(bits) for bits in asked.values()}))}, it takes {target.abilities}: ask for other "
            "bits, also of first and last layers (edge_bits), or another target."
        )
    told = {
        la.name: f"target {target.name} has no {asked[la.name]} for {la.op}: "
        + ("left in float" if given[la.name] == FLOAT else f"{given[la.name]} instead")
        for la in layers
        if given[la.name] != asked[la.name]
    }
    return given, tuple(Remark(name, reason) for name, reason in told.items())


def require_opset(model: Model, target: Target) -> None:
    """Refuse a model of a later operator set than a target reads.

    Raises:
        UnsupportedError: names both.
    """
    if target.maximum_opset is not None and model.opset > target.maximum_opset:
        raise UnsupportedError(
            f"the model has opset {model.opset}, but target {target.name} reads opsets up to {target.maximum_opset}: "
            "export it with an older one, or choose another target."
        )


def require_taken(choice: Mapping[str, Candidate], layers: Sequence[Layer], target: Target) -> None:
    """Refuse an allocation with bits that a target does not take for a layer of that kind.

    Raises:
        ConfigError: names the layers and what the target takes.
    """
    foreign = [f"{la.name} {choice[la.name]}" for la in layers if not target.takes(la.op, choice[la.name])]
    if foreign:
        raise ConfigError(
            f"the allocation gives {', '.join(foreign[:5])}, which target {target.name} does not run; it takes "
            f"{target.abilities}: make an allocation for this target."
        )
