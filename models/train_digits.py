"""Train the bundled digit classifier and write its ONNX file and its two data files beside this script.

    python models/train_digits.py            (a few minutes on two cores; needs the extra ``onnxq[train]``)

Data: *Optical Recognition of Handwritten Digits* (E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning Repository,
https://doi.org/10.24432/C50P49), 1,797 grey images of 8x8 pixels, as scikit-learn's ``load_digits`` carries them.
Licence: Creative Commons Attribution 4.0 (CC BY 4.0). The images are split at random into 901 to train on, 256 to
calibrate with and 640 to evaluate on; the same writers appear in all three.

The network is written down once, as ``NETWORK``, and read twice: by ``forward``, which trains it in JAX, and by
``export``, which writes it as ONNX. Everything is seeded: on one machine a second run writes the same files.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime as ort
import optax
from onnx import TensorProto, helper, numpy_helper
from sklearn.datasets import load_digits  # type: ignore[import-untyped]

SEED = 0
CALIBRATION, EVALUATION = 256, 640  # images held out of training
EPOCHS, BATCH, PEAK_LEARNING_RATE = 60, 53, 4e-3  # 901 images are 17 batches of 53
SOURCE_SIZE, SIZE, CLASSES = 8, 16, 10  # pixels of the data set, pixels of the network, digits
BN_EPSILON, BN_MOMENTUM = 1e-5, 0.9
EXACT = jax.lax.Precision.HIGHEST

Arrays = dict[str, dict[str, jax.Array]]  # layer name -> parameter name -> value


@dataclass(frozen=True)
class Unit:
    """A convolution, its batch normalization and, where asked for, a ReLU or the sum with an earlier unit's output."""

    name: str
    inputs: int
    outputs: int
    kernel: int  # pixels; padded by kernel // 2 on each side
    stride: int = 1
    depthwise: bool = False
    relu: bool = True
    adds: str | None = None  # the unit whose output is added last


# A plain residual block and two inverted ones (M. Sandler et al., MobileNetV2, CVPR 2018, figure 3).
NETWORK = (
    Unit("stem/conv", 1, 32, kernel=3),
    Unit("down1/conv", 32, 64, kernel=3, stride=2),
    Unit("block1/conv1", 64, 64, kernel=3),
    Unit("block1/conv2", 64, 64, kernel=3, relu=False, adds="down1/conv"),
    Unit("block2/expand", 64, 128, kernel=1),
    Unit("block2/depthwise", 128, 128, kernel=3, depthwise=True),
    Unit("block2/project", 128, 64, kernel=1, relu=False, adds="block1/conv2"),
    Unit("down2/conv", 64, 128, kernel=3, stride=2),
    Unit("block3/expand", 128, 256, kernel=1),
    Unit("block3/depthwise", 256, 256, kernel=3, depthwise=True),
    Unit("block3/project", 256, 128, kernel=1, relu=False, adds="down2/conv"),
    Unit("head/conv", 128, 256, kernel=1),
)


def resample(image: jax.Array, angle: jax.Array, zoom: jax.Array, shift: jax.Array) -> jax.Array:
    """The image on the network's pixel grid, turned, zoomed and shifted by bilinear interpolation.

    Args:
        image: (8, 8), values 0..16.
        angle: radians.
        zoom: source pixels stepped over per source pixel, 1 for the image's own size.
        shift: (2,), source pixels down and right.

    Returns:
        (16, 16), values 0..1; black outside the image. With no change each value is a multiple of 1/256.
    """
    offsets = (jnp.arange(SIZE) + 0.5) * (SOURCE_SIZE / SIZE) - SOURCE_SIZE / 2
    down, right = jnp.meshgrid(offsets, offsets, indexing="ij")
    centre = (SOURCE_SIZE - 1) / 2
    rows = zoom * (jnp.cos(angle) * down - jnp.sin(angle) * right) + centre - shift[0]
    columns = zoom * (jnp.sin(angle) * down + jnp.cos(angle) * right) + centre - shift[1]
    grid: jax.Array = jax.scipy.ndimage.map_coordinates(image, [rows, columns], order=1)
    return grid / 16


def prepare(images: np.ndarray) -> np.ndarray:
    """The images as the network takes them: (N, 8, 8) in 0..16 to (N, 1, 16, 16) in 0..1, float32."""
    n = len(images)
    grids = jax.vmap(resample)(jnp.asarray(images, jnp.float32), jnp.zeros(n), jnp.ones(n), jnp.zeros((n, 2)))
    return np.asarray(grids)[:, None]


def augment(key: jax.Array, images: jax.Array) -> jax.Array:
    """Each image of (N, 8, 8) turned, zoomed and shifted a little at random, as (N, 1, 16, 16)."""
    turn, scale, move = jax.random.split(key, 3)
    n = len(images)
    angle = jax.random.uniform(turn, (n,), minval=-0.2, maxval=0.2)
    zoom = jax.random.uniform(scale, (n,), minval=0.9, maxval=1.1)
    shift = jax.random.uniform(move, (n, 2), minval=-0.7, maxval=0.7)
    return jax.vmap(resample)(images, angle, zoom, shift)[:, None]


def initialise(key: jax.Array) -> tuple[Arrays, Arrays]:
    """He-normal weights with neutral normalization, as (parameters, running statistics).

    A dense kernel is laid out (kernel, kernel, inputs, outputs), a depthwise one (kernel, kernel, channels).
    """
    parameters: Arrays = {}
    statistics: Arrays = {}
    for unit, unit_key in zip(NETWORK, jax.random.split(key, len(NETWORK)), strict=True):
        fan_in = unit.kernel**2 * (1 if unit.depthwise else unit.inputs)
        channels = (unit.outputs,) if unit.depthwise else (unit.inputs, unit.outputs)
        weight = jax.random.normal(unit_key, (unit.kernel, unit.kernel, *channels)) * np.sqrt(2 / fan_in)
        parameters[unit.name] = {"weight": weight, "gamma": jnp.ones(unit.outputs), "beta": jnp.zeros(unit.outputs)}
        statistics[unit.name] = {"mean": jnp.zeros(unit.outputs), "var": jnp.ones(unit.outputs)}
    parameters["classifier"] = {"weight": jnp.zeros((NETWORK[-1].outputs, CLASSES)), "bias": jnp.zeros(CLASSES)}
    return parameters, statistics


def convolve(unit: Unit, x: jax.Array, weight: jax.Array) -> jax.Array:
    """The convolution of x, (N, H, W, C), as one multiplication per kernel position.

    XLA's own grouped convolution is about a hundred times slower on a CPU.
    """
    margin = unit.kernel // 2
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    total: jax.Array | float = 0.0
    for row, column in product(range(unit.kernel), repeat=2):
        seen = padded[:, row : row + height : unit.stride, column : column + width : unit.stride]
        tap = weight[row, column]
        total += seen * tap if unit.depthwise else jnp.matmul(seen, tap, precision=EXACT)
    return jnp.asarray(total)


def forward(parameters: Arrays, statistics: Arrays, images: jax.Array, train: bool) -> tuple[jax.Array, Arrays]:
    """The logits of the images, and the running statistics after them.

    Args:
        parameters: weights, as ``initialise`` lays them out.
        statistics: running mean and variance of each channel, likewise.
        images: (N, 1, 16, 16), float32.
        train: normalize by the batch and update the statistics, instead of normalizing by the statistics.

    Returns:
        Logits, (N, 10), float32, and statistics, unchanged unless training.
    """
    updated: Arrays = {}
    after: dict[str, jax.Array] = {}
    x = images.transpose(0, 2, 3, 1)
    for unit in NETWORK:
        own, running = parameters[unit.name], statistics[unit.name]
        x = convolve(unit, x, own["weight"])
        current = {"mean": x.mean((0, 1, 2)), "var": x.var((0, 1, 2))} if train else running
        x = (x - current["mean"]) * (own["gamma"] * jax.lax.rsqrt(current["var"] + BN_EPSILON)) + own["beta"]
        x = jax.nn.relu(x) if unit.relu else x
        x = x + after[unit.adds] if unit.adds else x
        after[unit.name] = x
        updated[unit.name] = {k: BN_MOMENTUM * running[k] + (1 - BN_MOMENTUM) * current[k] for k in running}
    last = parameters["classifier"]
    logits = jnp.matmul(x.mean((1, 2)), last["weight"], precision=EXACT) + last["bias"]
    return logits, updated if train else statistics


def train(images: np.ndarray, labels: np.ndarray) -> tuple[Arrays, Arrays]:
    """Parameters and statistics after training on images (N, 8, 8) and labels (N,)."""
    key, start = jax.random.split(jax.random.key(SEED))
    parameters, statistics = initialise(start)
    steps_per_epoch = len(images) // BATCH
    steps = EPOCHS * steps_per_epoch
    rate = optax.warmup_cosine_decay_schedule(0.0, PEAK_LEARNING_RATE, steps // 10, steps)
    optimiser = optax.adamw(rate, weight_decay=0.02, mask=jax.tree.map(lambda p: p.ndim > 1, parameters))
    state = optimiser.init(parameters)

    def loss(parameters: Arrays, statistics: Arrays, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Arrays]:
        logits, statistics = forward(parameters, statistics, x, train=True)
        targets = optax.smooth_labels(jax.nn.one_hot(y, CLASSES), alpha=0.1)
        return optax.softmax_cross_entropy(logits, targets).mean(), statistics

    @jax.jit
    def step(
        parameters: Arrays, statistics: Arrays, state: optax.OptState, key: jax.Array, x: jax.Array, y: jax.Array
    ) -> tuple[Arrays, Arrays, optax.OptState, jax.Array]:
        gradient = jax.value_and_grad(loss, has_aux=True)
        (value, statistics), slope = gradient(parameters, statistics, augment(key, x), y)
        change, state = optimiser.update(slope, state, parameters)
        return optax.apply_updates(parameters, change), statistics, state, value

    order = np.random.default_rng(SEED)
    for epoch in range(EPOCHS):
        batches = order.permutation(len(images))[: steps_per_epoch * BATCH].reshape(-1, BATCH)
        for batch in batches:
            key, use = jax.random.split(key)
            x, y = images[batch], labels[batch]
            parameters, statistics, state, value = step(parameters, statistics, state, use, x, y)
        print(f"epoch {epoch + 1} of {EPOCHS}: loss {float(value):.4f}", flush=True)
    return parameters, statistics


def export(parameters: Arrays, statistics: Arrays) -> onnx.ModelProto:
    """The trained network as ONNX, batch normalization as nodes of its own, weights as float32 initializers."""
    nodes: list[onnx.NodeProto] = []
    weights: list[onnx.TensorProto] = []

    def constant(name: str, value: jax.Array) -> str:
        weights.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
        return name

    def node(op: str, name: str, inputs: list[str], output: str = "", **attributes: Any) -> str:
        output = output or f"{name}:0"
        nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    x = "image"
    after: dict[str, str] = {}
    for unit in NETWORK:
        own = parameters[unit.name] | statistics[unit.name]
        # ONNX wants (outputs, inputs per group, kernel, kernel).
        kernel = own["weight"][:, :, None] if unit.depthwise else own["weight"]
        x = node(
            "Conv",
            unit.name,
            [x, constant(f"{unit.name}.weight", kernel.transpose(3, 2, 0, 1))],
            kernel_shape=[unit.kernel] * 2,
            strides=[unit.stride] * 2,
            pads=[unit.kernel // 2] * 4,
            group=unit.inputs if unit.depthwise else 1,
        )
        moments = [constant(f"{unit.name}/bn.{k}", own[k]) for k in ("gamma", "beta", "mean", "var")]
        x = node("BatchNormalization", f"{unit.name}/bn", [x, *moments], epsilon=BN_EPSILON)
        x = node("Relu", f"{unit.name}/relu", [x]) if unit.relu else x
        x = node("Add", f"{unit.name}/add", [x, after[unit.adds]]) if unit.adds else x
        after[unit.name] = x
    x = node("GlobalAveragePool", "pool", [x])
    x = node("Flatten", "flatten", [x])
    last = parameters["classifier"]
    head = [constant("classifier.weight", last["weight"].T), constant("classifier.bias", last["bias"])]
    node("Gemm", "classifier", [x, *head], "logits", transB=1)

    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 1, SIZE, SIZE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])
    model = helper.make_model(
        helper.make_graph(nodes, "digits", [image], [logits], weights),
        opset_imports=[helper.make_opsetid("", 17)],
        ir_version=8,  # the one that came with opset 17: the file loads in older runtimes too
        producer_name="onnxq/models/train_digits.py",
        doc_string="Handwritten digits, 0 to 9. Trained on the UCI Optical Recognition of Handwritten Digits data set "
        "(E. Alpaydin and C. Kaynak, 1998, https://doi.org/10.24432/C50P49), CC BY 4.0.",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def main() -> None:
    """Train, export, compare the two, and write the three files."""
    folder = Path(__file__).resolve().parent
    digits = load_digits()
    order = np.random.default_rng(SEED).permutation(len(digits.images))
    calibration, evaluation, training = np.split(order, [CALIBRATION, CALIBRATION + EVALUATION])
    parameters, statistics = train(digits.images[training].astype(np.float32), digits.target[training])
    model = export(parameters, statistics)

    images, labels = prepare(digits.images[evaluation]), digits.target[evaluation].astype(np.int64)
    expected = np.asarray(jax.jit(forward, static_argnums=3)(parameters, statistics, images, False)[0])
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"image": images})
    # Two orders of summation in float32 over logits of size about ten.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)
    right = int((logits.argmax(1) == labels).sum())
    print(f"accuracy {right / len(labels):.2%} ({right} of {len(labels)} images that were held out)")

    onnx.save(model, folder / "digits.onnx")
    np.savez_compressed(folder / "digits_calibration.npz", image=prepare(digits.images[calibration]))
    np.savez_compressed(folder / "digits_evaluation.npz", image=images, labels=labels)


if __name__ == "__main__":
    main()
