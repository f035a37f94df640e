"""Awkward models beside onnxruntime's own quantizer: the same model, the same samples, W8A8.

Its figures are taken without optimization, where its uint8 by int8 products do not saturate as they do on processors
without VNNI: the best that any machine makes of them. Ours are those of the default level.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from awkward_models import KINDS
from numpy.typing import NDArray
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from onnxq.api import quantize
from onnxq.config import Config

pytestmark = pytest.mark.slow

ROOM = 3.0
"""Decibels below it that are no shortcoming: the rounding of a few hundred values falls one way or the other, and its
ranges end at the samples that both are judged on, where head-room for new ones costs up to two decibels."""

SETTINGS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "by channel": {"per_channel": True},
    "by channel, unsigned": {"per_channel": True, "activation_type": QuantType.QUInt8},
}

Arrays = list[NDArray[Any]]


class Samples(CalibrationDataReader):
    """One batch."""

    def __init__(self, feed: Mapping[str, NDArray[Any]]) -> None:
        self._feeds: Iterator[Mapping[str, NDArray[Any]]] = iter([feed])

    def get_next(self) -> Any:
        return next(self._feeds, None)


def run(model: onnx.ModelProto, feed: Mapping[str, NDArray[Any]], *, optimised: bool) -> Arrays:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimised else levels.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feed)))


def decibels(exact: Arrays, found: Arrays) -> list[float]:
    """SQNR of every output."""
    pairs = ((a.astype(np.float64), b.astype(np.float64)) for a, b in zip(exact, found, strict=True))
    return [float(10 * np.log10(np.square(a).sum() / np.square(a - b).sum())) for a, b in pairs]


def ours(kind: str, **options: Any) -> list[float]:
    awkward = KINDS[kind]()
    result = quantize(awkward.model, awkward.samples, Config(**options))
    exact = run(awkward.model, awkward.samples, optimised=True)
    return decibels(exact, run(result.model, awkward.samples, optimised=True))


def its_best(kind: str, folder: Path) -> list[float]:
    """Of each output, under the best of the settings."""
    awkward = KINDS[kind]()
    exact = run(awkward.model, awkward.samples, optimised=True)
    figures = []
    for setting in SETTINGS.values():
        onnx.save(awkward.model, folder / "float.onnx")
        quant_pre_process(folder / "float.onnx", folder / "prepared.onnx", skip_symbolic_shape=True)
        quantize_static(
            folder / "prepared.onnx",
            folder / "its.onnx",
            Samples(awkward.samples),
            quant_format=QuantFormat.QDQ,
            weight_type=QuantType.QInt8,
            **setting,
        )
        figures.append(decibels(exact, run(onnx.load(folder / "its.onnx"), awkward.samples, optimised=False)))
    return [max(figure) for figure in zip(*figures, strict=True)]


@pytest.mark.parametrize("kind", ["lstm", "half", "shared_weights", "external", "gru", "attention"])
def test_no_output_is_further_from_float_than_onnxruntimes_own_quantiser_leaves_it(kind: str, tmp_path: Path) -> None:
    for found, best in zip(ours(kind), its_best(kind, tmp_path), strict=True):
        assert found >= best - ROOM


def test_onnxruntimes_own_quantiser_loses_the_relu_that_only_branches_read(tmp_path: Path) -> None:
    (best,) = its_best("if_conv", tmp_path)
    assert best < 10  # so it says nothing about what 8 bits can keep of this model


def test_a_layer_read_by_branches_is_nearly_as_close_as_rounding_its_input_and_weights_alone() -> None:
    awkward = KINDS["if_conv"]()
    x, plain = awkward.samples["x"], onnx.ModelProto()
    plain.CopyFrom(awkward.model)
    (weight,) = (t for t in plain.graph.initializer if t.name == "w0")
    w = numpy_helper.to_array(weight)
    step = np.abs(w).max(axis=(1, 2, 3), keepdims=True) / 127
    weight.CopyFrom(numpy_helper.from_array((np.rint(w / step) * step).astype(np.float32), "w0"))
    scale = (x.max() - x.min()) / 255
    zero = np.rint(-x.min() / scale)
    rounded = ((np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale).astype(np.float32)
    exact = run(awkward.model, {"x": x}, optimised=True)
    (best,) = decibels(exact, run(plain, {"x": rounded}, optimised=True))
    # What lacks to that (0.6 dB) is for weights whose products saturate nowhere, the rest for the quantizer behind the
    # layer, which an integer kernel needs and the generic target does without.
    # Two decibels more are head-room, which its plain counterpart does without.
    assert ours("if_conv", target="generic")[0] >= best - 2.8
    assert ours("if_conv")[0] >= best - 3.5


@pytest.mark.parametrize(("kind", "floor"), [("half", 37.5), ("shared_weights", 36.5)])
def test_outputs_left_in_float_are_where_other_tools_gain_their_decibels(kind: str, floor: float) -> None:
    # The default target quantizes what a layer gives out, which an integer kernel needs; the generic one does not.
    generic = ours(kind, target="generic")
    assert min(generic) >= floor
    assert all(a > b for a, b in zip(generic, ours(kind), strict=True))
