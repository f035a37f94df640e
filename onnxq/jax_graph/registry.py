"""The table of operators: which function computes which ONNX operator in which versions of the operator set.

A function takes the node's operands by position (None where one is left out) and its attributes by
keyword, under the names of the ONNX specification. Operands are numpy arrays where they are known while
the graph is traced (shapes, axes, and what is computed from them) and JAX arrays otherwise; what is
computed from numpy arrays alone stays numpy.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeVar, cast

import jax
import jax.numpy as jnp
import numpy as np

Array: TypeAlias = jax.Array | np.ndarray[Any, Any]
"""A numpy array where the value is known while tracing, a JAX array otherwise."""

Function = Callable[..., Array | tuple[Array, ...]]
FunctionT = TypeVar("FunctionT", bound=Function)

OLDEST = 13
"""Prepared models have at least this operator set."""

NEWEST = 10**6


@dataclass(frozen=True)
class Operator:
    """A function that computes an ONNX operator.

    Attributes:
        function: returns one array, or a tuple of them where the operator has several outputs.
        first, last: versions of the operator set that it is right for, both included.
        static: operands whose values must be known while tracing.
        outputs: how many of the operator's outputs it computes; None for any number.
        allowed: attribute values that it is restricted to.
    """

    function: Function
    first: int
    last: int
    static: tuple[int, ...] = ()
    outputs: int | None = 1
    allowed: Mapping[str, tuple[object, ...]] = field(default_factory=dict)

    @property
    def attributes(self) -> frozenset[str]:
        """Names of the attributes that the function takes."""
        parameters = inspect.signature(self.function).parameters.values()
        return frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)

    def refusal(self, attributes: Mapping[str, Any], outputs: int) -> str | None:
        """Why it cannot compute a node with these attributes and so many outputs; None when it can."""
        for name, value in attributes.items():
            if name not in self.attributes:
                return f"attribute {name}"
            if name in self.allowed and value not in self.allowed[name]:
                return f"{name}={value}"
        if self.outputs is not None and outputs > self.outputs:
            return f"output {outputs}"
        return None


_OPERATORS: dict[str, list[Operator]] = {}


def operator(
    name: str,
    first: int = OLDEST,
    last: int = NEWEST,
    *,
    static: tuple[int, ...] = (),
    outputs: int | None = 1,
    **allowed: tuple[object, ...],
) -> Callable[[FunctionT], FunctionT]:
    """Enter a function as the operator of this name; see :class:`Operator`."""

    def enter(function: FunctionT) -> FunctionT:
        _OPERATORS.setdefault(name, []).append(Operator(function, first, last, static, outputs, allowed))
        return function

    return enter


def find_operator(name: str, opset: int) -> Operator | None:
    """The operator of this name in this version of the operator set, if there is one."""
    return next((o for o in _OPERATORS.get(name, []) if o.first <= opset <= o.last), None)


def operator_names() -> frozenset[str]:
    """Names of all operators."""
    return frozenset(_OPERATORS)


def is_static(value: Array | None) -> bool:
    """Whether a value is known while tracing."""
    return isinstance(value, (np.ndarray, np.generic))


class Namespace(Protocol):
    """The functions that numpy and jax.numpy have in common."""

    def __getattr__(self, name: str) -> Callable[..., Array]:
        """One of them."""


def namespace(*values: Array | None) -> Namespace:
    """``numpy`` when every value given is known while tracing, ``jax.numpy`` otherwise."""
    return cast(Namespace, np if all(is_static(v) for v in values if v is not None) else jnp)


def integers(value: Array) -> tuple[int, ...]:
    """The entries of an operand that is known while tracing."""
    return tuple(int(v) for v in np.asarray(value).reshape(-1))


def to_dtype(value: Array, dtype: np.dtype[Any]) -> Array:
    """The value in another type; JAX arrays stay within the types that JAX is set to."""
    return value.astype(dtype if is_static(value) else jax.dtypes.canonicalize_dtype(dtype))
