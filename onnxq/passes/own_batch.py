"""Models whose batch is open in name only: a Reshape traced with one sample in it, behind inputs of any number.

Such a model runs with its own number of samples and no other. Where its graph shows signs of that, it is tried once, on
zeros, with two samples more than it shows; where it does not run, the number it shows is that of its inputs.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from onnxq.errors import UnsupportedError
from onnxq.ir.model import Model
from onnxq.ir.save import to_outline
from onnxq.ir.tensor import TensorInfo
from onnxq.runtime.session import Session

OPEN_SIZE = 8
"""Length given to axes that are open besides that of the samples."""


def with_own_batch(model: Model) -> Model:
    """The model with its inputs' first axes fixed, where it takes one number of samples only.

    Args:
        model: loaded or prepared; the sizes that it says its inputs have are changed in a copy.
    """
    inputs = model.inputs
    if not inputs or not all(i.shape and i.shape[0] is None and i.dtype.kind in "fiub" for i in inputs):
        return model
    sizes = [size for size in dict.fromkeys((*_shown(model), 1)) if size]
    if not any(_shown(model)):
        return model
    session = Session(to_outline(model), "the model")
    if _runs(session, inputs, max(sizes) + 2):
        return model
    size = next((size for size in sizes if _runs(session, inputs, size)), None)
    return model if size is None else model.with_batch(size)


def _shown(model: Model) -> Iterator[int]:
    """First axes that outputs, or the results of reshapes, have although the inputs' are open."""
    for output in model.outputs:
        if output.shape and output.shape[0] is not None:
            yield output.shape[0]
    for node in model.graph.nodes:
        if node.op == "Reshape" and len(node.inputs) > 1 and (shape := model.value(node.inputs[1].name)) is not None:
            first = int(shape.reshape(-1)[0]) if shape.size > 1 else -1
            if first > 0:
                yield first


def _runs(session: Session, inputs: tuple[TensorInfo, ...], samples: int) -> bool:
    feed = {
        i.name: np.zeros([samples, *(d or OPEN_SIZE for d in (i.shape or ())[1:])], np.dtype(i.dtype)) for i in inputs
    }
    try:
        session.run(feed)
    except UnsupportedError:
        return False
    return True
