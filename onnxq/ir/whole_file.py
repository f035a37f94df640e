"""Files that appear complete or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replaced_whole(path: Path) -> Iterator[Path]:
    """A place beside a file to write a draft, which takes the file's name when the block ends well.

    No other process and no other thread has the same place. What else lies there goes when the block ends.

    Raises:
        OSError: the place cannot be made, or the draft cannot take the name.
    """
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        draft = Path(folder) / path.name
        yield draft
        os.replace(draft, path)
