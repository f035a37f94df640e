"""The calibration set on its way through the network, one stage at a time, in bounded memory.

Two copies of every tensor travel: what the float network makes of the samples, and what the network
makes of them whose earlier layers are quantised. Only the tensors between two stages are kept, on disk
beyond a limit. At each stage the rows that its layers' solvers need are drawn, then both copies move on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from onnxq.data import samples_in
from onnxq.errors import CalibrationError
from onnxq.execute.frontier import Frontier, Step, passed, stage_feed
from onnxq.execute.memory import give_back_freed_memory
from onnxq.execute.ort import Session
from onnxq.execute.spool import Arrays
from onnxq.execute.tokens import Mask, read_mask, real_positions, real_values
from onnxq.ir.layer import Layer
from onnxq.ir.linear_form import draw_positions, input_rows, output_rows, position_axes
from onnxq.ir.model import Model
from onnxq.ir.stage import Stage, stage_model
from onnxq.quant.histogram import Histogram
from onnxq.quant.moments import ChannelMoments, channel_moments
from onnxq.quant.spec import QuantParams

Array = NDArray[np.float32]
Progress = Callable[[int], None]

TIDY_EVERY = 8
"""Batches after which freed memory is returned to the system."""

HOLD_OUT = 8
"""Every eighth sample is kept back from fitting; every eighth row where there are fewer samples."""

FEWEST_ROWS, MOST_ROWS = 16_384, 65_536
"""Rows drawn for a layer at least and at most, memory permitting."""

ROWS_PER_INPUT = 16
"""Beyond so many rows for each input of a row, their moments' noise is far below that of the samples' own choice."""

ROW_VALUES = 2**24
"""Values that rows of a narrow layer hold: they cost little, and with all that a small set has nothing hangs on which
were drawn."""


@dataclass(frozen=True)
class Rows:
    """What a layer reads and should make, at positions drawn from the whole calibration set.

    Attributes:
        x: inputs in the network whose earlier layers are quantised, (G, R, K).
        x_float: inputs in the float network, (G, R, K); ``x`` where they were not asked for.
        y: outputs of the float network before any clipping, (G, R, N).
        train: rows that may be fitted, (R,).
    """

    x: Array
    x_float: Array
    y: Array
    train: NDArray[np.bool_]


class Calibration:
    """The calibration set at one stage of the network.

    Args:
        model: the prepared float model.
        feeds: batches of samples; read once.
        passing: further batches, which pass through the network behind the others and are not observed.
        sequential: keep a second copy for the network whose earlier layers are quantised.
        memory_limit: bytes, shared by the spools, the rows and the solvers' copies of them.
        float_rows: gather the float network's inputs of the rows too.
        seed: for the positions drawn.
        moments: gather the moments of the float layers' outputs.
        mask: name of the input that is 0 for padding, which is left out of rows and ranges.
        folder: where the spools may write.
    """

    def __init__(
        self,
        model: Model,
        feeds: Iterable[Mapping[str, NDArray[np.generic]]],
        *,
        sequential: bool,
        float_rows: bool,
        memory_limit: int,
        seed: int,
        moments: bool = False,
        mask: str | None = None,
        folder: Path | None = None,
        passing: Iterable[Mapping[str, NDArray[np.generic]]] = (),
    ) -> None:
        self._model, self._seed = model, seed
        self._row_bytes, self._float_rows, self._with_moments = memory_limit // 8, float_rows, moments
        self._float = Frontier(memory_limit // 16, folder)
        self._quantised = Frontier(memory_limit // 16, folder) if sequential else self._float
        self._limit, self._folder = memory_limit, folder
        self._marked: Frontier | None = None
        self._starts: list[int] = []
        self._mask, self._masks = mask, list[Mask | None]()
        self.samples = 0
        try:
            self._read(feeds)
            self._observed, self._samples = self.batches, self.samples  # what passes behind them is not counted
            self._read(passing)
        except BaseException as error:  # no block was entered whose end would remove the files
            self.__exit__(type(error), error, error.__traceback__)
            raise

    def _read(self, feeds: Iterable[Mapping[str, NDArray[np.generic]]]) -> None:
        for feed in feeds:
            arrays = {name: np.asarray(value) for name, value in feed.items()}
            for frontier in self._frontiers:
                frontier.put(self.batches, arrays)
            self._starts.append(self.samples)
            self._masks.append(read_mask(arrays, self._mask))
            self.samples += samples_in(arrays)

    @property
    def batches(self) -> int:
        """Batches held."""
        return len(self._starts)

    @property
    def passing(self) -> range:
        """Those of them that are not observed."""
        return range(self._observed, self.batches)

    @property
    def _frontiers(self) -> tuple[Frontier, ...]:
        return (self._float,) if self._quantised is self._float else (self._float, self._quantised)

    def __enter__(self) -> Calibration:
        """The calibration itself; what it wrote to disk goes when the block ends."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Remove what was written to disk."""
        for frontier in self._frontiers:
            frontier.close()
        self.forget_mark()

    def observe(self, stage: Stage, extra: Iterable[str], progress: Progress) -> Observation:
        """Run the float network through a stage and gather what its layers' solvers need.

        Args:
            stage: the next one.
            extra: further tensors of the stage whose histograms are wanted.
            progress: called with 1 after each batch.

        Raises:
            CalibrationError: a layer reads or makes NaN or infinity in the float network.
        """
        if not stage.nodes:
            return Observation(rows={}, histograms={})
        outputs = list(dict.fromkeys([*stage.makes, *(layer.output for layer in stage.layers), *extra]))
        read = tuple(dict.fromkeys(layer.input for layer in stage.layers))
        gathered: dict[str, list[Rows]] = {layer.name: [] for layer in stage.layers}
        histograms = {name: Histogram() for name in (*read, *extra)}
        moments: dict[str, ChannelMoments] = {}
        session: Session | None = None
        keep = False
        ahead: Arrays = {}
        for batch in range(self.batches):
            exact = self._float.at(batch)
            seen = exact if self._quantised is self._float else self._quantised.at(batch)
            feed = stage_feed(stage, exact, {})
            session = session or self._session(stage, outputs, feed, {}, {})
            made = session.run(feed, outputs)
            _require_finite({n: exact[n] for n in read} | {la.output: made[la.output] for la in stage.layers})
            observed = batch < self._observed
            for name in histograms if observed else ():
                values = (seen if name in read else made)[name].astype(np.float32, copy=False)
                histograms[name] = histograms[name].update(real_values(values, self._masks[batch]))
            for layer in stage.layers if self._with_moments and observed else ():
                y = made[layer.output]
                moments[layer.name] = channel_moments(y, layer.output_axis, moments.get(layer.name))
            for index, layer in enumerate(stage.layers if observed else ()):
                rows = self._draw(stage, index, batch, seen[layer.input], exact[layer.input], made[layer.output])
                gathered[layer.name].append(rows)
            ahead = passed(stage, exact, made)
            keep = keep if batch else self._float.worth_keeping(ahead, self.batches)
            if keep:
                self._float.keep(batch, ahead)
            _tidy(batch)
            progress(1)
        if keep:
            self._float.move(stage, ahead, self.batches)
        elif session is not None:
            self._float.follow(Step(stage, session, {}))
        joined = {name: _join(gathered.pop(name), self._samples >= HOLD_OUT) for name in tuple(gathered)}
        give_back_freed_memory()
        return Observation(rows=joined, histograms=histograms, moments=moments)

    def moments(
        self,
        stage: Stage,
        inputs: Mapping[str, QuantParams | None],
        constants: Mapping[tuple[str, str], Array],
        progress: Progress,
    ) -> dict[str, ChannelMoments]:
        """Moments of what the layers of a stage make in the quantised network, over all samples.

        Args:
            stage: the one just observed.
            inputs: as for :meth:`advance`.
            constants: as for :meth:`advance`.
            progress: called with 1 after each batch.
        """
        found: dict[str, ChannelMoments] = {}
        session: Session | None = None
        wanted = tuple(dict.fromkeys(layer.output for layer in stage.layers))
        for batch in range(self.batches):
            feed = stage_feed(stage, self._quantised.at(batch), inputs)
            session = session or self._session(stage, wanted, feed, constants, {})
            made = session.run(feed, wanted)
            for layer in stage.layers:
                y = made[layer.output]
                found[layer.name] = channel_moments(y, layer.output_axis, found.get(layer.name))
            _tidy(batch)
            progress(1)
        return found

    def advance(
        self,
        stage: Stage,
        inputs: Mapping[str, QuantParams | None],
        constants: Mapping[tuple[str, str], Array],
        quantisers: Mapping[str, QuantParams],
        progress: Progress,
    ) -> None:
        """Run the quantised network through a stage; nothing to do in parallel mode.

        Args:
            stage: the one just observed.
            inputs: grid of each layer's input, by layer name; None where it stays in float.
            constants: quantised weights and new biases, by the constant's and the layer's name.
            quantisers: 8-bit grids of tensors quantised where they are made.
            progress: called with 1 after each batch.
        """
        if self._quantised is self._float or not stage.nodes:
            return
        step: Step | None = None
        for batch in range(self.batches):
            arrays = self._quantised.at(batch)
            if step is None:
                types = stage_feed(stage, arrays, {})
                step = Step(stage, self._session(stage, stage.makes, types, constants, quantisers), inputs)
            made = step.run(arrays)
            ahead = passed(stage, arrays, made)
            if not batch and not self._quantised.worth_keeping(ahead, self.batches):
                self._quantised.follow(step)
                progress(self.batches)
                return
            self._quantised.keep(batch, ahead)
            _tidy(batch)
            progress(1)
        self._quantised.move(stage, ahead, self.batches)

    def before(self, batch: int) -> Arrays:
        """The tensors that the quantised network brings to the stage just observed, for one batch."""
        return self._quantised.at(batch)

    def mark(self) -> None:
        """Keep the tensors that the quantised network brings to the next stage, to return to."""
        self._marked = Frontier(self._limit // 8, self._folder)
        for batch in range(self.batches):
            self._marked.put(batch, self._quantised.at(batch))

    def marked(self, batch: int) -> Arrays:
        """The tensors that the quantised network brought to the marked stage, for one batch."""
        assert self._marked is not None
        return self._marked.at(batch)

    def return_to_mark(self) -> None:
        """Let the quantised network stand before the marked stage again, to pass it with other solutions."""
        assert self._marked is not None
        self._quantised.close()
        self._quantised, self._marked = self._marked, None

    def forget_mark(self) -> None:
        """Go on from here; the marked tensors go."""
        if self._marked is not None:
            self._marked.close()
            self._marked = None

    def exact(self, batch: int) -> Arrays:
        """The tensors of the float network behind the stage just observed, for one batch."""
        return self._float.at(batch)

    def outputs(self, batch: int) -> tuple[Arrays, Arrays]:
        """The network's outputs for one batch, float and quantised, once every stage has run."""
        return self._float.at(batch), self._quantised.at(batch)

    def _session(
        self,
        stage: Stage,
        outputs: Iterable[str],
        feed: Arrays,
        constants: Mapping[tuple[str, str], Array],
        quantisers: Mapping[str, QuantParams],
    ) -> Session:
        types = {name: array.dtype for name, array in feed.items()}
        part = stage_model(self._model, stage, list(outputs), types, constants, quantisers)
        return Session(part, f"the part of the model from {stage.nodes[0]} to {stage.nodes[-1]}")

    def _draw(
        self,
        stage: Stage,
        index: int,
        batch: int,
        seen: NDArray[np.generic],
        x: NDArray[np.generic],
        y: NDArray[np.generic],
    ) -> Rows:
        layer = stage.layers[index]
        rng = np.random.default_rng([self._seed, stage.depth, index, batch])
        count = -(-self._rows_wanted(stage, layer) // self._observed)
        real = real_positions(self._masks[batch], position_axes(layer, y.shape))
        positions = draw_positions(layer, y.shape, count, rng, real)
        train = (self._starts[batch] + positions.sample) % HOLD_OUT != HOLD_OUT - 1
        rows = input_rows(layer, seen.astype(np.float32, copy=False), positions)
        same = not self._float_rows or self._quantised is self._float
        return Rows(
            x=rows,
            x_float=rows if same else input_rows(layer, x.astype(np.float32, copy=False), positions),
            y=output_rows(layer, y.astype(np.float32, copy=False), positions),
            train=train,
        )

    def _rows_wanted(self, stage: Stage, layer: Layer) -> int:
        """Rows to draw for a layer: as many as its share of the memory holds."""
        groups = layer.window.groups if layer.window else 1
        inputs = layer.parameters // layer.channels * groups
        if layer.op == "ConvTranspose" and layer.window:
            inputs = layer.parameters // layer.weight_shape[1]
        each = 4 * ((1 + self._float_rows) * inputs + layer.channels) * len(stage.layers)
        wanted = max(ROWS_PER_INPUT * inputs // groups, ROW_VALUES // (inputs + layer.channels))
        enough = np.clip(wanted, FEWEST_ROWS, MOST_ROWS)
        return int(np.clip(self._row_bytes // each, 256, enough))


@dataclass(frozen=True)
class Observation:
    """What a stage showed: rows by layer, histograms by tensor, moments of the layers' outputs where wanted."""

    rows: Mapping[str, Rows]
    histograms: Mapping[str, Histogram]
    moments: Mapping[str, ChannelMoments] = field(default_factory=dict)


def _tidy(batch: int) -> None:
    """Return freed tensors now and then: over a long set of large feature maps they pile up."""
    if batch % TIDY_EVERY == TIDY_EVERY - 1:
        give_back_freed_memory()


def _require_finite(tensors: Mapping[str, NDArray[np.generic]]) -> None:
    for name, values in tensors.items():
        if not np.isfinite(values.astype(np.float32, copy=False)).all():
            raise CalibrationError(
                f"tensor {name!r} of the float model is NaN or infinite on a calibration sample, so no range can be "
                "found for it; take that sample out, or correct the model."
            )


def _join(parts: list[Rows], by_sample: bool) -> Rows:
    """The rows of all batches, those that may be fitted before those held back, so that each are one view."""
    train = np.concatenate([p.train for p in parts])
    if not by_sample or train.all() or not train.any():
        train = np.arange(len(train)) % HOLD_OUT != HOLD_OUT - 1
    ends = np.cumsum([len(p.train) for p in parts])
    masks = np.split(train, ends[:-1])

    def joined(arrays: list[Array]) -> Array:
        fitted = [array[:, mask] for array, mask in zip(arrays, masks, strict=True)]
        held = [array[:, ~mask] for array, mask in zip(arrays, masks, strict=True)]
        return np.concatenate([*fitted, *held], axis=1)

    same = all(p.x_float is p.x for p in parts)
    x = joined([p.x for p in parts])
    return Rows(
        x=x,
        x_float=x if same else joined([p.x_float for p in parts]),
        y=joined([p.y for p in parts]),
        train=np.arange(len(train)) < np.count_nonzero(train),
    )
