"""JSON Schemas of what onnxq prints and writes, made from its dataclasses and what they say of their fields.

Most objects are a dataclass as it stands. Where the written form differs (a list that becomes an object, a property
that is written too), :data:`FORMS` says how; a test holds real output against every schema.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from types import NoneType, UnionType
from typing import Any, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints

from onnxq.allocation.bit_allocation import BitAllocation
from onnxq.allocation.problem import Agreement, AllocationProblem
from onnxq.allocation.sensitivity_table import CostTable, SensitivityTable
from onnxq.config.bit_widths import Candidate
from onnxq.config.budget import LOSS, QUANTITIES
from onnxq.demo import Demonstration, Variant
from onnxq.docs.descriptions import describe
from onnxq.ir.tensor import TensorInfo
from onnxq.plan.inspection import Inspection
from onnxq.report.run import RunReport
from onnxq.verify import VerificationReport
from onnxq.verify.findings import LayerBits, TensorRange
from onnxq.verify.report import LevelCheck, OutputFidelity

Schema: TypeAlias = dict[str, Any]

DIALECT = "https://json-schema.org/draft/2020-12/schema"


@dataclass(frozen=True)
class Form:
    """How the JSON of a dataclass differs from its fields.

    Attributes:
        keyed: fields whose items become the values of an object, by the item's field that is the key.
        omitted: fields that are not written.
        renamed: names in JSON by field.
        properties: computed values that are written too.
        optional: fields that are left out where they are None.
    """

    keyed: Mapping[str, str] = field(default_factory=dict)
    omitted: frozenset[str] = frozenset()
    renamed: Mapping[str, str] = field(default_factory=dict)
    properties: tuple[str, ...] = ()
    optional: frozenset[str] = frozenset()


FORMS: dict[type[Any], Form] = {
    RunReport: Form(keyed={"loads": "level"}, properties=("ok", "speedup")),
    VerificationReport: Form(
        keyed={"outputs": "name", "loads": "level", "bits": "name"}, renamed={"difference": "first_difference"}
    ),
    OutputFidelity: Form(omitted=frozenset({"name"}), optional=frozenset({"left_out"})),
    LevelCheck: Form(omitted=frozenset({"level"})),
    LayerBits: Form(omitted=frozenset({"name"})),
    TensorRange: Form(properties=("share_outside",)),
    Inspection: Form(keyed={"inputs": "name", "outputs": "name"}, properties=("parameters", "macs")),
    TensorInfo: Form(omitted=frozenset({"name"})),
    SensitivityTable: Form(omitted=frozenset({"layers", "candidates"})),
}

_PLAIN: dict[Any, Schema] = {
    int: {"type": "integer"},
    float: {"type": ["number", "null"]},  # null where it is not finite
    str: {"type": "string"},
    bool: {"type": "boolean"},
    Any: {},
    Candidate: {"type": "string", "pattern": r"^(float|w\d+a\d+)$"},
}


def documents() -> dict[str, Schema]:
    """The schema of each document by its name."""
    allocation = _object_of(BitAllocation)
    named = {"model": _text("Path of the model."), "output": _text("Path that was written.")}
    variant = _object(
        {
            "quantize": _run() | {"title": "onnxq quantize", "description": describe(Variant, "report")},
            "verify": _object_of(VerificationReport)
            | {"title": "onnxq verify", "description": describe(Variant, "verification")},
        }
    )
    found = {
        "quantize": _extended(named, _run()),
        "verify": _object_of(VerificationReport),
        "inspect": _extended({"model": named["model"]}, _object_of(Inspection)),
        "sensitivity-table": _table(),
        "allocation": allocation,
        "pareto": _object(
            {
                "over": {"enum": [q for q in QUANTITIES if q != LOSS], "description": "The cost that varies."},
                "front": _list(allocation) | {"description": "Allocations from the cheapest to the most accurate."},
            }
        ),
        "demo": _object(
            {
                "model": _text(describe(Demonstration, "model")),
                "ok": {"type": "boolean", "description": describe(Demonstration, "ok")},
                "seconds": {"type": "number", "description": describe(Demonstration, "seconds")},
                "variants": _mapping(variant) | {"description": describe(Demonstration, "variants")},
            }
        ),
    }
    return {name: {"$schema": DIALECT, "title": f"onnxq {name}", **schema} for name, schema in found.items()}


def schema_of(hint: Any) -> Schema:
    """The schema of a value by its annotation."""
    if hint in _PLAIN:
        return dict(_PLAIN[hint])
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {"enum": list(inner)}
    if origin in (Union, UnionType):
        return _or_null(schema_of(next(part for part in inner if part is not NoneType)))
    if isinstance(hint, type) and issubclass(hint, Enum):
        return {"enum": [member.name.lower() for member in hint]}
    if dataclasses.is_dataclass(hint):
        return _object_of(hint)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return _mapping(schema_of(inner[1]))
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return _list(schema_of(inner[0]))
    if getattr(hint, "__name__", "") == "dtype" or getattr(origin, "__name__", "") == "dtype":
        return {"type": "string"}
    raise TypeError(f"no JSON form is known for {hint!r}.")


def _object_of(owner: Any) -> Schema:
    """The schema of a dataclass, every field of it described."""
    form, hints = FORMS.get(owner, Form()), get_type_hints(owner)
    entries, optional = {}, []
    for part in dataclasses.fields(owner):
        if part.name in form.omitted:
            continue
        schema = schema_of(hints[part.name])
        if part.name in form.keyed:
            schema = _mapping(schema["items"])
        name = form.renamed.get(part.name, part.name)
        entries[name] = schema | {"description": describe(owner, part.name)}
        optional += [name] if part.name in form.optional else []
    for name in form.properties:
        hint = get_type_hints(getattr(owner, name).fget)["return"]
        entries[name] = schema_of(hint) | {"description": describe(owner, name)}
    return _object(entries, optional)


def _run() -> Schema:
    """The report of a quantization; its allocation says besides what came of the choice."""
    run = _object_of(RunReport)
    made = {
        "measured_loss": {"type": ["number", "null"], "description": "Loss of the model that was made."},
        "rounds": _list(
            _object(
                {
                    "predicted": {
                        "type": ["number", "null"],
                        "description": "Loss that was predicted; null where the bits were given by hand.",
                    },
                    "measured": {"type": "number", "description": "Loss that was measured."},
                }
            )
        )
        | {"description": "Each allocation that was solved, in order."},
    }
    chosen = _or_null(_extended({}, _object_of(BitAllocation), made))
    run["properties"]["allocation"] = chosen | {"description": describe(RunReport, "allocation")}
    run["properties"]["check"]["title"] = "onnxq verify"
    return run


def _table() -> Schema:
    """The table that ``onnxq sensitivity`` writes."""
    matrix = schema_of(tuple[tuple[float, ...], ...])
    costs = _object(
        {
            "values": matrix | {"description": describe(CostTable, "values")},
            "whole": {"type": ["number", "null"], "description": describe(CostTable, "whole")},
            "rest": {"type": "number", "description": describe(CostTable, "rest")},
            "source": _text(describe(CostTable, "sources")),
        }
    )
    names = schema_of(tuple[str, ...])
    return _object(
        {
            "model": _text(describe(AllocationProblem, "model")),
            "layers": names | {"description": describe(SensitivityTable, "layers")},
            "candidates": schema_of(tuple[Candidate, ...]) | {"description": describe(SensitivityTable, "candidates")},
            "edges": names | {"description": describe(AllocationProblem, "edges")},
            "agreements": schema_of(tuple[Agreement, ...]) | {"description": describe(AllocationProblem, "agreements")},
            "sensitivity": _object_of(SensitivityTable) | {"description": describe(AllocationProblem, "sensitivity")},
            "costs": _mapping(costs) | {"description": describe(AllocationProblem, "costs")},
        }
    )


def _text(description: str) -> Schema:
    return {"type": "string", "description": description}


def _object(entries: Mapping[str, Schema], optional: Sequence[str] = ()) -> Schema:
    required = [name for name in entries if name not in optional]
    return {"type": "object", "properties": dict(entries), "required": required, "additionalProperties": False}


def _extended(before: Mapping[str, Schema], schema: Schema, after: Mapping[str, Schema] | None = None) -> Schema:
    """An object with entries before and behind its own."""
    own = schema["properties"]
    optional = [name for name in own if name not in schema["required"]]
    return _object({**before, **own, **(after or {})}, optional)


def _mapping(values: Schema) -> Schema:
    return {"type": "object", "additionalProperties": values}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _or_null(schema: Schema) -> Schema:
    """A schema that takes null as well."""
    if "enum" in schema:
        return {**schema, "enum": [*schema["enum"], None]}
    kinds = schema.get("type", [])
    kinds = [kinds] if isinstance(kinds, str) else kinds
    return {**schema, "type": [*kinds, *(["null"] if "null" not in kinds else [])]} if kinds else schema
