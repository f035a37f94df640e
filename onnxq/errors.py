"""Every error that onnxq raises on purpose.

    OnnxqError
    ├── InputError               something the caller handed over cannot be used
    │   ├── ModelError           not an ONNX model, or one that cannot be read
    │   │   └── UnsupportedError nodes, opsets or types that onnxq does not handle (all of them, by name)
    │   ├── CalibrationError     samples that are missing, malformed or not finite
    │   ├── ConfigError          an option outside its range, or options that contradict each other
    │   └── OutputError          a result that cannot be written where it was asked for
    └── VerificationError        the emitted model does not load, or its levels disagree

A message names the thing (node, tensor, file), what was found, what was expected and what to do,
in one sentence that stands alone: the command prints it as it is and exits with 2.
"""

from __future__ import annotations


class OnnxqError(Exception):
    """Root of every error of onnxq: one ``except`` catches them all."""


class InputError(OnnxqError):
    """Something the caller handed over cannot be used."""


class ModelError(InputError):
    """A file or object that is not an ONNX model, or one that cannot be read."""


class UnsupportedError(ModelError):
    """A valid ONNX model that holds something onnxq does not handle."""


class CalibrationError(InputError):
    """Samples that are missing, malformed or not finite."""


class ConfigError(InputError):
    """An option outside its range, or options that contradict each other."""


class OutputError(InputError):
    """A result that cannot be written where it was asked for."""


class VerificationError(OnnxqError):
    """The emitted model does not load everywhere, or its optimization levels disagree."""


class NotFiniteError(VerificationError):
    """A quantized network that makes NaN or infinity where the float network makes numbers.

    Args:
        what: the tensor, as the subject of a sentence.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(
            f"{what} of the quantised model is NaN or infinite where the float model's is finite; nothing was written: "
            "give the model more bits, or leave in float (exclude) the layers that it is made of."
        )
