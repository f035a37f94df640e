"""The order in which the files of a folder are read: the one a person would put them in."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from pathlib import Path

_NUMBER = re.compile(r"(\d+)")


def natural_key(text: str) -> tuple[list[str | int], str]:
    """Sorting key under which numbers inside names count as numbers.

    Names that differ only in leading zeros are told apart by the name itself, so the order is total.

    >>> sorted(["b", "a10", "a9", "a09"], key=natural_key)
    ['a09', 'a9', 'a10', 'b']
    """
    # The split alternates text and digits, so equal positions always hold comparable types.
    parts: list[str | int] = [int(part) if index % 2 else part for index, part in enumerate(_NUMBER.split(text))]
    return parts, text


def files_in(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Visible files directly in a folder whose suffix (lower case, with dot) is listed, in natural order.

    Raises:
        OSError: the folder cannot be listed.
    """
    found = (path for path in folder.iterdir() if _wanted(path.name, suffixes) and path.is_file())
    return sorted(found, key=lambda path: natural_key(path.name))


def files_under(folder: Path, suffixes: Collection[str]) -> list[Path]:
    """Visible files in a folder and its visible sub-folders, in the natural order of their relative paths.

    Links to folders are not followed, since they may lead in circles.

    Raises:
        OSError: a folder cannot be listed.
    """
    found: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if _wanted(name, suffixes)]
    return sorted(found, key=lambda path: [natural_key(part) for part in path.relative_to(folder).parts])


def _wanted(name: str, suffixes: Collection[str]) -> bool:
    # Hidden files are the droppings of file managers (``._image.jpg``) and never samples.
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in suffixes


def _raise(error: OSError) -> None:
    raise error
