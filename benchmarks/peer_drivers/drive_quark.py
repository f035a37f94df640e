"""AMD Quark for ONNX: its 8-bit presets, plain or with AdaRound or AdaQuant. It has no 4-bit weights for Conv."""

from __future__ import annotations

from collections.abc import Iterator

from common import Job, drive
from onnxruntime.quantization import CalibrationDataReader
from quark.onnx import AdaQuantConfig, AdaRoundConfig, Int8Spec, ModelQuantizer, QConfig, QLayerConfig


class Reader(CalibrationDataReader):
    """Samples one after the other, and again from the first when asked."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._batches = self._read()

    def _read(self) -> Iterator[dict[str, object]]:
        return iter(self._job.batches(1))

    def get_next(self) -> dict[str, object] | None:
        """The next sample; None at the end."""
        return next(self._batches, None)

    def reset_iter(self) -> None:
        """Begin again."""
        self._batches = self._read()

    def rewind(self) -> None:
        """The same, as onnxruntime calls it."""
        self.reset_iter()

    def __len__(self) -> int:
        """Samples."""
        return sum(1 for _ in self._read())


def quantise(job: Job) -> None:
    """``minmax``, ``adaround`` or ``adaquant``, each as its preset has it: 1,000 iterations."""
    algorithms = {
        "minmax": [],
        "adaround": [AdaRoundConfig(num_iterations=1000, learning_rate=0.1, data_size=1000, batch_size=2)],
        "adaquant": [AdaQuantConfig(num_iterations=1000, learning_rate=1e-5, data_size=1000, batch_size=2)],
    }
    config = QConfig(
        global_config=QLayerConfig(activation=Int8Spec(), weight=Int8Spec()),
        algo_config=algorithms[job.method],
        ForceQuantizeNoInputCheck=True,
        AlignSlice=False,
        FoldRelu=True,
        AlignConcat=True,
    )
    ModelQuantizer(config).quantize_model(str(job.model), str(job.output), Reader(job))


if __name__ == "__main__":
    drive(quantise)
