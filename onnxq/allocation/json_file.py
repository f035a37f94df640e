"""Values read back from the JSON that they were written as."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from onnxq.errors import ConfigError

Value = TypeVar("Value")


def read_text(path: Path, what: str) -> str:
    """A file's text.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"{what} {path} cannot be read: {reason}.") from error


def parsed(text: str, what: str, build: Callable[[Any], Value], maker: str) -> Value:
    """A value built from JSON.

    Raises:
        ConfigError: it is not JSON, or not of the form that ``build`` takes.
    """
    try:
        return build(json.loads(text))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found = "is not JSON" if isinstance(error, json.JSONDecodeError) else f"lacks or misstates {error}"
        raise ConfigError(f"{what} {found}; give a file that {maker} wrote.") from error
