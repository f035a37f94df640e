"""Where and with what figures were made: it stands in every result."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

PACKAGES = ("onnxq", "onnx", "onnxruntime", "jax", "numpy")


def machine() -> dict[str, str]:
    """Processor, memory, system, commit and versions."""
    return {
        "processor": _processor(),
        "cores": str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()),
        "memory": _memory(),
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "commit": _commit(),
        **{name: version(name) for name in PACKAGES},
    }


def sentence(facts: dict[str, str]) -> str:
    """The same in a line for people."""
    versions = ", ".join(f"{name} {facts[name]}" for name in PACKAGES)
    return (
        f"{facts['processor']}, {facts['cores']} cores, {facts['memory']}; {facts['system']}; "
        f"commit {facts['commit']}; {versions}."
    )


def _processor() -> str:
    """The model's name and the instructions that decide over integer speed."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    flags = facts.get("flags", "").split()
    known = [name for name in ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8") if name in flags]
    return f"{facts.get('model name', platform.machine())} ({', '.join(known) or 'no vector extensions known'})"


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (ValueError, OSError, AttributeError):
        return "memory unknown"


def _commit() -> str:
    """The commit, marked where files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
        cwd=Path(__file__).resolve().parent,
    )
    return done.stdout.strip() or "unknown"
