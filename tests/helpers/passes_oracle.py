"""What the tests of the passes share: models from ONNX text, and onnxruntime as judge of every rewrite."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import onnxruntime
from onnx import checker, numpy_helper, parser

from onnxq.ir.load import load
from onnxq.ir.model import Model
from onnxq.ir.save import to_proto

Pass = Callable[[Model], Model]

# A rewrite moves a product or a sum to another place. With weights of size one and sums of at most a few
# hundred float32 terms (unit roundoff 6e-8), results then differ by some 1e-6 of the largest output.
TOLERANCE = 1e-5


def build(text: str, opset: int = 17, ir: int = 8, **constants: np.ndarray) -> onnx.ModelProto:
    """A model from the text of its graph (inputs, outputs, nodes) and its constants by name."""
    model = parser.parse_model(f'<ir_version: {ir}, opset_import: ["": {opset}]> g {text}')
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    checker.check_model(model)
    return model


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def norm_constants(channels: int, prefix: str = "", seed: int = 7) -> dict[str, np.ndarray]:
    """Constants of a BatchNormalization: gamma of either sign, variance away from zero."""
    rng = np.random.default_rng(seed)
    draw = {"s": rng.normal(1, 1, channels), "b": rng.normal(0, 1, channels), "m": rng.normal(0, 1, channels)}
    draw["v"] = rng.uniform(0.1, 2, channels)
    return {prefix + k: v.astype(np.float32) for k, v in draw.items()}


def run(model: onnx.ModelProto, feeds: dict[str, np.ndarray] | None = None) -> list[np.ndarray]:
    """Outputs of a model in onnxruntime without optimization; inputs not given are random, open sizes 5."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    feeds = dict(feeds or {})
    for i, value in enumerate(session.get_inputs()):
        shape = [d if isinstance(d, int) else 5 for d in value.shape]
        feeds.setdefault(value.name, np.array(i % 2) if "bool" in value.type else normal(i, *shape))
        if "bool" in value.type:
            feeds[value.name] = np.asarray(feeds[value.name], bool)
    return session.run(None, feeds)


def rewrite(model: onnx.ModelProto, *passes: Pass, feeds: dict[str, np.ndarray] | None = None) -> Model:
    """Apply passes; the answers, the interface and the model that was handed in must be as before."""
    source = load(model)
    before = to_proto(source).SerializeToString(deterministic=True)
    result = source
    for single in passes:
        result = single(result)
    assert to_proto(source).SerializeToString(deterministic=True) == before, "the pass changed its argument"
    written = to_proto(result)
    checker.check_model(written, full_check=True)
    assert list(written.graph.input) == list(onnx.ModelProto.FromString(before).graph.input)
    assert [t.name for t in written.graph.output] == [t.name for t in model.graph.output]
    for expected, found in zip(run(model, feeds), run(written, feeds), strict=True):
        assert expected.shape == found.shape and expected.dtype == found.dtype
        wide = expected.astype(np.float64)
        assert np.abs(wide - found).max(initial=0) <= TOLERANCE * np.abs(wide).max(initial=0)
    return result


def ops(model: Model) -> list[str]:
    return [node.op for node in model.graph.nodes]


def constant(model: Model, name: str) -> np.ndarray:
    return np.asarray(model.graph.tensors()[name].values)


def reasons(model: Model) -> str:
    return " | ".join(f"{remark.node}: {remark.reason}" for remark in model.remarks)
