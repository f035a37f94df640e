"""The process belongs to whoever calls the library: what it had set stays set, and its standard output stays empty."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import onnx
import pytest
from tiny_model import tiny_images, tiny_model

import onnxq

pytestmark = pytest.mark.slow

GRADIENT = onnxq.Config(weights=4, preset="advanced", refine=True, tune=False)
MIXED = onnxq.Config(candidates=("w4a8", "w8a8"), budget=("size=0.9",))

QUICK = """
import onnx
import onnxq
from tiny_model import tiny_images, tiny_model
model = onnxq.quantize(tiny_model(), tiny_images(16), onnxq.Config(candidates=("w4a8", "w8a8"), budget=("size=0.9",)))
"""


def state() -> dict[str, Any]:
    """What a library could leave changed behind it."""
    return {
        "jax": dict(jax.config.values),
        "environment": dict(os.environ),
        "files": [(os.fstat(number).st_dev, os.fstat(number).st_ino) for number in range(3)],
        "numpy": np.geterr(),
        "folder": os.getcwd(),
    }


@pytest.fixture
def no_cache_set() -> Iterator[None]:
    """JAX as a caller has it who said nothing of a cache; the tests have one."""
    ours = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", ours)


@pytest.mark.usefixtures("no_cache_set")
@pytest.mark.parametrize("config", [GRADIENT, MIXED], ids=["by gradient", "with bits of their own"])
def test_a_call_leaves_the_process_as_it_was(
    config: onnxq.Config, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def moved(*_: int) -> None:
        raise AssertionError("a file descriptor of the process was moved")

    before = state()
    monkeypatch.setattr(os, "dup2", moved)  # not for a moment either: other threads write to it
    result = onnxq.quantize(tiny_model(), tiny_images(16), config)
    monkeypatch.undo()
    onnx.checker.check_model(result.model)
    assert state() == before
    assert capfd.readouterr() == ("", "")


def test_a_first_allocation_prints_nothing() -> None:
    """HiGHS greets once in a process, if at all: so this needs one of its own."""
    helpers = Path(__file__).parents[1] / "helpers"
    path = os.pathsep.join([str(helpers), *sys.path])
    run = subprocess.run([sys.executable, "-c", QUICK], env={**os.environ, "PYTHONPATH": path}, capture_output=True)
    assert (run.returncode, run.stdout) == (0, b""), run.stderr.decode()


def test_the_command_keeps_compiled_programs_where_the_environment_says(tmp_path: Path) -> None:
    last = "import atexit, os; atexit.register(lambda: print(os.environ['JAX_COMPILATION_CACHE_DIR']))"
    show = f"{last}; import onnxq.cli; onnxq.cli.main(['--version'])"
    usual = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")} | {"XDG_CACHE_HOME": str(tmp_path)}
    for environment, expected in (
        (usual, tmp_path / "onnxq" / "jax"),
        (usual | {"JAX_COMPILATION_CACHE_DIR": "/own"}, Path("/own")),
    ):
        path = os.pathsep.join(sys.path)
        run = subprocess.run(
            [sys.executable, "-c", show], env={**environment, "PYTHONPATH": path}, capture_output=True, text=True
        )
        assert run.stdout.split()[-1] == str(expected), run.stderr
