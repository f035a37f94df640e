"""What the solvers are told of a stage: rows, histograms and moments, gathered batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.hold_out import HoldOut, KeepBack
from onnxq.calibration.layer_rows import Rows, join, rows_wanted
from onnxq.calibration.padding import Mask, real_positions, real_values
from onnxq.errors import CalibrationError, NotFiniteError
from onnxq.ir.layer import Layer
from onnxq.ir.linear_form import draw_positions, input_rows, output_rows, position_axes
from onnxq.ir.stage import Stage
from onnxq.quant.histogram import Histogram
from onnxq.quant.moments import ChannelMoments, channel_moments
from onnxq.runtime.spool import Arrays


@dataclass(frozen=True)
class Observation:
    """What a stage showed.

    Attributes:
        rows: by layer.
        histograms: by tensor.
        moments: of the layers' outputs, where wanted.
        refit: samples kept back may be fitted once they have judged.
    """

    rows: Mapping[str, Rows]
    histograms: Mapping[str, Histogram]
    moments: Mapping[str, ChannelMoments] = field(default_factory=dict)
    refit: bool = False


@dataclass(frozen=True)
class Sampling:
    """How the calibration set is drawn from, the same at every stage.

    Attributes:
        seed: for the positions drawn.
        room: bytes that the rows of a stage may take.
        float_rows: gather the float network's inputs of the rows too.
        moments: gather the moments of the float layers' outputs.
        starts: index of each batch's first sample; batches behind these are not observed.
        samples: in these batches.
        masks: real tokens of each batch.
        hold_out: which samples are kept back.
        rows: gather rows of the layers' inputs and outputs.
        chosen: tensors of which the two networks may hold different rows, or different draws.
        ceilings: where the grids of some tensors end at most; what layers read of them counts as cut off there.
    """

    seed: int
    room: int
    float_rows: bool
    moments: bool
    starts: Sequence[int]
    samples: int
    masks: Sequence[Mask | None]
    hold_out: HoldOut
    rows: bool = True
    chosen: frozenset[str] = frozenset()
    ceilings: Mapping[str, float] = field(default_factory=dict)

    def fitted(self, batch: int) -> NDArray[np.bool_]:
        """Which samples of a batch may be fitted, (samples,)."""
        start = self.starts[batch]
        end = self.starts[batch + 1] if batch + 1 < len(self.starts) else self.samples
        return self.hold_out.fitted(batch, start, end - start)

    def counted(self, histogram: Histogram, values: NDArray[np.float32], batch: int) -> Histogram:
        """A histogram with the values of one more batch that belong to real tokens of samples that may be fitted.

        All of them where none is kept back for good.
        """
        fitted, mask = self.fitted(batch), self.masks[batch]
        if self.hold_out.purpose is not KeepBack.FOR_GOOD or not values.ndim or len(values) % max(len(fitted), 1):
            fitted = np.ones_like(fitted)
        if not fitted.any():
            return histogram
        if not fitted.all():
            values = values.reshape(len(fitted), -1, *values.shape[1:])[fitted].reshape(-1, *values.shape[1:])
            mask = mask[fitted] if mask is not None and len(mask) == len(fitted) else mask
        samples = int(np.count_nonzero(fitted))
        real = real_values(values, mask)
        if real is values:
            return histogram.update(values, samples)
        if mask is None or len(values) != samples or len(mask) != samples:
            return histogram.update(real)
        for sample in range(samples):
            histogram = histogram.update(real_values(values[sample : sample + 1], mask[sample : sample + 1]))
        return histogram


class Gathering:
    """The observation of a stage in the making.

    Args:
        stage: which.
        extra: tensors of the stage whose histograms are wanted besides those of the layers' inputs.
        sampling: of the calibration set.
    """

    def __init__(self, stage: Stage, extra: Iterable[str], sampling: Sampling) -> None:
        self._stage, self._sampling = stage, sampling
        self._read = tuple(dict.fromkeys(layer.input for layer in stage.layers))
        self._rows: dict[str, list[Rows]] = {layer.name: [] for layer in stage.layers}
        self._histograms = {name: Histogram() for name in (*self._read, *extra)}
        self._moments: dict[str, ChannelMoments] = {}

    def take(self, batch: int, exact: Arrays, seen: Arrays, made: Arrays) -> None:
        """Take in a batch.

        Args:
            batch: its number.
            exact: tensors before the stage in the float network.
            seen: the same in the network whose earlier layers are quantized.
            made: what the float network makes in the stage.

        Raises:
            CalibrationError: a layer reads or makes NaN or infinity in the float network.
            NotFiniteError: a layer reads NaN or infinity in the quantized network alone.
        """
        layers = self._stage.layers
        _require_finite({n: exact[n] for n in self._read} | {layer.output: made[layer.output] for layer in layers})
        for name in self._read:
            if seen[name] is not exact[name] and not np.isfinite(seen[name].astype(np.float32, copy=False)).all():
                raise NotFiniteError(f"tensor {name!r}")
        if batch >= len(self._sampling.starts):
            return
        read = {name: self._cut_off(name, seen[name]) for name in self._read}
        for name, histogram in self._histograms.items():
            values = read[name] if name in read else self._cut_off(name, made[name])
            self._histograms[name] = self._sampling.counted(histogram, values.astype(np.float32, copy=False), batch)
        for index, layer in enumerate(layers):
            x, y = exact[layer.input], made[layer.output]
            if self._sampling.moments and y.size:
                known = self._moments.get(layer.name)
                self._moments[layer.name] = channel_moments(y, layer.output_axis, known)
            if not self._sampling.rows:
                continue
            rng = np.random.default_rng([self._sampling.seed, self._stage.depth, index, batch])
            alike = layer.input not in self._sampling.chosen and seen[layer.input].shape == x.shape
            same = seen[layer.input] is x
            x = self._cut_off(layer.input, x)
            self._rows[layer.name].append(
                self._drawn(layer, batch, rng, x if same or not alike else read[layer.input], x, y)
            )

    def _cut_off(self, name: str, values: NDArray[np.generic]) -> NDArray[np.generic]:
        """A tensor's values with those beyond its ceiling put there."""
        ceiling = self._sampling.ceilings.get(name)
        return values if ceiling is None else np.asarray(np.minimum(values, np.asarray(ceiling, values.dtype)))

    def finished(self) -> Observation:
        """The observation, once every batch has been taken in; the gathering is empty then."""
        rows = {name: join(self._rows.pop(name)) for name in tuple(self._rows) if self._sampling.rows}
        refit = self._sampling.hold_out.purpose is KeepBack.FOR_STARTS
        return Observation(rows=rows, histograms=self._histograms, moments=self._moments, refit=refit)

    def _drawn(
        self,
        layer: Layer,
        batch: int,
        rng: np.random.Generator,
        seen: NDArray[np.generic],
        x: NDArray[np.generic],
        y: NDArray[np.generic],
    ) -> Rows:
        sampling = self._sampling
        room = sampling.room // len(self._stage.layers)
        count = -(-rows_wanted(layer, room, with_float=sampling.float_rows) // len(sampling.starts))
        real = real_positions(sampling.masks[batch], position_axes(layer, y.shape))
        positions = draw_positions(layer, y.shape, count, rng, real)
        fitted = sampling.fitted(batch)
        sample = positions.sample * len(fitted) // max(y.shape[0], 1) if y.ndim else positions.sample
        train = fitted[sample]
        order = np.argsort(~train, kind="stable")  # those that may be fitted lie side by side
        positions, train = positions.reordered(order), train[order]
        units = np.full(len(order), batch) if sampling.hold_out.whole else sampling.starts[batch] + sample[order]
        rows = input_rows(layer, seen.astype(np.float32, copy=False), positions)
        same = not sampling.float_rows or seen is x
        return Rows(
            x=rows,
            x_float=rows if same else input_rows(layer, x.astype(np.float32, copy=False), positions),
            y=output_rows(layer, y.astype(np.float32, copy=False), positions),
            train=train,
            units=units,
        )


def _require_finite(tensors: Mapping[str, NDArray[np.generic]]) -> None:
    for name, values in tensors.items():
        if not np.isfinite(values.astype(np.float32, copy=False)).all():
            raise CalibrationError(
                f"tensor {name!r} of the float model is NaN or infinite on a calibration sample, so no range can be "
                "found for it; take that sample out, or correct the model."
            )
