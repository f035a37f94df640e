"""The classes of samples, where they are kept beside them."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.data.feed import Signature
from onnxq.data.npz import read_labels
from onnxq.data.source import Data, count_samples
from onnxq.errors import CalibrationError
from onnxq.ir.tensor import TensorInfo


def labels_of(data: Data, key: str, inputs: Sequence[TensorInfo], samples: int | None = None) -> NDArray[Any]:
    """The labels of the samples that will be used.

    Args:
        data: path of a ``.npz`` file or a mapping, which holds the labels beside the inputs.
        key: name of the array of labels, first axis samples.
        inputs: the inputs of the model; where they fix the size of a batch, an incomplete last one goes, and its
            labels with it.
        samples: how many are used; all when None.

    Raises:
        CalibrationError: there are no such labels, or another number of them than samples.
    """
    if isinstance(data, Mapping):
        if key not in data:
            raise CalibrationError(f"the mapping given holds no labels named {key!r}: name one of {sorted(data)}")
        labels = np.asarray(data[key])
    elif isinstance(data, (str, os.PathLike)):
        labels = read_labels(data, key)
    else:
        raise CalibrationError(
            f"labels named {key!r} are taken from a .npz file or a mapping {{name: array}}: give one"
        )
    count = count_samples(data, inputs)
    if count is not None and labels.shape[:1] != (count,):
        raise CalibrationError(
            f"there are {len(labels) if labels.ndim else 0} labels {key!r} for {count} samples; give one label a sample"
        )
    used = labels[:samples]
    return used[: len(used) - len(used) % (Signature(tuple(inputs)).fixed_batch or 1)]
