"""JAX's compiled programs kept on disk: the second run of a shape does not compile it again."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import jax


def keep_compiled_programs() -> None:
    """Point JAX's persistent cache at the user's cache folder, unless one is configured already.

    ``JAX_COMPILATION_CACHE_DIR`` chooses another folder; ``XDG_CACHE_HOME`` moves the default one. A
    folder that cannot be written costs nothing but the time to compile again.
    """
    config: Any = jax.config
    if config.jax_compilation_cache_dir is None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        config.update("jax_compilation_cache_dir", str(home / "onnxq" / "jax"))
        config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
