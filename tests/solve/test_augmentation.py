"""Samples made of samples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import normal

from onnxq.solve.gradient.augmentation import Augmentation, augmented

KEY = jax.random.key(0)


def test_mixtures_lie_between_two_samples_and_only_as_many_are_mixed_as_asked_for() -> None:
    x = normal(0, 400, 5)
    made = np.asarray(augmented({"x": jnp.asarray(x)}, Augmentation(0.5, 0.0, 0.0), KEY)["x"])
    mixed = (made != x).any(axis=1)
    assert 150 < mixed.sum() < 250  # binomial with 400 draws of 1/2: 150 and 250 are five deviations away
    for row, sample in zip(made[mixed][:20], x[mixed][:20], strict=True):
        # row = λ·sample + (1 − λ)·other: row − sample points towards exactly one other sample.
        steps, towards = row - sample, x - sample
        cosine = (towards @ steps) / np.maximum(np.linalg.norm(towards, axis=1) * np.linalg.norm(steps), 1e-9)
        other = int(cosine.argmax())
        assert cosine[other] == pytest.approx(1, abs=1e-4)
        assert np.linalg.norm(steps) <= np.linalg.norm(towards[other]) * 1.0001


def test_all_inputs_of_a_sample_are_mixed_with_the_same_partner_in_the_same_share() -> None:
    x = normal(1, 64, 3)
    made = augmented({"a": jnp.asarray(x), "b": jnp.asarray(2 * x)}, Augmentation(1.0, 0.0, 0.0), KEY)
    np.testing.assert_allclose(np.asarray(made["b"]), 2 * np.asarray(made["a"]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("last", [False, True], ids=["channels first", "channels last"])
def test_pictures_are_mirrored_left_to_right(last: bool) -> None:
    x = normal(3, 2, 4, 6, 3) if last else normal(3, 2, 3, 4, 6)
    made = augmented({"x": jnp.asarray(x)}, Augmentation(0.0, 1.0, 0.0), KEY)["x"]
    np.testing.assert_array_equal(made, x[:, :, ::-1] if last else x[..., ::-1])


def test_a_shift_repeats_the_edge_and_reaches_as_far_as_asked_for() -> None:
    x = np.broadcast_to(np.arange(20, dtype=np.float32), (200, 3, 10, 20))
    made = np.asarray(augmented({"x": jnp.asarray(x)}, Augmentation(0.0, 0.0, 0.1), KEY)["x"])
    shifts = {int(row[0, 0, 10] - 10) for row in made}
    assert shifts == {-2, -1, 0, 1, 2}
    for row in made:
        by = int(row[0, 0, 10] - 10)
        np.testing.assert_array_equal(row, np.broadcast_to(np.clip(np.arange(20) + by, 0, 19), (3, 10, 20)))


def test_spectrograms_and_other_inputs_are_not_moved() -> None:
    for shape in ((4, 1, 10, 10), (4, 3), (4, 8, 8, 8)):
        x = normal(4, *shape)
        made = augmented({"x": jnp.asarray(x)}, Augmentation(0.0, 1.0, 0.3), KEY)["x"]
        np.testing.assert_array_equal(made, x)


def test_pictures_in_feeds_of_one_are_mirrored_and_feeds_are_mixed_with_feeds() -> None:
    x = normal(5, 6, 1, 3, 4, 4)
    made = augmented({"x": jnp.asarray(x)}, Augmentation(0.0, 1.0, 0.0), KEY, feeds=True)["x"]
    np.testing.assert_array_equal(made, x[..., ::-1])
    mixed = np.asarray(augmented({"x": jnp.asarray(x)}, Augmentation(1.0, 0.0, 0.0), KEY, feeds=True)["x"])
    assert mixed.shape == x.shape and (mixed != x).any()


def test_the_same_key_gives_the_same_samples() -> None:
    x = {"x": jnp.asarray(normal(6, 8, 3, 6, 6))}
    options = Augmentation(0.5, 0.5, 0.2)
    np.testing.assert_array_equal(augmented(x, options, KEY)["x"], augmented(x, options, KEY)["x"])
