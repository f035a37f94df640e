"""Programs that JAX compiles, kept on disk: the second command with layers of the same shapes compiles none again."""

from __future__ import annotations

import os
from pathlib import Path

SLOW_SECONDS = 0.2
"""Seconds of compilation from which a program is worth a file."""


def keep_compiled_programs() -> None:
    """Point JAX at a cache in the user's cache folder, unless the environment names one already.

    JAX reads these variables when it is first imported, which no verb does before it needs gradients. Only the command
    calls this: it has the process to itself. Whoever calls the library sets ``JAX_COMPILATION_CACHE_DIR`` for the same.
    ``XDG_CACHE_HOME`` moves the user's cache folder. A folder that cannot be written costs the time to compile again.
    """
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(home / "onnxq" / "jax"))
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", str(SLOW_SECONDS))
