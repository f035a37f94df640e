"""onnxruntime's static quantizer: QDQ, a scale for each channel, other bits at the edges by override."""

from __future__ import annotations

from collections.abc import Iterator
from tempfile import TemporaryDirectory

import onnx
from common import Job, drive
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process

METHODS = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}
WEIGHTS = {4: QuantType.QInt4, 8: QuantType.QInt8}
ACTIVATIONS = {4: QuantType.QUInt4, 8: QuantType.QUInt8}


class Reader(CalibrationDataReader):
    """Batches that can be taken in pieces.

    Histograms are then made of a piece at a time: without pieces every tensor of every batch is kept, and a last batch
    of fewer samples is refused.
    """

    def __init__(self, batches: Iterator[dict[str, object]]) -> None:
        self._batches = list(batches)
        self.set_range(0, len(self._batches))

    def __len__(self) -> int:
        """Batches in all."""
        return len(self._batches)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Go on with these."""
        self._piece = iter(self._batches[start_index:end_index])

    def get_next(self) -> dict[str, object] | None:
        """The next batch; None at the end."""
        return next(self._piece, None)


def channel_axis(graph: onnx.GraphProto, weight: str) -> int:
    """The axis of a weight that holds the output channels."""
    for node in graph.node:
        if weight in node.input:
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            return 0 if node.op_type == "Conv" or transposed else 1
    return 0


def quantise(job: Job) -> None:
    """Prepare the model as its documentation asks, and quantize it."""
    overrides, graph = {}, onnx.load(job.model).graph
    for weight, activation in job.edges:
        if job.weights < job.edge_bits:
            axis = channel_axis(graph, weight)
            overrides[weight] = [{"quant_type": WEIGHTS[job.edge_bits], "axis": axis, "symmetric": True}]
        if job.activations < job.edge_bits:
            overrides[activation] = [{"quant_type": ACTIVATIONS[job.edge_bits]}]
    with TemporaryDirectory() as folder:
        prepared = f"{folder}/prepared.onnx"
        quant_pre_process(str(job.model), prepared, skip_symbolic_shape=True)
        present = {tensor.name for tensor in onnx.load(prepared).graph.initializer}
        present |= {name for node in onnx.load(prepared).graph.node for name in node.input}
        quantize_static(
            prepared,
            str(job.output),
            Reader(job.batches()),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            weight_type=WEIGHTS[job.weights],
            activation_type=ACTIVATIONS[job.activations],
            calibrate_method=METHODS[job.method],
            extra_options={
                "TensorQuantOverrides": {k: v for k, v in overrides.items() if k in present},
                "CalibStridedMinMax": 1,  # batches a piece, for histograms as well
            },
        )


if __name__ == "__main__":
    drive(quantise)
