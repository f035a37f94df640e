"""Mini-batches drawn from calibration batches, with some samples held out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.hold_out import HOLD_OUT, kept_back

Feed = Mapping[str, NDArray[np.generic]]
Batch = tuple[dict[str, jax.Array], list[jax.Array]]

FEW, VERY_FEW = 64, 16
"""Of fewer samples than these every fourth is kept back, of still fewer every other one, in place of every eighth: a
handful says too little of what is gained."""


class Batches:
    """Mini-batches of samples, or of whole feeds where a model's batch size is fixed.

    Feeds whose shapes differ from the commonest are left out: each shape would be compiled anew.

    Args:
        feeds: batches of inputs; read again at every draw.
        teachers: for each wanted tensor, its value for each feed.
        rows: in a mini-batch at most.
        fixed: the model takes batches of one size only.
        seed: of the draws.

    Attributes:
        fixed: a row is a whole feed, and mini-batches have one more axis in front.
        rows: in every mini-batch.
    """

    def __init__(
        self,
        feeds: Sequence[Feed],
        teachers: Sequence[Sequence[NDArray[np.generic]]],
        rows: int,
        fixed: bool,
        seed: int,
    ) -> None:
        self._feeds, self._teachers = feeds, teachers
        self._rng = np.random.default_rng([seed, 2])
        lengths = [self._length(i) for i in range(len(feeds))]
        self.fixed = fixed or None in lengths
        alike = self._commonest()
        places = [(i, row) for i in alike for row in range(1 if self.fixed else lengths[i] or 0)]
        order = np.arange(len(places))
        every = HOLD_OUT if len(places) >= FEW else 4 if len(places) >= VERY_FEW else 2
        held = kept_back(order, every)
        self._train = [places[i] for i in order[~held]]
        self._held = [places[i] for i in order[held]]
        self.rows = max(1, min(rows, len(self._train)))

    @property
    def enough(self) -> bool:
        """Whether there are samples to tune and samples to check."""
        return bool(self._train and self._held)

    @property
    def held_rows(self) -> int:
        """Samples, or feeds, that are held out."""
        return len(self._held)

    def draw(self) -> Batch:
        """Training samples at random."""
        chosen = self._rng.choice(len(self._train), self.rows, replace=False)
        return self._gather([self._train[i] for i in chosen])

    def held(self) -> Iterator[tuple[dict[str, jax.Array], list[jax.Array], int]]:
        """The hold-out in order, and how many rows of each mini-batch count; the last one is filled up."""
        for begin in range(0, len(self._held), self.rows):
            part = self._held[begin : begin + self.rows]
            inputs, teachers = self._gather(part + [part[0]] * (self.rows - len(part)))
            yield inputs, teachers, len(part)

    def _gather(self, places: Sequence[tuple[int, int]]) -> Batch:
        read = {i: self._feeds[i] for i in sorted({feed for feed, _ in places})}

        def stack(arrays: Mapping[int, NDArray[np.generic]]) -> jax.Array:
            return jnp.asarray(np.stack([arrays[i] if self.fixed else arrays[i][row] for i, row in places]))

        names = next(iter(read.values())).keys()
        inputs = {name: stack({i: np.asarray(feed[name]) for i, feed in read.items()}) for name in names}
        return inputs, [stack({i: values[i] for i in read}) for values in self._teachers]

    def _length(self, feed: int) -> int | None:
        """Samples of a feed; None when its arrays do not agree on them."""
        arrays = [*self._feeds[feed].values(), *(values[feed] for values in self._teachers)]
        lengths = {a.shape[0] if np.ndim(a) else None for a in arrays}
        return lengths.pop() if len(lengths) == 1 else None

    def _commonest(self) -> list[int]:
        """Feeds whose samples have the commonest shapes; the batch axis counts only where it is fixed."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for i, feed in enumerate(self._feeds):
            shape = tuple((name, np.shape(a)[0 if self.fixed else 1 :]) for name, a in feed.items())
            groups.setdefault(shape, []).append(i)
        return max(groups.values(), key=len, default=[])
