"""Samples made of samples: the float network teaches any input, so that few samples become many.

Labels would have to survive what is done to a sample. Here the float network is asked again, and what it makes of
the changed sample is what counts. A changed sample should still look like what the network was made for: mixtures
suit any floating-point input, mirror images and small shifts suit pictures of three colours.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp

Named = dict[str, jax.Array]

PICTURE_AXES, COLOURS = 3, 3


class Augmentation(NamedTuple):
    """How samples are changed.

    Attributes:
        mixtures: share of the samples that are mixed with another (Zhang et al., "mixup", ICLR 2018).
        mirrored: share of the pictures that are mirrored left to right.
        shift: of a picture, at most so much of its height and width to either side.
    """

    mixtures: float
    mirrored: float
    shift: float


def augmented(inputs: Named, options: Augmentation, key: jax.Array, *, feeds: bool = False) -> Named:
    """A batch of changed samples, each in its own way.

    Args:
        inputs: of floating point, first axis samples.
        options: what is done.
        key: of the draws.
        feeds: the first axis counts whole feeds, the second their samples; feeds are mixed with feeds.
    """
    for_pictures, for_shares, for_partners = jax.random.split(key, 3)
    axes = PICTURE_AXES + 1 + feeds
    made = {name: _moved(x, options, for_pictures) if x.ndim == axes else x for name, x in inputs.items()}
    if not options.mixtures:
        return made
    rows = next(iter(inputs.values())).shape[0]
    drawn, chosen = jax.random.uniform(for_shares, (2, rows))
    share = jnp.where(chosen < options.mixtures, drawn, 1.0)
    partners = jax.random.permutation(for_partners, rows)
    return {name: _mixed(x, x[partners], share) for name, x in made.items()}


def _mixed(x: jax.Array, other: jax.Array, share: jax.Array) -> jax.Array:
    share = share.reshape(-1, *(1,) * (x.ndim - 1)).astype(x.dtype)
    return share * x + (1 - share) * other


def _moved(x: jax.Array, options: Augmentation, key: jax.Array) -> jax.Array:
    """Pictures of three colours mirrored and shifted, others as they are; what a shift uncovers repeats the edge."""
    if x.shape[-3] == COLOURS:
        height, width = -2, -1
    elif x.shape[-1] == COLOURS:
        height, width = -3, -2
    else:
        return x
    pictures = x.reshape(-1, *x.shape[-PICTURE_AXES:])
    for_mirrors, for_shifts = jax.random.split(key)
    turned = jax.random.bernoulli(for_mirrors, options.mirrored, (len(pictures), 1, 1, 1))
    pictures = jnp.where(turned, jnp.flip(pictures, width), pictures)
    most = jnp.array([int(options.shift * x.shape[axis]) for axis in (height, width)])
    shifts = jax.random.randint(for_shifts, (len(pictures), 2), -most, most + 1)

    def shifted(picture: jax.Array, by: jax.Array) -> jax.Array:
        for axis, steps in ((height, by[0]), (width, by[1])):
            size = picture.shape[axis]
            picture = jnp.take(picture, jnp.clip(jnp.arange(size) + steps, 0, size - 1), axis=axis)
        return picture

    return jax.vmap(shifted)(pictures, shifts).reshape(x.shape)
