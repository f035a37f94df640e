"""Both models side by side on a stream of batches."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import CalibrationError, ModelError, VerificationError
from onnxq.verify.fidelity import OutputMeter
from onnxq.verify.finite import is_numeric
from onnxq.verify.report import OutputFidelity
from onnxq.verify.session import reason
from onnxq.verify.source import Feed, ModelSource


class Comparison:
    """Runs the float and the quantized model on the same feeds and measures every output.

    Args:
        fp32: the float model.
        quantized: the quantized model, with the same inputs and outputs.
        labels: class of each sample in the feeds' order, or None.
        classification: whether to judge outputs as class scores.

    Raises:
        ModelError: the inputs or outputs differ, or no output holds numbers.
        CalibrationError: the labels are not integers.
    """

    def __init__(
        self, fp32: ModelSource, quantized: ModelSource, labels: NDArray[Any] | None, *, classification: bool
    ) -> None:
        for kind, ours, theirs in (
            ("inputs", fp32.required, quantized.required),
            ("outputs", fp32.outputs, quantized.outputs),
        ):
            if set(ours) != set(theirs):
                raise ModelError(
                    f"{quantized.label} has {kind} {sorted(theirs)} where {fp32.label} has {sorted(ours)};"
                    " give both models the same names"
                )
        if not fp32.numbers:
            raise ModelError(
                f"output {fp32.outputs[0]!r} of {fp32.label} is not a numeric tensor, nor is any other: nothing can be "
                "compared"
            )
        self._fp32, self._quantized = fp32, quantized
        self._labels = None if labels is None else _checked_labels(labels)
        self._meters = [OutputMeter(name, classification=classification) for name in fp32.outputs]
        self.samples = 0

    def run_fp32(self, session: Any, feed: Feed) -> list[NDArray[Any]]:
        """The float model's answers to a batch.

        Raises:
            CalibrationError: it cannot run on that feed.
        """
        try:
            return list(session.run(list(self._fp32.outputs), feed))
        except Exception as error:
            raise CalibrationError(
                f"{self._fp32.label} cannot run on the feed after {self.samples} samples ({reason(error)});"
                " make its arrays' types and shapes those of the inputs"
            ) from error

    def add(self, fp32_session: Any, quantized_session: Any, feed: Feed) -> None:
        """Run both models on a batch and take in their answers.

        Raises:
            CalibrationError: the float model cannot run on it, or there are too few labels.
            VerificationError: the quantized model cannot, or its answer has another shape.
        """
        expected = self.run_fp32(fp32_session, feed)
        try:
            found = quantized_session.run(list(self._fp32.outputs), feed)
        except Exception as error:
            raise VerificationError(
                f"{self._quantized.label} fails on the feed after {self.samples} samples,"
                f" which the float model can run: {reason(error)}"
            ) from error
        count = self._fp32.batch_size(feed)
        labels = self._next_labels(count)
        for meter, a, b in zip(self._meters, expected, found, strict=True):
            if meter.name in self._quantized.not_comparable:
                meter.leave_out(self._quantized.not_comparable[meter.name])
            elif not (is_numeric(a) and is_numeric(b)):
                meter.leave_out("it is no tensor of numbers in every sample")
            elif a.shape != b.shape:
                raise VerificationError(
                    f"output {meter.name!r} of {self._quantized.label} has shape {b.shape}"
                    f" where the float model's has {a.shape}"
                )
            else:
                meter.add(a, b, labels, samples=count)
            meter.judge_finiteness(a, b)
        self.samples += count

    def outputs(self) -> tuple[OutputFidelity, ...]:
        """Fidelity of every output over all samples taken in.

        Raises:
            CalibrationError: there are more labels than samples.
        """
        if self._labels is not None and len(self._labels) != self.samples:
            raise CalibrationError(
                f"there are {len(self._labels)} labels for {self.samples} samples; give one label a sample"
            )
        return tuple(meter.result() for meter in self._meters)

    def _next_labels(self, count: int) -> NDArray[Any] | None:
        if self._labels is None:
            return None
        labels = self._labels[self.samples : self.samples + count]
        if len(labels) < count:
            raise CalibrationError(
                f"there are {len(self._labels)} labels for at least {self.samples + count} samples;"
                " give one label a sample"
            )
        return labels


def _checked_labels(labels: NDArray[Any]) -> NDArray[Any]:
    labels = np.asarray(labels)
    if labels.ndim == 0 or not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == np.bool_):
        raise CalibrationError(
            f"labels are {labels.dtype.name} of shape {labels.shape}; expected integers, one class index a sample"
        )
    return labels
