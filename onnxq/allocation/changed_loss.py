"""What a change in one stage of a network does to its outputs: the rest of the network is run from there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from onnxq.allocation.output_loss import OutputLoss
from onnxq.calibration.calibrate import Calibration
from onnxq.data import samples_in
from onnxq.ir.model import Model
from onnxq.ir.stage import Stage
from onnxq.quant.affine import fake_quantize
from onnxq.quant.spec import QuantParams
from onnxq.runtime.activation_cache import passed
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.runtime.staged_network import Chain, make_step


class ChangedLoss:
    """Losses of networks that differ from a reference in one stage.

    Args:
        model: prepared.
        stages: all of them; the calibration stands before the first.
        calibration: of the reference network; what passes behind the observed samples is judged where there is any.
        reference: the network; the float one when None.
        metric: ``kl`` or ``mse``; None to choose by the outputs.
    """

    def __init__(
        self,
        model: Model,
        stages: Sequence[Stage],
        calibration: Calibration,
        reference: QuantizedNetwork | None,
        metric: str | None,
    ) -> None:
        self._model, self._stages, self._calibration = model, stages, calibration
        self._judged = calibration.passing or range(calibration.batches)
        exact_chain = Chain(model, stages, QuantizedNetwork())
        exact = [exact_chain.run(calibration.before(b), 0) for b in self._judged]
        counts = [samples_in(calibration.before(b)) for b in self._judged]
        self._loss = OutputLoss(exact, metric, chosen=model.not_comparable, samples=counts)
        self._chain = exact_chain if reference is None else Chain(model, stages, reference)
        self._base = [
            self._loss.of(place, self._chain.run(calibration.before(batch), 0))
            for place, batch in enumerate(self._judged)
        ]

    @property
    def metric(self) -> str:
        """What a loss is: ``kl`` or ``mse``."""
        return self._loss.metric

    @property
    def reference(self) -> NDArray[np.float64]:
        """Loss of the reference network on each sample, (samples,)."""
        return np.concatenate(self._base)

    def of(
        self, index: int, changed: QuantizedNetwork, earlier: Mapping[str, QuantParams] | None = None
    ) -> NDArray[np.float64]:
        """Loss of each sample with one stage as in another network, minus that of the reference network, (samples,).

        Args:
            index: of the stage, which the calibration stands before or has just observed.
            changed: the other network.
            earlier: grids on which tensors from before the stage are rounded first.
        """
        stage = self._stages[index]
        step, parts = None, []
        for place, batch in enumerate(self._judged):
            arrays = self._calibration.before(batch)
            rounded = {
                t: fake_quantize(arrays[t].astype(np.float32, copy=False), g) for t, g in (earlier or {}).items()
            }
            arrays = {**arrays, **rounded}
            step = step or make_step(self._model, stage, arrays, changed)
            outcome = self._chain.run(passed(stage, arrays, step.run(arrays)), index + 1)
            parts.append(self._loss.of(place, outcome) - self._base[place])
        return np.concatenate(parts)
