"""The calibration set on its way through the network, one stage at a time, in bounded memory.

Two copies of every tensor travel: what the float network makes of the samples, and what the network
makes of them whose earlier layers are quantized. Only the tensors between two stages are kept, on disk
beyond a limit. At each stage the rows that its layers' solvers need are drawn, then both copies move on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from onnxq.calibration.hold_out import HoldOut, KeepBack, usual
from onnxq.calibration.observer import Gathering, Observation, Sampling
from onnxq.calibration.padding import Mask, read_mask
from onnxq.calibration.wanted import Wanted
from onnxq.data import samples_in
from onnxq.ir.ceiling import find_ceilings
from onnxq.ir.model import Model
from onnxq.ir.stage import Stage
from onnxq.ir.tensor import has_fixed_batch
from onnxq.quant.moments import ChannelMoments, channel_moments
from onnxq.quant.spec import QuantParams
from onnxq.runtime.activation_cache import Frontier, Step, passed, stage_feed
from onnxq.runtime.memory import give_back_freed_memory, return_large_blocks
from onnxq.runtime.prefetch import one_ahead
from onnxq.runtime.session import Session
from onnxq.runtime.spool import Arrays
from onnxq.runtime.stage_session import stage_session

Array = NDArray[np.float32]
Progress = Callable[[int], None]

TIDY_EVERY = 8
"""Batches after which freed memory is returned to the system."""


class Calibration:
    """The calibration set at one stage of the network.

    Args:
        model: the prepared float model.
        feeds: batches of samples; read once.
        wanted: what is gathered of them.
        memory_limit: bytes, shared by the spools, the rows and the solvers' copies of them.
        seed: for the positions drawn.
        folder: where the spools may write.
        passing: further batches, which pass through the network behind the others and are not observed.
    """

    def __init__(
        self,
        model: Model,
        feeds: Iterable[Mapping[str, NDArray[np.generic]]],
        wanted: Wanted,
        *,
        memory_limit: int,
        seed: int,
        folder: Path | None = None,
        passing: Iterable[Mapping[str, NDArray[np.generic]]] = (),
    ) -> None:
        return_large_blocks()
        self._model = model
        self._float = Frontier(memory_limit // 64, folder)
        self._quantized = Frontier(memory_limit // 64, folder) if wanted.sequential else self._float
        self._limit, self._folder = memory_limit, folder
        self._marked: Frontier | None = None
        self._starts: list[int] = []
        self._mask, self._masks = wanted.mask, list[Mask | None]()
        self.samples = 0
        try:
            self._read(feeds)
            self._sampling = Sampling(
                seed=seed,
                room=memory_limit // 10,
                float_rows=wanted.float_rows,
                moments=wanted.moments,
                starts=tuple(self._starts),  # what passes behind these is not observed
                samples=self.samples,
                masks=tuple(self._masks),
                hold_out=self._hold_out(wanted.keep_back),
                rows=wanted.rows,
                chosen=frozenset(model.not_comparable) if wanted.sequential else frozenset(),
                ceilings=find_ceilings(model),
            )
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

    def _hold_out(self, purpose: KeepBack | None) -> HoldOut:
        """Which samples are kept back; whole batches where the model fixes their size."""
        whole = has_fixed_batch(self._model.inputs)
        units = self.batches if whole else self.samples
        return HoldOut(units, whole, purpose or usual(units))

    @property
    def batches(self) -> int:
        """Batches held."""
        return len(self._starts)

    @property
    def passing(self) -> range:
        """Those of them that are not observed."""
        return range(len(self._sampling.starts), self.batches)

    @property
    def _frontiers(self) -> tuple[Frontier, ...]:
        return (self._float,) if self._quantized is self._float else (self._float, self._quantized)

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
        gathering = Gathering(stage, extra, self._sampling)
        started: list[Session] = []
        keep = False
        ahead: Arrays = {}

        def run(batch: int) -> tuple[Arrays, Arrays, Arrays]:
            exact = self._float.at(batch)
            seen = exact if self._quantized is self._float else self._quantized.at(batch)
            feed = stage_feed(stage, exact, {})
            if not started:  # its model takes the element types of the first feed
                started.append(stage_session(self._model, stage, outputs, feed))
            return exact, seen, started[0].run(feed, outputs)

        for batch, (exact, seen, made) in enumerate(one_ahead(run, self.batches)):
            gathering.take(batch, exact, seen, made)
            ahead = passed(stage, exact, made)
            keep = keep if batch else self._float.worth_keeping(ahead, self.batches)
            if keep:
                self._float.keep(batch, ahead)
            _tidy(batch)
            progress(1)
        if keep:
            self._float.move(stage, ahead, self.batches)
        elif started:
            self._float.follow(Step(stage, started[0], {}))
        found = gathering.finished()
        give_back_freed_memory()
        return found

    def moments(
        self,
        stage: Stage,
        inputs: Mapping[str, QuantParams | None],
        constants: Mapping[tuple[str, str], Array],
        progress: Progress,
    ) -> dict[str, ChannelMoments]:
        """Moments of what the layers of a stage make in the quantized network, over all samples.

        Args:
            stage: the one just observed.
            inputs: as for :meth:`advance`.
            constants: as for :meth:`advance`.
            progress: called with 1 after each batch.
        """
        found: dict[str, ChannelMoments] = {}
        wanted = tuple(dict.fromkeys(layer.output for layer in stage.layers))
        started: list[Session] = []

        def run(batch: int) -> Arrays:
            feed = stage_feed(stage, self._quantized.at(batch), inputs)
            if not started:
                started.append(stage_session(self._model, stage, wanted, feed, constants))
            return started[0].run(feed, wanted)

        for batch, made in enumerate(one_ahead(run, self.batches)):
            for layer in stage.layers:
                y = made[layer.output]
                if y.size == 0:
                    continue
                found[layer.name] = channel_moments(y, layer.output_axis, found.get(layer.name))
            _tidy(batch)
            progress(1)
        return found

    def advance(
        self,
        stage: Stage,
        inputs: Mapping[str, QuantParams | None],
        constants: Mapping[tuple[str, str], Array],
        quantizers: Mapping[str, QuantParams],
        progress: Progress,
    ) -> None:
        """Run the quantized network through a stage; nothing to do in parallel mode.

        Args:
            stage: the one just observed.
            inputs: grid of each layer's input, by layer name; None where it stays in float.
            constants: quantized weights and new biases, by the constant's and the layer's name.
            quantizers: 8-bit grids of tensors quantized where they are made.
            progress: called with 1 after each batch.
        """
        if self._quantized is self._float or not stage.nodes:
            return
        first = self._quantized.at(0)
        session = stage_session(self._model, stage, stage.makes, stage_feed(stage, first, {}), constants, quantizers)
        step = Step(stage, session, inputs)
        ahead = passed(stage, first, step.run(first))
        if not self._quantized.worth_keeping(ahead, self.batches):
            self._quantized.follow(step)
            progress(self.batches)
            return
        self._quantized.keep(0, ahead)
        progress(1)

        def run(others: int) -> Arrays:
            arrays = self._quantized.at(others + 1)
            return passed(stage, arrays, step.run(arrays))

        for batch, ahead in enumerate(one_ahead(run, self.batches - 1), 1):
            self._quantized.keep(batch, ahead)
            _tidy(batch)
            progress(1)
        self._quantized.move(stage, ahead, self.batches)

    def before(self, batch: int) -> Arrays:
        """The tensors that the quantized network brings to the stage just observed, for one batch."""
        return self._quantized.at(batch)

    def mark(self) -> None:
        """Keep the tensors that the quantized network brings to the next stage, to return to."""
        self._marked = Frontier(self._limit // 8, self._folder)
        for batch in range(self.batches):
            self._marked.put(batch, self._quantized.at(batch))

    def marked(self, batch: int) -> Arrays:
        """The tensors that the quantized network brought to the marked stage, for one batch."""
        assert self._marked is not None
        return self._marked.at(batch)

    def return_to_mark(self) -> None:
        """Let the quantized network stand before the marked stage again, to pass it with other solutions."""
        assert self._marked is not None
        self._quantized.close()
        self._quantized, self._marked = self._marked, None

    def forget_mark(self) -> None:
        """Go on from here; the marked tensors go."""
        if self._marked is not None:
            self._marked.close()
            self._marked = None

    def exact(self, batch: int) -> Arrays:
        """The tensors of the float network behind the stage just observed, for one batch."""
        return self._float.at(batch)

    def outputs(self, batch: int) -> tuple[Arrays, Arrays]:
        """The network's outputs for one batch, float and quantized, once every stage has run."""
        return self._float.at(batch), self._quantized.at(batch)


def _tidy(batch: int) -> None:
    """Return freed tensors now and then: over a long set of large feature maps they pile up."""
    if batch % TIDY_EVERY == TIDY_EVERY - 1:
        give_back_freed_memory()
