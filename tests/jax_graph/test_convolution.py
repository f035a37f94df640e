"""Gradients of the convolution's lowerings, held against those of XLA's own convolution."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from small_models import normal, weight

from onnxq.jax_graph.convolution import conv

ROUNDING = 1e-5
"""Sums of some hundred float32 products of order 1 differ by some dozen roundings."""

LOWERINGS = {
    "depthwise": ((2, 6, 9, 8), (6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}),
    "depthwise, strides that leave a rest": ((2, 6, 10, 9), (6, 1, 3, 2), {"group": 6, "strides": [2, 3]}),
    "depthwise, dilated and cut": (
        (3, 4, 12, 11),
        (4, 1, 3, 3),
        {"group": 4, "dilations": [2, 1], "pads": [2, 0, 0, 1]},
    ),
    "depthwise, strided and dilated": (
        (2, 4, 13, 13),
        (4, 1, 2, 3),
        {"group": 4, "strides": [2, 2], "dilations": [3, 2]},
    ),
    "depthwise in one dimension": ((2, 5, 17), (5, 1, 4), {"group": 5, "strides": [3], "pads": [2, 1]}),
    "depthwise with two outputs each": ((2, 3, 7, 7), (6, 1, 3, 3), {"group": 3}),
    "pointwise, many positions": ((3, 4, 8, 9), (5, 4, 1, 1), {}),
    "pointwise, many channels": ((3, 40, 3, 3), (7, 40, 1, 1), {"strides": [2, 2]}),
    "grouped": ((2, 6, 8, 8), (4, 3, 3, 3), {"group": 2, "pads": [1, 1, 1, 1]}),
}


def native(x: jax.Array, w: jax.Array, attributes: dict[str, Any]) -> jax.Array:
    rank = x.ndim - 2
    pads = attributes.get("pads", [0] * 2 * rank)
    axes = "DHW"[-rank:]
    return lax.conv_general_dilated(
        x,
        w,
        attributes.get("strides", [1] * rank),
        list(zip(pads[:rank], pads[rank:], strict=True)),
        rhs_dilation=attributes.get("dilations", [1] * rank),
        dimension_numbers=(f"NC{axes}", f"OI{axes}", f"NC{axes}"),
        feature_group_count=attributes.get("group", 1),
        precision=lax.Precision.HIGHEST,
    )


@pytest.mark.parametrize("shape,kernel,attributes", LOWERINGS.values(), ids=LOWERINGS.keys())
@pytest.mark.parametrize("feeds", [False, True], ids=["a batch", "several batches at once"])
def test_gradients_are_those_of_the_native_convolution(
    shape: tuple[int, ...], kernel: tuple[int, ...], attributes: dict[str, Any], feeds: bool
) -> None:
    x, w = jnp.asarray(normal(1, *((3,) if feeds else ()), *shape)), jnp.asarray(weight(2, *kernel))

    def loss(convolution: object, x: jax.Array, w: jax.Array) -> jax.Array:
        run = lambda x: convolution(x, w)  # type: ignore[operator]  # noqa: E731
        made = jax.vmap(run)(x) if feeds else run(x)
        return jnp.sum(made * jnp.cos(jnp.arange(made.size, dtype=jnp.float32)).reshape(made.shape))

    of = [
        jax.jit(jax.grad(lambda x, w, c=c: loss(c, x, w), (0, 1)))(x, w)
        for c in (lambda x, w: conv(x, w, **attributes), lambda x, w: native(x, w, attributes))
    ]
    for made, wanted in zip(*of, strict=True):
        scale = float(jnp.abs(wanted).max())
        np.testing.assert_allclose(np.asarray(made), np.asarray(wanted), rtol=0, atol=ROUNDING * scale)
