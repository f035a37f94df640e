"""Reference networks that are installed with onnxq, so that ``onnxq demo`` and the tests run from anywhere.

One network is bundled: ``digits.onnx``, a small residual classifier of handwritten digits with depthwise
convolutions and unfolded batch normalization, next to the data to calibrate and to judge it.
``train_digits.py`` in this folder makes all three files.

The networks of the literature (ResNet, MobileNet-V2, BERT) are built on demand: ``catalogue.py`` has them by name,
``python -m onnxq.models.build`` writes them, and nothing of that is loaded here.

The images come from the *Optical Recognition of Handwritten Digits* data set (E. Alpaydin and C. Kaynak, 1998,
UCI Machine Learning Repository, https://doi.org/10.24432/C50P49), in the copy of 1,797 images that scikit-learn
carries. Licence of the data: Creative Commons Attribution 4.0 (CC BY 4.0). Changes made: the 8x8 images are
scaled to 16x16 pixels and to the range 0 to 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["BundledModel", "bundled"]


@dataclass(frozen=True)
class BundledModel:
    """Where a network and its data lie on disk.

    No image is in both data files, and none of them was seen in training.

    Attributes:
        model: the float32 ONNX network, input ``image`` (batch, 1, 16, 16), output ``logits`` (batch, 10).
        calibration: ``.npz`` with ``image`` (256, 1, 16, 16), float32 in 0..1; no labels.
        evaluation: ``.npz`` with ``image`` (640, 1, 16, 16), float32 in 0..1, and ``labels`` (640,), int64 in 0..9.
    """

    model: Path
    calibration: Path
    evaluation: Path


def bundled() -> BundledModel:
    """The bundled digit classifier.

    Returns:
        Absolute paths of its three files.

    Example:
        >>> bundled().model.name
        'digits.onnx'
    """
    folder = Path(__file__).resolve().parent
    return BundledModel(
        model=folder / "digits.onnx",
        calibration=folder / "digits_calibration.npz",
        evaluation=folder / "digits_evaluation.npz",
    )
