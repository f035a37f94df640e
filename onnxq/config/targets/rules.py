"""The rules of a target as values, and the questions that the stages ask of them."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from onnxq.config.bit_widths import FLOAT, Candidate, parse_candidates
from onnxq.errors import ConfigError

FOLDER = Path(__file__).parent

DEFAULT = "onnxruntime"

TARGETS = (DEFAULT, *sorted(path.stem for path in FOLDER.glob("*.toml") if path.stem != DEFAULT))
"""Names of all targets, one for each file of this folder; the first is the default."""

OUTPUTS = ("kernels", "layers", "none")
"""Which outputs of layers are quantized: of those with an integer kernel in onnxruntime, of all, of none."""


@dataclass(frozen=True)
class LayerRule:
    """What a target takes of one kind of layer.

    Attributes:
        candidates: bits of weights and input; None for all that exist.
        one_scale: the weights have a single scale, not one for each output channel.
        unsigned: 8-bit weights are stored as uint8 around 128, not as int8 around 0.
    """

    candidates: tuple[Candidate, ...] | None = None
    one_scale: bool = False
    unsigned: bool = False


@dataclass(frozen=True)
class Target:
    """What a runtime takes.

    Attributes:
        name: as in the configuration.
        title: for people.
        minimum_opset: lowest operator set.
        maximum_opset: highest operator set; None where none is known.
        symmetric: grids of activations are signed with zero point 0; otherwise unsigned with any zero point.
        float_bias: biases stay in float; otherwise they are int32 beside quantized inputs.
        container: how weights of less than 8 bits are stored unless asked otherwise.
        float_weights: 8-bit weights are stored in float before a QuantizeLinear; otherwise as integers.
        outputs: one of :data:`OUTPUTS`.
        output_ops: operators besides the layers whose outputs are quantized.
        tables: bits that tables of embeddings may have besides float; None for all that exist.
        layers: rules by operator.
        sources: documents that the rules are taken from.
    """

    name: str
    title: str
    minimum_opset: int
    maximum_opset: int | None
    symmetric: bool
    float_bias: bool
    container: str
    float_weights: bool
    outputs: str
    output_ops: tuple[str, ...]
    tables: tuple[int, ...] | None
    layers: Mapping[str, LayerRule]
    sources: tuple[str, ...]

    def takes(self, op: str, candidate: Candidate) -> bool:
        """Whether layers of an operator may have these bits; in float they always may be."""
        allowed = self.layers[op].candidates
        return candidate == FLOAT or allowed is None or candidate in allowed

    def least(self, op: str, candidate: Candidate) -> Candidate:
        """The candidate, or the smallest that an operator may have with at least its bits: float in the end."""
        if self.takes(op, candidate):
            return candidate
        wider = (
            c
            for c in self.layers[op].candidates or ()
            if c.weights >= candidate.weights and c.activations >= candidate.activations
        )
        return min(wider, default=FLOAT)

    def ops_that_take(self, candidate: Candidate) -> tuple[str, ...]:
        """Operators whose layers may have these bits."""
        return tuple(op for op in self.layers if self.takes(op, candidate))

    def require(self, candidates: Iterable[Candidate]) -> None:
        """Refuse bits that no layer may have.

        Raises:
            ConfigError: names them and what the target takes.
        """
        foreign = [str(c) for c in candidates if not self.ops_that_take(c)]
        if foreign:
            raise ConfigError(
                f"target {self.name} does not run {', '.join(foreign)} (bits of weights and activations); "
                f"it takes {self.abilities}: choose among these, or another target."
            )

    def require_table_bits(self, bits: int) -> None:
        """Refuse bits that no table may have.

        Raises:
            ConfigError: says what the target takes.
        """
        if self.tables is not None and bits not in (*self.tables, FLOAT.weights):
            taken = " or ".join([*map(str, self.tables), "32 (float)"])
            raise ConfigError(
                f"embeddings is {bits}, but target {self.name} takes tables of {taken} bits: choose among these, or "
                "another target."
            )

    @property
    def abilities(self) -> str:
        """The bits it takes, in words: ``w8a8 (Conv, Gemm), w4a32 (Gemm)``."""
        found: dict[Candidate, list[str]] = {}
        for op, rule in self.layers.items():
            for candidate in rule.candidates or ():
                found.setdefault(candidate, []).append(op)
        everywhere = len(self.layers)
        return (
            ", ".join(f"{c}" if len(ops) == everywhere else f"{c} ({', '.join(ops)})" for c, ops in found.items())
            or "all bits"
        )


def known_target(name: str) -> str:
    """The name, where there is such a target.

    Raises:
        ValueError: there is none; the names of all are given.
    """
    if name not in TARGETS:
        raise ValueError(f"there is no such target; choose one of {', '.join(TARGETS)}")
    return name


@cache
def read_target(name: str) -> Target:
    """The rules of a target by its name, one of :data:`TARGETS`."""
    values = tomllib.loads((FOLDER / f"{name}.toml").read_text(encoding="utf-8"))
    tables = values["tables"].get("bits", "any")
    outputs = values["outputs"]["of"]
    assert outputs in OUTPUTS, outputs
    return Target(
        name=name,
        title=values["title"],
        minimum_opset=values["opset"]["minimum"],
        maximum_opset=values["opset"].get("maximum"),
        symmetric=values["activations"]["symmetric"],
        float_bias=values["bias"]["float"],
        container=values["weights"].get("container", "int4"),
        float_weights=values["weights"]["float"],
        outputs=outputs,
        output_ops=tuple(values["outputs"].get("ops", ())),
        tables=None if tables == "any" else tuple(tables),
        layers={op: _rule(rule) for op, rule in values["layers"].items()},
        sources=tuple(dict.fromkeys(s for section in _sections(values) for s in section.get("sources", ()))),
    )


def _rule(values: Mapping[str, Any]) -> LayerRule:
    words = values["candidates"]
    return LayerRule(
        candidates=None if words == "any" else tuple(sorted(parse_candidates(words))),
        one_scale=values.get("scales", "channel") == "tensor",
        unsigned=values.get("unsigned", False),
    )


def _sections(values: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    yield values
    for value in values.values():
        if isinstance(value, dict):
            yield from _sections(value)
