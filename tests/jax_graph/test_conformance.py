"""The interpreter against the node cases that the onnx package brings with it, operator by operator."""

from __future__ import annotations

import importlib
import pkgutil
import re
import warnings

import jax
import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from onnx.backend.test.case import node as node_cases

from onnxq.jax_graph.interpreter import Program, read_program, unsupported
from onnxq.jax_graph.registry import operator_names

# What is left out, by the case's name; one reason a line.
SKIPPED = {
    r"cast.*(FLOAT8|FLOAT4|INT4|UINT4|INT2|UINT2|E8M0|e8m0).*": "networks do not compute in types so short",
    r".*(STRING|string).*": "JAX has no text",
    r"averagepool_2d_ceil_last_window_starts_on_pad": "its expected values are rounded to four digits",
    r"identity_(sequence|opt)": "a tensor is an array here, never a list or nothing",
    r"reduce_(max|min)_empty_set.*": "numpy and JAX know no largest element of nothing",
    r"training_dropout.*": "training drops elements at random",
}

TOLERANCE = {"float16": 2e-3, "bfloat16": 2e-2}
"""Relative error allowed in the short types, two units of their last place; else 1e-5, a few dozen roundings."""


def cases() -> list[object]:
    """The cases of the operators that the interpreter has; their modules make them on import."""
    covered = {name.lower() for name in operator_names()}
    for module in pkgutil.iter_modules(node_cases.__path__):
        if module.name.replace("_", "") in covered:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # some divide by zero on purpose
                importlib.import_module(f"{node_cases.__name__}.{module.name}")
    found = [
        case
        for case in node_cases._NodeTestCases
        # the expanded ones state an operator by others, which have cases of their own
        if case.model.graph.node[0].op_type in operator_names() and "_expanded" not in case.name
    ]
    return [pytest.param(case, id=case.name.removeprefix("test_"), marks=_marks(case.name)) for case in found]


def _marks(name: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.skip(reason=why) for pattern, why in SKIPPED.items() if re.fullmatch(f"test_{pattern}", name)]


def given(program: Program, names: list[str], values: list[np.ndarray]) -> dict[str, object]:
    """The inputs as JAX arrays; as numpy arrays where an operator must know them while tracing."""
    static = {step.reads[i] for step in program.steps for i in step.operator.static if i < len(step.reads)}
    return {n: v if n in static else jax.numpy.asarray(v) for n, v in zip(names, values, strict=True)}


def arrays(values: list[object]) -> list[np.ndarray]:
    """Short types travel as protobuf."""
    return [numpy_helper.to_array(v) if isinstance(v, onnx.TensorProto) else np.asarray(v) for v in values]


@pytest.mark.parametrize("case", cases())
def test_operator_computes_what_the_onnx_case_expects(case) -> None:  # type: ignore[no-untyped-def]
    lacking = unsupported(case.model)
    if lacking:
        pytest.skip(f"not covered: {lacking[0]}")
    program = read_program(case.model)
    names = [i.name for i in case.model.graph.input]
    for inputs, expected in case.data_sets:
        made = program.run(program.parameters, given(program, names, arrays(inputs)))
        for name, value in zip(program.outputs, arrays(expected), strict=True):
            found = np.asarray(made[name])
            assert found.shape == value.shape
            assert found.dtype in (value.dtype, jax.dtypes.canonicalize_dtype(value.dtype))
            bound = TOLERANCE.get(value.dtype.name, 1e-5)
            np.testing.assert_allclose(found.astype(np.float64), value.astype(np.float64), rtol=bound, atol=bound)
