"""Operators that change an image's resolution."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from onnxq.jax_graph.registry import Array, integers, operator


@operator("DepthToSpace", mode=("DCR", "CRD"))
def depth_to_space(x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """Channels moved into blocks of pixels."""
    batch, channels, height, width = x.shape
    depth = channels // blocksize**2
    if mode == "DCR":
        blocks = x.reshape(batch, blocksize, blocksize, depth, height, width).transpose(0, 3, 4, 1, 5, 2)
    else:
        blocks = x.reshape(batch, depth, blocksize, blocksize, height, width).transpose(0, 1, 4, 2, 5, 3)
    return blocks.reshape(batch, depth, height * blocksize, width * blocksize)


@operator("SpaceToDepth", mode=("DCR",))
def space_to_depth(x: Array, *, blocksize: int, mode: str = "DCR") -> Array:
    """Blocks of pixels moved into channels."""
    batch, channels, height, width = x.shape
    blocks = x.reshape(batch, channels, height // blocksize, blocksize, width // blocksize, blocksize)
    return blocks.transpose(0, 3, 5, 1, 2, 4).reshape(batch, -1, height // blocksize, width // blocksize)


@operator(
    "Resize",
    13,
    static=(1, 2, 3),
    mode=("nearest", "linear"),
    coordinate_transformation_mode=("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners"),
)
def resize(
    x: Array,
    roi: Array | None = None,
    scales: Array | None = None,
    sizes: Array | None = None,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Array:
    """An image enlarged or reduced along its axes, taking the nearest element or interpolating linearly."""
    for axis, old in enumerate(x.shape):
        if sizes is not None and sizes.size:
            new = integers(sizes)[axis]
            factor = new / old
        else:
            assert scales is not None  # ONNX asks for one of them
            factor = float(scales.reshape(-1)[axis])
            new = int(np.floor(old * factor))
        if new == old:
            continue
        at = _coordinates(np.arange(new), old, factor, coordinate_transformation_mode)
        if mode == "nearest":
            x = jnp.take(x, np.clip(_nearest(at, nearest_mode), 0, old - 1), axis=axis)
            continue
        low = np.floor(at).astype(int)
        share = (at - low).astype(x.dtype).reshape([-1 if i == axis else 1 for i in range(x.ndim)])
        before, behind = (jnp.take(x, np.clip(low + i, 0, old - 1), axis=axis) for i in (0, 1))
        x = before * (1 - share) + behind * share
    return x


def _coordinates(index: Array, old: int, factor: float, mode: str) -> Array:
    """Where in the old axis the elements of the new one lie."""
    if mode == "asymmetric":
        return index / factor
    if mode == "align_corners":
        return (
            index * (old - 1) / max(old * factor - 1, 1)
        )  # the new size as asked for, before it is cut to a whole number
    if mode == "pytorch_half_pixel" and len(index) == 1:
        return np.zeros(1)
    return (index + 0.5) / factor - 0.5


def _nearest(at: Array, mode: str) -> Array:
    rounded = {
        "round_prefer_floor": lambda: np.ceil(at - 0.5),
        "round_prefer_ceil": lambda: np.floor(at + 0.5),
        "floor": lambda: np.floor(at),
        "ceil": lambda: np.ceil(at),
    }
    return rounded[mode]().astype(int)
