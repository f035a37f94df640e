"""Options that several verbs share, and the configuration that they make together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from onnxq.config import UNITS, Config, make_config, read_config
from onnxq.config.targets import TARGETS

Function = TypeVar("Function", bound=Callable[..., Any])

FILE = click.Path(path_type=Path)


def _bits(context: click.Context, parameter: click.Parameter, value: str | None) -> int | str | None:
    return int(value) if value is not None and value.isdecimal() else value


def _field(name: str, text: str, **details: Any) -> Any:
    """The option of a configuration field; its default is the field's, told in the help but not filled in."""
    value = getattr(Config(), name)
    if name == "memory_limit":
        unit, factor = next((u, f) for u, f in reversed(UNITS.items()) if value % f == 0)
        value = f"{value // factor}{unit}"
    shown = "all" if value is None else "none" if value == () else value
    return click.option(f"--{name.replace('_', '-')}", name, default=None, help=f"{text} [default: {shown}]", **details)


# Values are checked by the configuration itself, so that a flag and a line of TOML are told the same.
FIELDS = {
    "preset": _field(
        "preset",
        "advanced also tunes the network by gradient; light uses closed forms only and takes a fraction of the time.",
        metavar="light|advanced",
    ),
    "weights": _field("weights", "Bits of the weights: 2 to 8, or 16.", type=int, metavar="BITS"),
    "activations": _field(
        "activations", "Bits of the layers' inputs: 2 to 8, 16, or 32 to leave them in float.", type=int, metavar="BITS"
    ),
    "edge_bits": _field(
        "edge_bits",
        "Bits of the first and last layers at least; same treats them as the others.",
        callback=_bits,
        metavar="BITS|same",
    ),
    "candidates": _field(
        "candidates",
        "Bits to choose from for each layer: weights and activations such as w4a8, w4a32 for inputs in float, float.",
        metavar="w2a8,w4a8,…",
    ),
    "budget": _field(
        "budget",
        "What the choice among the candidates may spend, such as size=0.13 or size=0.2,latency=0.8; it loses the least "
        "within that. Under loss=… it is the smallest.",
        metavar="WHAT=AMOUNT,…",
    ),
    "table_samples": _field(
        "table_samples", "Calibration samples on which candidates are compared.", type=int, metavar="N"
    ),
    "mode": _field(
        "mode",
        "sequential: each layer sees what the quantised layers before it produce; parallel: each is solved alone.",
        metavar="sequential|parallel",
    ),
    "target": _field(
        "target",
        "Runtime that the model is made for: it decides grids, biases and the form of the weights.",
        metavar="|".join(TARGETS),
    ),
    "container": _field(
        "container",
        "How weights of 7 bits and less are stored: packed takes their bits, which onnxruntime unpacks for its integer "
        "kernels when it starts; int8 a byte each; int4 the standard's 4-bit type. auto is packed for onnxruntime and "
        "int4 for other targets.",
        metavar="auto|packed|int4|int8",
    ),
    "attention": _field(
        "attention",
        "Bits of the operands of products of two activations: 8, or 32 to leave them in float.",
        type=int,
        metavar="BITS",
    ),
    "embeddings": _field(
        "embeddings",
        "Bits of tables that rows are looked up in: 4, 8, or 32 to leave them in float; same follows the weights.",
        callback=_bits,
        metavar="BITS|same",
    ),
    "block": _field(
        "block",
        "Inputs that share a scale of weights of 4 bits and less beside float activations.",
        type=int,
        metavar="N",
    ),
    "exclude": _field(
        "exclude", "Layers to leave in float, by name or pattern, such as '*/head/*'.", metavar="PATTERN,…"
    ),
    "samples": _field("samples", "Calibration samples to use at most.", type=int, metavar="N"),
    "memory_limit": _field(
        "memory_limit", "Memory that calibration and solving may take, roughly, such as 4GiB.", metavar="SIZE"
    ),
    "seed": _field("seed", "Of everything drawn at random: same seed, same file.", type=int, metavar="N"),
}

_COMMON = (
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout instead of text."),
    click.option("--debug", is_flag=True, help="Show the Python traceback of an error."),
)
_CONFIG = click.option(
    "--config",
    "config_file",
    type=FILE,
    metavar="FILE.toml",
    help="TOML file with these options as keys (underscores for hyphens) and the tables [refinement], [tuning] and "
    "[reconstruction]; flags win.",
)

IGNORE = click.option(
    "--ignore",
    default="",
    metavar="NAME,…",
    help="Names of arrays in the samples that the model does not take, to pass over.",
)
"""Names that samples may hold beside the inputs."""


def names(words: str) -> tuple[str, ...]:
    """Names parted by commas."""
    return tuple(word.strip() for word in words.split(",") if word.strip())


def common_options(function: Function) -> Function:
    """``--json`` and ``--debug``, which every verb has."""
    return _applied(_COMMON, function)


def config_options(*names: str) -> Callable[[Function], Function]:
    """The flags of some configuration fields, and ``--config``."""

    def decorate(function: Function) -> Function:
        return _applied((*(FIELDS[name] for name in names), _CONFIG), function)

    return decorate


def configured(file: Path | None, flags: Mapping[str, Any]) -> Config:
    """The configuration from a TOML file and the flags that were given, which override it.

    Raises:
        ConfigError: the file cannot be read, or a value is not allowed.
    """
    return make_config(given(file, flags))


def given(file: Path | None, flags: Mapping[str, Any]) -> dict[str, Any]:
    """The values in a TOML file and those of the flags that were given, which override it.

    Raises:
        ConfigError: the file cannot be read.
    """
    values = read_config(file) if file else {}
    return values | {name: value for name, value in flags.items() if value is not None}


def _applied(options: tuple[Any, ...], function: Function) -> Function:
    for option in reversed(options):
        function = option(function)
    return function
