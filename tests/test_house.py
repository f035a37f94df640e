"""The order of the house: what a reader may count on before opening a file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "onnxq"
MODULES = sorted(PACKAGE.rglob("*.py"))

MOST_FILES, MOST_LINES, MOST_ARGUMENTS = 10, 300, 8

PUBLIC = {"quantize", "sensitivity", "verify"}
"""Verbs that people call with what they need by name."""

OPERATORS = PACKAGE / "jax_graph"
"""Its functions take the attributes that the standard gives an operator."""

CLOSED = ("acceptance", "adaptation", "calibration", "emit", "plan", "preprocess")
"""Rooms that no foreign library's untyped values come into, but for arrays of any element type."""

ELEMENT_TYPES = {"NDArray", "np.dtype", "np.ndarray"}


def name(path: Path) -> str:
    return str(path.relative_to(PACKAGE))


def functions(path: Path) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def arguments(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    given = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    return [argument.arg for argument in given if argument.arg not in ("self", "cls")]


def is_command(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether click calls it: with every option of the command line."""
    return any("click." in ast.unparse(decorator) for decorator in function.decorator_list)


def test_few_files_lie_at_the_top() -> None:
    assert len([path for path in PACKAGE.iterdir() if path.is_file()]) <= MOST_FILES


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_module_is_read_at_one_sitting(path: Path) -> None:
    assert path.read_text().count("\n") <= MOST_LINES


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_a_function_takes_few_arguments(path: Path) -> None:
    """What travels together is one value."""
    if OPERATORS in path.parents:
        return
    many = {f.name: len(arguments(f)) for f in functions(path) if not is_command(f) and f.name not in PUBLIC}
    assert {f: count for f, count in many.items() if count > MOST_ARGUMENTS} == {}


@pytest.mark.parametrize("room", CLOSED)
def test_values_have_types_inside_the_house(room: str) -> None:
    untyped = []
    for path in (PACKAGE / room).rglob("*.py"):
        tree = ast.parse(path.read_text())
        spared = {id(inner) for node in ast.walk(tree) if spares(node) for inner in ast.walk(node)}
        found = (n for n in ast.walk(tree) if isinstance(n, ast.Name) and n.id == "Any" and id(n) not in spared)
        untyped += [f"{name(path)}:{node.lineno}" for node in found]
    assert untyped == []


def spares(node: ast.AST) -> bool:
    """Whether ``Any`` may stand inside: as an element type, or as that of a node's attributes by name."""
    if isinstance(node, ast.Subscript):
        return ast.unparse(node.value) in ELEMENT_TYPES or ast.unparse(node) == "dict[str, Any]"
    return isinstance(node, ast.arg) and node.arg == "attributes"
