"""Seeded random weights that make a network behave like a trained one, for measuring time and memory.

Weights are drawn as for training. The statistics of every batch normalization are then those of the data that
really passes it, so that no activation fades or overflows in a hundred layers, and the classifier is scaled to
logits that differ between samples.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from onnxq.models.network import Network, Parameter
from onnxq.models.samples import samples

Array = NDArray[np.float32]

LINEAR_DEVIATION = 0.02
"""Of linear layers and embeddings, as BERT initializes them."""

LOGIT_DEVIATION = 2.5
"""Of a class's logit from sample to sample: about that of trained ImageNet classifiers."""

BRANCH = 0.3
"""Deviation of a residual branch, beside about 1 of its shortcut. At 1 a hundred layers are chaotic: any two images
end alike, or a bright one ends at fifty times the rest."""

SAMPLES = 16
"""Enough: the smallest feature maps, 7 × 7, still give 392 values a channel."""


def random_values(network: Network, *, seed: int = 0) -> dict[str, Array]:
    """A value for every parameter.

    Args:
        network: whose parameters.
        seed: of the weights and of the samples that statistics are taken of.

    Returns:
        float32 by parameter name; the same for the same seed and machine.
    """
    rng = np.random.default_rng(seed)
    values = {parameter.name: _draw(parameter, rng) for parameter in network.parameters}
    if any(node.op_type == "BatchNormalization" for node in network.nodes):
        _measure(network, values, seed)
    return values


def _draw(parameter: Parameter, rng: np.random.Generator) -> Array:
    shape = parameter.shape
    match parameter.kind:
        case "convolution":  # K. He et al., Delving Deep into Rectifiers, ICCV 2015, eq. 10
            value = rng.standard_normal(shape, np.float32) * np.float32(math.sqrt(2 / math.prod(shape[1:])))
        case "linear" | "embedding":
            value = rng.standard_normal(shape, np.float32) * np.float32(LINEAR_DEVIATION)
        case "gamma":  # channels of a trained network differ by a factor of a few
            value = np.exp(0.3 * rng.standard_normal(shape))
        case "last_gamma":  # and its residual branches change what passes by a little each
            value = BRANCH * np.exp(0.3 * rng.standard_normal(shape))
        case "beta":
            value = 0.3 * rng.standard_normal(shape)
        case "variance":
            value = np.ones(shape)
        case "bias" | "mean":
            value = np.zeros(shape)
    return np.asarray(value, np.float32)


def _measure(network: Network, values: dict[str, Array], seed: int) -> None:
    """Set the statistics of every batch normalization and the scale of the classifier, in one run."""
    statistics = {f"{name}/batch": name for node in _normalisations(network.nodes) for name in node.input[3:]}
    logits = network.outputs[0][0]
    feed = next(samples(network, SAMPLES, batch=SAMPLES, seed=seed))
    session = ort.InferenceSession(
        _training_form(network, values).SerializeToString(), _quiet(), providers=["CPUExecutionProvider"]
    )
    *moments, scores = session.run([*statistics, logits], feed)
    for name, moment in zip(statistics.values(), moments, strict=True):
        values[name] = np.asarray(moment, np.float32)
    weight, bias = next(node.input[1:] for node in reversed(network.nodes) if node.op_type == "Gemm")
    factor = np.float32(LOGIT_DEVIATION / max(float(scores.std(axis=0).mean()), 1e-6))
    values[weight] = values[weight] * factor
    values[bias] = np.asarray(-factor * scores.mean(axis=0), np.float32)


def _training_form(network: Network, values: dict[str, Array]) -> onnx.ModelProto:
    """The network normalizing by each batch, with the batch's statistics as further outputs."""
    model = network.model(values)
    for node in _normalisations(model.graph.node):
        # With momentum 0 the running statistics that come out are those of the batch alone.
        node.attribute.extend(
            [onnx.helper.make_attribute("training_mode", 1), onnx.helper.make_attribute("momentum", 0.0)]
        )
        for name in node.input[3:]:
            node.output.append(f"{name}/batch")
            model.graph.output.append(onnx.helper.make_tensor_value_info(f"{name}/batch", onnx.TensorProto.FLOAT, None))
    return model


def _normalisations(nodes: Any) -> list[onnx.NodeProto]:
    return [node for node in nodes if node.op_type == "BatchNormalization"]


def _quiet() -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    return options
