"""The configuration: every option of a quantization, validated where it comes in.

It can be given by keyword, from a TOML file whose keys are the fields' names, or by the command's flags
of the same names.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.dataclasses import dataclass

from onnxq.config.bit_widths import FLOAT, Candidate, parse_candidates
from onnxq.config.budget import parse_budgets
from onnxq.config.optimization import RECONSTRUCTION, Refinement, Tuning
from onnxq.config.targets import Target, known_target, read_target
from onnxq.config.without_effect import require_effect
from onnxq.errors import ConfigError

WeightBits = Literal[2, 3, 4, 5, 6, 7, 8, 16]
ActivationBits = Literal[2, 3, 4, 5, 6, 7, 8, 16, 32]
FLOAT_BITS = 32
"""Bits of a tensor that is left in floating point."""
CONTAINERS = ("packed", "int4", "int8")
"""How weights of less than 8 bits may be stored."""
UNPACKING_OPSET = {2: 25, 3: 25, 4: 21, 5: 25, 6: 25, 7: 18}
"""The operator set that unpacking needs (:mod:`onnxq.quant.packing`), by bits of the weights."""
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def _words(value: object) -> object:
    return tuple(part for part in value.split(",") if part.strip()) if isinstance(value, str) else value


def _candidates(words: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(map(str, parse_candidates(words))) if words else ()


def _budgets(words: tuple[str, ...]) -> tuple[str, ...]:
    parse_budgets(words)
    return words


Candidates = Annotated[tuple[str, ...], BeforeValidator(_words), AfterValidator(_candidates)]
Patterns = Annotated[tuple[str, ...], BeforeValidator(_words)]
Budgets = Annotated[tuple[str, ...], BeforeValidator(_words), AfterValidator(_budgets)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Config:
    """How to quantize.

    Attributes:
        preset: ``light`` uses closed forms only; ``advanced`` also tunes the network as a whole by gradient, or
            refines its layers where it is too large for that; it gains most at 4-bit activations and takes some five
            minutes longer. Light by default: it is within reach of advanced almost everywhere.
        weights: bits of the weights, 2 to 8 or 16.
        activations: bits of the layers' inputs, 2 to 8, 16, or 32 to leave them in float.
        edge_bits: bits of first and last layers; ``same`` treats them as the others. 8 by default: they
            hold few weights and lose most.
        candidates: bits that each layer may take, such as ``w4a8``, ``w8a8`` or ``float``; with them the bits are
            chosen layer by layer within ``budget``; ``weights`` and ``activations`` are refused beside them.
        budget: limits that the choice keeps, such as ``size=0.13`` (see :mod:`onnxq.config.budget`); candidates and
            a budget are given together.
        table_samples: calibration samples on which the candidates' losses are measured, at most half of them; the
            candidates are solved on the others.
        mode: ``sequential`` lets each layer see what the quantized layers before it really produce;
            ``parallel`` solves each on float inputs.
        target: the runtime the model is made for: ``onnxruntime``, ``tensorrt``, ``qnn``, ``openvino`` or
            ``generic`` for any other. It decides grids, biases, the form of weights and what is quantized besides
            the layers (:mod:`onnxq.config.targets` has the rules and their sources). Bits that none of its layers may
            have are refused, candidates among them. Where only some kinds of layers may have them, the others get the
            least that has as many, or stay in float, and the report says so.
        container: how weights of 7 bits and less are stored beside quantized activations. ``packed`` takes their
            bits, in operators on constants that onnxruntime works out when it starts (:mod:`onnxq.quant.packing`):
            a small file and integer kernels. ``int8`` takes a byte each, which integer kernels of every runtime
            read. ``int4`` takes the standard's type of 4 bits up to 4 bits and a byte above. ``auto`` is the
            target's own: packed for onnxruntime, int4 for the others.
        attention: bits of both operands of products of two activations (attention scores and context), 8, or
            32 to leave them in float; with ``activations`` of 16 and 32 they stay in float too.
        embeddings: bits of tables that rows are looked up in, 4, 8, or 32 to leave them in float; ``same``
            takes 4 or 8, as many as the weights need and the target has, and float for 16. Tables of few rows get
            8 at least, unless ``edge_bits`` is ``same``.
        block: weights of 4 bits and less beside float activations have a scale for so many inputs of each
            output channel; None, in Python alone, for one scale a channel. Refused where no matrix has such bits.
        exclude: layers, tables and products to leave in float, by name or by a pattern of the shell such as
            ``*/head/*``.
        samples: calibration samples to use at most; all where it is not set.
        equalise: bring the channels of a tensor to one range first, where the graph allows it exactly, and
            migrate range from the inputs of layers into their weights.
        bounded_influence: positions of far more power than the others count for less when a layer is fitted.
        second_order: start from error-propagating rounding instead of nearest rounding.
        para_normalise: bring the mean and deviation of each channel of a layer's output back to the float layer's;
            in sequential mode.
        refine: refine every layer on its own by gradient; used by the advanced preset. Where it is not set, layers are
            refined where the network is not tuned as a whole, which gains more and leaves nothing for it to add.
        refinement: how layers are refined: the keys of the table ``[refinement]``.
        reconstruct: refine the layers of each block together, for what leaves the block; used by the advanced preset
            in sequential mode.
        reconstruction: how blocks are refined: the keys of the table ``[reconstruction]``, those of ``[tuning]`` with
            other defaults.
        tune: tune biases, scales and integers of all layers through the whole network at the end; used by the
            advanced preset, unless the network is too large for the work.
        tuning: how the network is tuned: the keys of the table ``[tuning]``.
        memory_limit: bytes that calibration and solving may take together, roughly, or a string such
            as ``2GiB``. Another than the default is refused where it is below what the model needs at least.
        seed: seed of everything drawn at random: same seed, same file.
    """

    preset: Literal["light", "advanced"] = "light"
    weights: WeightBits = 8
    activations: ActivationBits = 8
    edge_bits: WeightBits | Literal["same"] = 8
    candidates: Candidates = ()
    budget: Budgets = ()
    table_samples: Annotated[int, Field(ge=1)] = 64
    mode: Literal["sequential", "parallel"] = "sequential"
    target: Annotated[str, AfterValidator(known_target)] = "onnxruntime"
    container: Literal["auto", "packed", "int4", "int8"] = "auto"
    attention: Literal[8, 32] = 8
    embeddings: Literal[4, 8, 32, "same"] = "same"
    block: Literal[16, 32, 64, 128, 256] | None = 32
    exclude: Patterns = ()
    samples: Annotated[int, Field(ge=1)] | None = None
    equalise: bool = True
    bounded_influence: bool = True
    second_order: bool = True
    para_normalise: bool = False
    refine: bool | None = None
    refinement: Refinement = Field(default_factory=Refinement)
    reconstruct: bool = False
    reconstruction: Tuning = RECONSTRUCTION
    tune: bool = True
    tuning: Tuning = Field(default_factory=Tuning)
    memory_limit: Annotated[int, Field(ge=2**26)] = 2**30
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0

    @property
    def bits(self) -> Candidate:
        """Bits of the layers between the first and the last ones."""
        return Candidate(self.weights, self.activations)

    @property
    def refines(self) -> bool:
        """Whether layers are refined by gradient."""
        return self.preset == "advanced" and (not self.tune if self.refine is None else self.refine)

    @property
    def tunes(self) -> bool:
        """Whether the network is tuned as a whole."""
        return self.tune and self.preset == "advanced"

    @property
    def reconstructs(self) -> bool:
        """Whether blocks are refined."""
        return self.reconstruct and self.preset == "advanced" and self.mode == "sequential"

    @model_validator(mode="after")
    def _within_target(self) -> Config:
        candidates = parse_candidates(self.candidates) if self.candidates else ()
        changeable = ("weights", "activations", "candidates", "budget")
        require_effect([name for name in changeable if getattr(self, name) != getattr(type(self), name)])
        self.rules.require(candidates or (self.bits,))
        if self.embeddings != "same":
            self.rules.require_table_bits(self.embeddings)
        return self

    @property
    def rules(self) -> Target:
        """What the target takes."""
        return read_target(self.target)

    @property
    def form(self) -> str:
        """How small weights are stored where all forms are possible: one of :data:`CONTAINERS`."""
        return self.rules.container if self.container == "auto" else self.container

    def stored(self, weights: int, activations: int, *, window: bool) -> str:
        """How weights are stored that have one scale a channel: one of :data:`CONTAINERS`.

        Args:
            weights: their bits.
            activations: bits of what they meet; 32 is float.
            window: they are those of a convolution.
        """
        form = self.form
        if form == "packed" and activations > 8 and not window and weights <= 4:
            form = "int4"  # the kernel that takes 4 bits beside floats takes no others
        return "int8" if weights > (7 if form == "packed" else 4) else form

    def integer_weights(self, bits: int) -> bool:
        """Whether weights of so many bits become 8-bit integers beside 8-bit activations, for integer kernels."""
        return bits <= 8 and self.stored(bits, 8, window=True) != "int4"

    def opset_of(self, candidates: Iterable[Candidate]) -> int:
        """The lowest operator set that has the types and operators of some bits."""
        return max((self._opset_of(bits) for bits in candidates), default=self.rules.minimum_opset)

    def _opset_of(self, bits: Candidate) -> int:
        forms = {self.stored(bits.weights, bits.activations, window=window) for window in (True, False)}
        needed = [13, self.rules.minimum_opset]
        if 16 in (bits.weights, bits.activations) or "int4" in forms or self.blocked(bits.weights, bits.activations):
            needed.append(21)
        if "packed" in forms:
            needed.append(UNPACKING_OPSET[bits.weights])
        return max(needed)

    @property
    def opset(self) -> int:
        """The lowest operator set that has the types asked for."""
        return self.opset_of((self.bits, self.at_edge(self.bits)))

    def blocked(self, weights: int, activations: int) -> bool:
        """Whether a matrix of these bits has a scale for each block of inputs."""
        return self.block is not None and weights <= 4 and activations == FLOAT_BITS

    def table_bits(self, weights: int) -> int:
        """Bits of tables in a model whose weights have so many."""
        if self.embeddings != "same":
            return self.embeddings
        known = (4, 8) if self.rules.tables is None else self.rules.tables
        return next((bits for bits in known if weights <= bits), FLOAT_BITS)

    def quantizes_products(self, activations: int) -> bool:
        """Whether products of two activations are quantized in a model whose activations have so many bits."""
        return max(self.attention, activations) <= 8

    def at_edge(self, bits: Candidate) -> Candidate:
        """What first and last layers take where the others take some bits."""
        if self.edge_bits == "same" or bits == FLOAT:
            return bits
        return Candidate(max(bits.weights, self.edge_bits), max(bits.activations, self.edge_bits))


def make_config(values: Mapping[str, Any]) -> Config:
    """A configuration from plain values.

    Raises:
        ConfigError: names every field that is unknown or outside its range, and what it may be; or has no effect.
    """
    prepared = {k: parse_size(v) if k == "memory_limit" and isinstance(v, str) else v for k, v in values.items()}
    try:
        config = TypeAdapter(Config).validate_python(prepared)
    except ValidationError as error:
        problems = []
        for detail in error.errors():
            place = ".".join(str(p) for p in detail["loc"] if not str(p).startswith(("literal", "constrained", "int")))
            if detail["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
                known = ", ".join(f.name for f in fields(Config))
                problems.append(f"{place} is not an option (there are {known})")
            else:
                said = detail["msg"].removeprefix("Value error, ")
                problems.append(f"{place} is {detail['input']!r}: {said[0].lower()}{said[1:]}")
        raise ConfigError("; ".join(dict.fromkeys(problems)) + ".") from error
    require_effect([name for name in values if getattr(config, name) != ()])
    return config


def read_config(path: Path) -> dict[str, Any]:
    """The values in a TOML file, not yet validated.

    Raises:
        ConfigError: the file is missing or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"configuration {path} cannot be read: {error.strerror}.") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"configuration {path} is not TOML: {error}.") from error


def parse_size(value: int | str) -> int:
    """Bytes from a number or from a string such as ``512MiB``.

    Raises:
        ConfigError: it is neither.

    Example:
        >>> parse_size("2GiB")
        2147483648
    """
    if isinstance(value, int):
        return value
    for unit, factor in UNITS.items():
        if value.endswith(unit):
            try:
                return int(float(value.removesuffix(unit)) * factor)
            except (ValueError, OverflowError):
                break
    if value.isdigit():
        return int(value)
    raise ConfigError(
        f"size {value!r} is not understood; write bytes or a number with {', '.join(UNITS)}, such as 2GiB."
    )
