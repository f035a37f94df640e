"""A virtual environment for each tool that onnxq is compared with, so that their demands do not meet."""

from __future__ import annotations

import shutil
import sys
import venv
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from process import run

INSTALL_SECONDS = 1800.0


@dataclass(frozen=True)
class Tool:
    """What to install, and which file of ``peer_drivers`` drives it.

    Attributes:
        package: whose version is told.
        requirements: as pip takes them.
        driver: module name.
        module: what the driver imports; a first import may compile extensions, and belongs to the installation.
    """

    package: str
    requirements: tuple[str, ...]
    driver: str
    module: str


TOOLS = {
    "onnxruntime": Tool("onnxruntime", ("onnxruntime==1.32.0", "onnx", "sympy"), "drive_onnxruntime", "onnxruntime"),
    "aimet": Tool("aimet-onnx", ("aimet-onnx==2.42.0",), "drive_aimet", "aimet_onnx"),
    "quark": Tool(
        "amd-quark",
        ("amd-quark==0.13", "onnxruntime>=1.22.2,<=1.28.0", "torch", "setuptools"),
        "drive_quark",
        "quark.onnx",
    ),
}


@dataclass(frozen=True)
class Place:
    """An environment.

    Attributes:
        python: its interpreter.
        version: of the tool.
        reason: why it cannot be used; empty where it can.
    """

    python: Path
    version: str = ""
    reason: str = ""


def prepare(name: str, folder: Path) -> Place:
    """The environment of a tool under a folder, made and filled if it is not there yet."""
    tool, place = TOOLS[name], folder / name
    python = place / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        venv.create(place, with_pip=True)
    found = _version(python, tool.package)
    if found:
        return Place(python, found)
    installed = run([*_installer(python), *tool.requirements], timeout=INSTALL_SECONDS)
    found = _version(python, tool.package)
    if installed.status != 0 or not found:
        return Place(python, reason=f"not installed: {installed.complaint[:200] or 'ran out of time'}")
    first = run([python, "-c", f"import {tool.module}"], timeout=INSTALL_SECONDS)
    return Place(python, found, "" if first.status == 0 else f"does not start: {first.complaint[:200]}")


def _installer(python: Path) -> list[str]:
    """The command of uv where it is at hand, which is many times faster, else of pip."""
    if find_spec("uv"):
        return [sys.executable, "-m", "uv", "pip", "install", "--python", str(python)]
    if shutil.which("uv"):
        return ["uv", "pip", "install", "--python", str(python)]
    return [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def _version(python: Path, package: str) -> str:
    done = run([python, "-c", f"from importlib.metadata import version; print(version({package!r}))"], timeout=60)
    return done.output.strip() if done.status == 0 else ""
