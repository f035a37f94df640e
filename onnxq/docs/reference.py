"""The reference, written from the code: commands, configuration, samples of images, files, targets."""

from __future__ import annotations

import inspect
import json
import math
import re
from collections.abc import Iterator, Sequence
from typing import Any

import click
from pydantic import TypeAdapter

import onnxq
from onnxq.cli import main
from onnxq.config import Config
from onnxq.config.budget import QUANTITIES
from onnxq.config.targets import TARGETS, Target, read_target
from onnxq.data import preprocess
from onnxq.docs.descriptions import UndescribedError, describe, to_markdown
from onnxq.docs.schemas import Schema, documents
from onnxq.errors import OnnxqError

HEADING = """# Reference

Generated from the code by `python -m onnxq.docs`; a test fails where the two differ. Change the code, not this page.
"""
WRITTEN_BY = {
    "quantize": "`onnxq quantize --json`. In Python `result.report.to_dict()`, without `model` and `output`.",
    "verify": "`onnxq verify --json`.",
    "inspect": "`onnxq inspect --json`.",
    "sensitivity-table": "`onnxq sensitivity -o TABLE.json`; `--json` prints it with `model` and `output` as paths.",
    "allocation": "`onnxq allocate -o ALLOCATION.json` and `--json`; `onnxq quantize --allocation` reads it, "
    "and of one written by hand needs `choice` alone.",
    "pareto": "`onnxq allocate --pareto -o FRONT.json` and `--json`; `onnxq quantize --allocation FRONT.json "
    "--point N` takes the N-th of `front`.",
    "demo": "`onnxq demo --json`.",
}


def generated_pages() -> dict[str, str]:
    """Text of each generated page by its path below the folder of the documentation.

    Raises:
        UndescribedError: a flag, a key or a field of a file has no description.
    """
    schemas = documents()
    parts = (HEADING, *_commands(), *_configuration(), *_images(), *_files(schemas), *_targets(), *_errors())
    pages = {"reference.md": "\n".join(parts)}
    return pages | {
        f"schemas/{name}.json": json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
        for name, schema in schemas.items()
    }


def _commands() -> Iterator[str]:
    yield "## Commands\n"
    yield f"{_paragraphs(main)}\n"
    for name, command in main.commands.items():
        yield f"### onnxq {name}\n"
        context = click.Context(command, info_name=f"onnxq {name}")
        yield f"    {' '.join(command.get_usage(context).removeprefix('Usage:').split())}\n"
        yield f"{_paragraphs(command)}\n"
        rows = [_flag(name, option) for option in command.params if isinstance(option, click.Option)]
        yield _table(("flag", "what it does"), rows)


def _paragraphs(command: click.Command) -> str:
    paragraphs = inspect.cleandoc(command.help or "").split("\n\n")
    if not paragraphs[0]:
        raise UndescribedError(f"command {command.name} has no docstring.")
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in paragraphs)


def _flag(verb: str, option: click.Option) -> tuple[str, str]:
    if not option.help:
        raise UndescribedError(f"onnxq {verb} says nothing of {option.opts[0]}: give it a help text.")
    value = "" if option.is_flag else f" {option.metavar or 'N'}"
    flags = ", ".join(f"`{flag}{value}`" for flag in option.opts)
    return flags, f"{'Required. ' if option.required else ''}{option.help}"


def _configuration() -> Iterator[str]:
    yield "## Configuration\n"
    yield (
        "The keys of `--config FILE.toml`, and the fields of `onnxq.Config`. Flags of the same name win over the file. "
        "A list may be written as one string with commas.\n"
    )
    schema = TypeAdapter(Config).json_schema()
    tables = {name: entry for name, entry in schema["properties"].items() if "$ref" in entry}
    yield _keys(Config, {k: v for k, v in schema["properties"].items() if k not in tables})
    for name in tables:
        value = getattr(Config(), name)
        yield f"### [{name}]\n"
        yield f"{describe(Config, name)}\n"
        yield _keys(type(value), schema["$defs"][type(value).__name__]["properties"], value)
    yield "### Quantities of a budget\n"
    yield _table(("quantity", "what it is"), [(f"`{name}`", to_markdown(text)) for name, text in QUANTITIES.items()])


def _keys(owner: Any, entries: dict[str, Schema], values: Any = None) -> str:
    """A row for each key; defaults are those of ``values`` where they are given."""
    values = owner() if values is None else values
    rows = []
    for name, entry in entries.items():
        described = entry.get("description") or describe(owner, name)
        rows.append((f"`{name}`", _values(entry), _told(getattr(values, name)), to_markdown(described)))
    return _table(("key", "values", "default", "what it does"), rows)


def _values(entry: Schema) -> str:
    """What a key may be, from its schema."""
    if "anyOf" in entry:
        return " or ".join(_values(part) for part in entry["anyOf"] if part.get("type") != "null")
    if "const" in entry or "enum" in entry:
        return ", ".join(f"`{word}`" for word in entry.get("enum", [entry.get("const")]) if word is not None)
    if entry.get("type") == "array":
        if "prefixItems" in entry:
            return f"list of {len(entry['prefixItems'])}: {_values(entry['prefixItems'][0])}"
        return f"list: {_values(entry['items'])}"
    limits = {"minimum": "from", "exclusiveMinimum": "above", "maximum": "to", "exclusiveMaximum": "below"}
    told = [f"{word} {_number(entry[key])}" for key, word in limits.items() if key in entry]
    kind = str(entry["type"])
    return " ".join([{"boolean": "`true`, `false`", "string": "text"}.get(kind, kind), *told])


def _number(value: float) -> str:
    """A limit as people write it."""
    power = math.log2(value) if value > 1e6 else 0.5
    return f"2^{power:.0f}" if power.is_integer() else f"{value:,g}"


def _told(value: Any) -> str:
    """A default as TOML has it."""
    if value is None:
        return "not set"
    if isinstance(value, tuple):
        value = list(value)
    return f"`{value:g}`" if isinstance(value, float) else f"`{json.dumps(value)}`"


def _images() -> Iterator[str]:
    yield "## preprocess.toml\n"
    yield f"{_from_docstring(preprocess)}\n"
    schema = TypeAdapter(preprocess.Preprocess).json_schema()
    yield _keys(preprocess.Preprocess, schema["properties"])


def _from_docstring(module: Any) -> str:
    """A module's docstring behind its first line, its examples as code."""
    text = inspect.getdoc(module) or ""
    return text.partition("\n\n")[2].replace("::\n", ":\n").replace("``", "`")


def _files(schemas: dict[str, Schema]) -> Iterator[str]:
    yield "## JSON\n"
    yield (
        "What `--json` prints and what is written as JSON. `[]` stands for each item of a list, `*` for each key of an "
        "object. Numbers are finite or null. Each has a JSON Schema in [schemas](schemas).\n"
    )
    for name, schema in schemas.items():
        yield f"### {name}\n"
        yield f"{WRITTEN_BY[name]} Schema: [{name}.json](schemas/{name}.json).\n"
        yield _table(("key", "type", "what it is"), list(_fields(schema, "")))


def _fields(schema: Schema, path: str) -> Iterator[tuple[str, str, str]]:
    """A row for each entry of an object, and for those below it; a document in another has rows of its own alone."""
    for name, entry in schema["properties"].items():
        if "description" not in entry:
            raise UndescribedError(f"{path}{name} has no description.")
        mark, inner = _items(entry)
        whole = entry.get("title", "").removeprefix("onnxq ")
        told = _in_json(entry["description"])
        yield f"`{path}{name}`", _kind(entry), f"{told} Its keys are those of [{whole}](#{whole})." if whole else told
        if "properties" in inner and not whole:
            yield from _fields(inner, f"{path}{name}{mark}.")


def _items(entry: Schema) -> tuple[str, Schema]:
    """What a list or a mapping holds in the end, and the marks of the levels in between."""
    for key, mark in (("items", "[]"), ("additionalProperties", ".*")):
        if isinstance(entry.get(key), dict):
            below, inner = _items(entry[key])
            return mark + below, inner
    return "", entry


def _in_json(text: str) -> str:
    """A description in the words of JSON."""
    return re.sub(r"`?\b(None|NaN)\b`?(?! counts| or infinite)", "null", text)


def _kind(entry: Schema) -> str:
    """The type of a value in words."""
    if "enum" in entry:
        return ", ".join("null" if word is None else f"`{word}`" for word in entry["enum"])
    kinds = entry.get("type", "any")
    lists = f"list of {_kind(entry['items'])}" if "items" in entry else "list"
    return " or ".join(lists if kind == "array" else kind for kind in ([kinds] if isinstance(kinds, str) else kinds))


def _targets() -> Iterator[str]:
    yield "## Targets\n"
    yield "The rules of `--target`, from the files in `onnxq/target/`; each rule there names its source.\n"
    head = ("target", "runtime", "bits", "activations", "biases", "opset")
    yield _table(head, [_target(read_target(name)) for name in TARGETS])


def _target(target: Target) -> tuple[str, ...]:
    grids = "signed around 0" if target.symmetric else "unsigned with a zero point"
    opset = (
        f"{target.minimum_opset} to {target.maximum_opset}" if target.maximum_opset else f"{target.minimum_opset} on"
    )
    return f"`{target.name}`", target.title, target.abilities, grids, "float" if target.float_bias else "int32", opset


def _errors() -> Iterator[str]:
    yield "## Errors\n"
    yield "In Python every error that onnxq raises on purpose derives from `onnxq.OnnxqError`.\n"
    yield _table(("error", "when"), list(_tree(OnnxqError)))


def _tree(error: type[Any]) -> Iterator[tuple[str, str]]:
    """An error and those below it that have a public name."""
    yield f"`{error.__name__}`", to_markdown((inspect.getdoc(error) or "").partition("\n\n")[0])
    for below in error.__subclasses__():
        if below.__name__ in onnxq.__all__:
            yield from _tree(below)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells) + "\n"
