"""What docstrings say of a class's fields, as Markdown."""

from __future__ import annotations

import inspect
import re
from typing import Any

_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_ENTRY = re.compile(r"    (\w+(?:, \w+)*): (.*)")


class UndescribedError(LookupError):
    """A flag, key or field without a description."""


def describe(owner: type[Any], name: str) -> str:
    """What a field or a property of a class is, in a sentence or two of Markdown.

    Args:
        owner: a class whose docstring has a section ``Attributes``.
        name: of one of its fields, or of a property with a docstring of its own.

    Raises:
        UndescribedError: nothing is said of it.
    """
    described = _attributes(owner).get(name)
    if described is None and isinstance(found := inspect.getattr_static(owner, name, None), property):
        described = (inspect.getdoc(found) or "").split("\n\n")[0] or None
    if described is None:
        raise UndescribedError(f"{owner.__module__}.{owner.__qualname__} says nothing of {name}: describe it there.")
    return to_markdown(described)


def to_markdown(text: str) -> str:
    """A docstring's text on one line, its references as code, its first letter a capital."""
    plain = " ".join(_ROLE.sub(r"`\1`", text).replace("``", "`").split())
    return plain[:1].upper() + plain[1:]


def _attributes(owner: type[Any]) -> dict[str, str]:
    """The section ``Attributes`` of a docstring; an entry may speak of several names."""
    _, _, section = (inspect.getdoc(owner) or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    names: list[str] = []
    for line in section.splitlines():
        if line and not line.startswith("    "):
            break
        entry = _ENTRY.fullmatch(line)
        if entry:
            names = entry[1].split(", ")
            found |= dict.fromkeys(names, entry[2])
        else:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return found
