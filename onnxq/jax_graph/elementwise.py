"""Operators that treat each element for itself."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from onnx import helper

from onnxq.jax_graph.registry import OLDEST, Array, Function, is_static, namespace, operator, to_dtype

UNARY = {
    "Abs": "abs",
    "Ceil": "ceil",
    "Cos": "cos",
    "Exp": "exp",
    "Floor": "floor",
    "IsNaN": "isnan",
    "Log": "log",
    "Neg": "negative",
    "Not": "logical_not",
    "Reciprocal": "reciprocal",
    "Round": "round",
    "Sign": "sign",
    "Sin": "sin",
    "Sqrt": "sqrt",
    "Tanh": "tanh",
}
"""ONNX operators of one operand, and their name in numpy."""

BINARY = {
    "Add": "add",
    "And": "logical_and",
    "Equal": "equal",
    "Greater": "greater",
    "GreaterOrEqual": "greater_equal",
    "Less": "less",
    "LessOrEqual": "less_equal",
    "Mul": "multiply",
    "Or": "logical_or",
    "Sub": "subtract",
    "Xor": "logical_xor",
}
"""ONNX operators of two operands, and their name in numpy."""


def _from_numpy(name: str) -> Function:
    def function(*operands: Array) -> Array:
        made: Array = getattr(namespace(*operands), name)(*operands)
        return made

    return function


for _name, _equivalent in (UNARY | BINARY).items():
    operator(_name, 1 if _name in ("And", "Not", "Or", "Xor") else OLDEST)(_from_numpy(_equivalent))


@operator("Div")
def div(a: Array, b: Array) -> Array:
    """Quotient; that of integers is cut off towards zero."""
    xp = namespace(a, b)
    if not np.issubdtype(a.dtype, np.integer):
        return xp.divide(a, b)
    if np.issubdtype(a.dtype, np.unsignedinteger):
        return xp.floor_divide(a, b)
    return xp.sign(a) * xp.sign(b) * xp.floor_divide(xp.abs(a), xp.abs(b))


@operator("Mod")
def mod(a: Array, b: Array, *, fmod: int = 0) -> Array:
    """Remainder with the divisor's sign, or with the dividend's for ``fmod``."""
    xp = namespace(a, b)
    return xp.fmod(a, b) if fmod else xp.mod(a, b)


@operator("Pow")
def power(a: Array, b: Array) -> Array:
    """Power in the type of the base."""
    xp = namespace(a, b)
    if is_static(b) and b.size == 1 and float(b.reshape(())) == 2.0:
        shape = np.broadcast_shapes(a.shape, b.shape)  # a square has a cheaper gradient than a power
        return xp.broadcast_to(xp.multiply(a, a), shape)
    if a.dtype == b.dtype:
        return xp.power(a, b)
    return to_dtype(xp.power(to_dtype(a, np.dtype(np.float32)), to_dtype(b, np.dtype(np.float32))), a.dtype)


@operator("Max")
def maximum(*operands: Array) -> Array:
    """Largest of any number of operands."""
    return functools.reduce(namespace(*operands).maximum, operands)


@operator("Min")
def minimum(*operands: Array) -> Array:
    """Smallest of any number of operands."""
    return functools.reduce(namespace(*operands).minimum, operands)


@operator("Sum")
def total(*operands: Array) -> Array:
    """Sum of any number of operands."""
    return functools.reduce(namespace(*operands).add, operands)


@operator("Mean")
def mean(*operands: Array) -> Array:
    """Mean of any number of operands."""
    return total(*operands) / np.asarray(len(operands), operands[0].dtype)


@operator("Where")
def where(condition: Array, x: Array, y: Array) -> Array:
    """Entries of x where the condition holds, of y elsewhere."""
    return namespace(condition, x, y).where(condition, x, y)


@operator("Clip")
def clip(x: Array, low: Array | None = None, high: Array | None = None) -> Array:
    """The nearest values between two bounds; the upper one rules where they cross."""
    xp = namespace(x, low, high)
    x = x if low is None else xp.maximum(x, low)
    return x if high is None else xp.minimum(x, high)


@operator("Cast")
def cast(x: Array, *, to: int, saturate: int = 1, round_mode: str = "up") -> Array:
    """The same values in another type."""
    return to_dtype(x, np.dtype(helper.tensor_dtype_to_np_dtype(to)))


@operator("CastLike", outputs=1)
def cast_like(x: Array, like: Array, *, saturate: int = 1, round_mode: str = "up") -> Array:
    """The same values in another operand's type."""
    return to_dtype(x, like.dtype)


@operator("Identity")
def identity(x: Array) -> Array:
    """The operand itself."""
    return x


@operator("Dropout", outputs=2)
def dropout(
    x: Array, ratio: Array | None = None, training_mode: Array | None = None, *, seed: int = 0
) -> tuple[Array, Array]:
    """The operand itself: nothing is dropped outside of training, whatever the operands say."""
    return x, np.ones(x.shape, bool)


@operator("Relu")
def relu(x: Array) -> Array:
    """max(x, 0), whose gradient at 0 is 0."""
    return np.maximum(x, np.zeros((), x.dtype)) if is_static(x) else jax.nn.relu(x)


@operator("LeakyRelu")
def leaky_relu(x: Array, *, alpha: float = 0.01) -> Array:
    """The operand x where positive, alpha · x elsewhere."""
    return jax.nn.leaky_relu(x, alpha)


@operator("PRelu")
def prelu(x: Array, slope: Array) -> Array:
    """The operand x where positive, slope · x elsewhere."""
    return jnp.where(x < 0, x * slope, x)


@operator("ThresholdedRelu")
def thresholded_relu(x: Array, *, alpha: float = 1.0) -> Array:
    """The operand x where it exceeds alpha, 0 elsewhere."""
    return jnp.where(x > alpha, x, np.zeros((), x.dtype))


@operator("Elu")
def elu(x: Array, *, alpha: float = 1.0) -> Array:
    """The operand x where positive, alpha · (exp(x) − 1) elsewhere."""
    return jax.nn.elu(x, alpha)


@operator("Selu")
def selu(x: Array, *, alpha: float = 1.67326319217681884765625, gamma: float = 1.05070102214813232421875) -> Array:
    """A scaled :func:`elu`."""
    return gamma * jax.nn.elu(x, alpha)


@operator("Celu")
def celu(x: Array, *, alpha: float = 1.0) -> Array:
    """The operand x where positive, alpha · (exp(x / alpha) − 1) elsewhere."""
    return jax.nn.celu(x, alpha)


@operator("Sigmoid")
def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(−x))."""
    return jax.nn.sigmoid(x)


@operator("HardSigmoid")
def hard_sigmoid(x: Array, *, alpha: float = 0.2, beta: float = 0.5) -> Array:
    """A ramp, alpha · x + beta between 0 and 1."""
    return jnp.clip(alpha * x + beta, 0, 1)


@operator("HardSwish", 14)
def hard_swish(x: Array) -> Array:
    """The product x · (x / 6 + 1/2 between 0 and 1)."""
    return x * jnp.clip(x / 6 + 0.5, 0, 1)


@operator("Swish", 24)
def swish(x: Array, *, alpha: float = 1.0) -> Array:
    """The product x · sigmoid(alpha · x)."""
    return x * jax.nn.sigmoid(alpha * x)


@operator("Mish", 18)
def mish(x: Array) -> Array:
    """The product x · tanh(softplus(x))."""
    return x * jnp.tanh(jax.nn.softplus(x))


@operator("Softplus")
def softplus(x: Array) -> Array:
    """log(1 + exp(x))."""
    return jax.nn.softplus(x)


@operator("Softsign")
def softsign(x: Array) -> Array:
    """The quotient x / (1 + |x|)."""
    return jax.nn.soft_sign(x)


@operator("Erf")
def erf(x: Array) -> Array:
    """The error function."""
    return jax.scipy.special.erf(x)


@operator("Gelu", 20, approximate=("none", "tanh"))
def gelu(x: Array, *, approximate: str = "none") -> Array:
    """The product x · Φ(x), exactly or through tanh."""
    return jax.nn.gelu(x, approximate=approximate == "tanh")
