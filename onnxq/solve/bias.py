"""Biases and scales of all layers tuned together by gradient through the whole quantised network.

    min over b, s, s_x  of  E ‖ y − ŷ(b, s, s_x) ‖² / E ‖ y ‖²        or, for class scores if asked for,
    min over b, s, s_x  of  E KL( softmax(y) ‖ softmax(ŷ(b, s, s_x)) )

y are the float network's outputs, ŷ those of the quantised network: weights are the real numbers that
their integers stand for, inputs of layers are rounded to their grids. Rounding passes gradients straight
through, clipping keeps its own. The integers stay; a bias and a scale a channel and a scale a grid move,
so that a few hundred samples suffice. A bias counts in standard deviations of its channel's output and a
scale by its logarithm, so that one learning rate suits all layers.

The backward pass is cut behind every layer: it keeps one tensor a layer and computes what lies between
again. With integers fixed, what is computed again is cheap: roundings and additions, no layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import optax
from numpy.typing import NDArray

from onnxq.errors import UnsupportedError
from onnxq.execute.jax.interpreter import Hooks, Program, read_program, unsupported
from onnxq.ir.layer import Layer
from onnxq.quant.affine import quantize
from onnxq.quant.solution import LayerSolution, bias_scale, on_bias_grid
from onnxq.quant.spec import QuantParams
from onnxq.solve.objective import Target, find_targets
from onnxq.solve.samples import Batches, Feed

Tick = Callable[[int], None]
Named = dict[str, jax.Array]
Solutions = Mapping[str, LayerSolution]

CHECKS = 12
"""Evaluations of the hold-out in a tuning."""

PATIENCE = 6
"""Evaluations without gain after which a tuning stops."""

SMALLEST_DEVIATION = 1e-3
"""A channel counts with at least this share of its layer's deviation: dead ones would have none."""

WORKING_TENSORS = 8
"""Tensors of the largest size that a step holds at a time beside those it keeps."""


@dataclass(frozen=True)
class TuningOptions:
    """How biases are tuned.

    Attributes:
        steps: of gradient descent.
        rows: samples in a step; fewer where the memory asks for it.
        rate: learning rate of the biases, in standard deviations of each channel's output; it decays to 0.
        weight_rate: learning rate of the logarithms of the weights' scales; 0 leaves them.
        input_rate: learning rate of the logarithms of the input grids' scales; 0 leaves them.
        objective: ``mse`` compares the outputs' values; ``kl`` the softmax of outputs with two axes and
            several classes. A network is sure of the few samples at hand, often those it was trained on:
            there kl says little, and what it gains is lost on others.
    """

    steps: int = 200
    rows: int = 32
    rate: float = 0.001
    weight_rate: float = 0.0
    input_rate: float = 0.0
    objective: Literal["mse", "kl"] = "mse"


class Outcome(Enum):
    """How a tuning ended."""

    TUNED = "biases tuned through the whole network"
    NO_GAIN = "biases left as they were: tuning did not help the hold-out"
    TOO_FEW = "biases left as they were: there are too few samples to tune and to check"
    NO_OUTPUT = "biases left as they were: the network has no floating-point output"
    DIVERGED = "biases left as they were: tuning met infinity or a value that is no number"
    UNSUPPORTED = "biases left as they were: the network cannot be differentiated"


@dataclass(frozen=True)
class BiasTuning:
    """Tuned biases.

    Attributes:
        layers: solutions by layer name, with new biases where the hold-out gained.
        loss_before, loss_after: on the hold-out; NaN where it was not evaluated.
        steps: that were made.
        outcome: how it ended.
        detail: names of the nodes in the way, when there are any.
    """

    layers: Solutions
    loss_before: float
    loss_after: float
    steps: int
    outcome: Outcome
    detail: str = ""


def tune_biases(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    solutions: Solutions,
    outputs: Mapping[str, QuantParams],
    feeds: Sequence[Feed],
    options: TuningOptions,
    *,
    memory_limit: int = 2**30,
    seed: int = 0,
    tick: Tick = lambda steps: None,
) -> BiasTuning:
    """Tune the biases of a solved network; the result is never worse than the start on the hold-out.

    Args:
        model: the prepared float model.
        layers: its quantised layers.
        solutions: theirs, by layer name.
        outputs: 8-bit grids of tensors that are quantised where they are made, by tensor name.
        feeds: calibration batches that can be read again; every eighth sample is held out.
        options: how long and how fast.
        memory_limit: bytes that a step may take, roughly.
        seed: of the samples drawn.
        tick: called with the number of steps made since the last call.
    """
    tunable = any(_has_bias(layer, solutions[layer.name]) for layer in layers)
    keep = partial(BiasTuning, dict(solutions), np.nan, np.nan, 0)
    lacking = unsupported(model)
    if lacking:
        return keep(Outcome.UNSUPPORTED, "; ".join(map(str, lacking)))
    try:
        targets = find_targets(model, feeds, options.objective)
        if not targets or not tunable:
            return keep(Outcome.NO_OUTPUT)
        program = read_program(model)
        rows = _rows(program, layers, feeds[0], options.rows, memory_limit)
        batches = Batches(feeds, [t.values for t in targets], rows, _fixed_batch(model), seed)
        if not batches.enough:
            return keep(Outcome.TOO_FEW)
        network = _Network(program, layers, solutions, outputs, targets)
        network.measure(solutions, batches)
        rates = _rates(network.start(solutions), options)
        return _descend(network, solutions, rates, batches, options, tick)
    except UnsupportedError as error:
        return keep(Outcome.UNSUPPORTED, str(error))


def _rates(unknowns: Unknowns, options: TuningOptions) -> Unknowns:
    """Learning rates in the shape of the unknowns."""
    return Unknowns(
        bias=dict.fromkeys(unknowns.bias, jnp.float32(options.rate)),
        weight=dict.fromkeys(unknowns.weight, jnp.float32(options.weight_rate)),
        input=dict.fromkeys(unknowns.input, jnp.float32(options.input_rate)),
    )


def _fixed_batch(model: onnx.ModelProto) -> bool:
    """Whether an input has a batch size of its own, which nodes of the graph may rely on."""
    held = {t.name for t in model.graph.initializer}
    shapes = [i.type.tensor_type.shape.dim for i in model.graph.input if i.name not in held]
    return any(not shape or shape[0].dim_value > 0 for shape in shapes)


def _has_bias(layer: Layer, solution: LayerSolution) -> bool:
    return layer.bias is not None and solution.bias is not None


def _rows(program: Program, layers: Sequence[Layer], feed: Feed, wanted: int, memory_limit: int) -> int:
    """Samples that a step can take at once."""
    shapes = program.shapes({name: jnp.asarray(array) for name, array in feed.items()})
    sizes = {name: s.size * s.dtype.itemsize for name, s in shapes.items()}
    kept = sum(sizes[name] for name in program.crossing({layer.name for layer in layers}) if name in sizes)
    samples = max((len(a) for a in feed.values() if np.ndim(a)), default=1)
    each = (kept + WORKING_TENSORS * max(sizes.values(), default=0)) / samples
    return int(np.clip(memory_limit // max(each, 1), 1, wanted))


@jax.custom_jvp
def _fake_quantize(x: jax.Array, grid: jax.Array) -> jax.Array:
    """Rounded to a grid of (scale, zero point, lowest, highest integer)."""
    return (quantize(x, grid[0], grid[1], grid[2], grid[3]) - grid[1]) * grid[0]


@_fake_quantize.defjvp
def _straight_through(
    primals: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    """Rounding counts as its operand, clipping as a constant; the scale moves every step of the grid."""
    x, grid = primals
    position = x / grid[0] + grid[1]
    inside = (position >= grid[2]) & (position <= grid[3])
    steps = quantize(x, grid[0], grid[1], grid[2], grid[3]) - grid[1]
    slope = jnp.where(inside, steps - x / grid[0], steps)
    return steps * grid[0], jnp.where(inside, tangents[0], 0.0) + slope * tangents[1][0]


class Unknowns(NamedTuple):
    """What is learnt; all 0 at the start.

    Attributes:
        bias: in standard deviations of the channel's output, (channels,) by layer.
        weight: logarithm of the weight's scales relative to their start, (columns,) by layer.
        input: logarithm of the input grid's scale relative to its start, () by grid.
    """

    bias: Named
    weight: Named
    input: Named


class Constants(NamedTuple):
    """What a network is made of; an argument of every function, so that none is built into compiled code.

    Attributes:
        parameters: floating-point constants that no layer replaces.
        weights: that the integers stand for, in the stored shape, by layer.
        biases: (channels,), by layer.
        units: standard deviation of each channel of the output, (channels,), by layer.
        inputs: scale, zero point, lowest and highest integer of the grid, (4,), by grid.
        outputs: the same, by tensor that is quantised where it is made.
    """

    parameters: Named
    weights: Named
    biases: Named
    units: Named
    inputs: Named
    outputs: Named


class _Network:
    """The quantised network as a function of its unknowns."""

    def __init__(
        self,
        program: Program,
        layers: Sequence[Layer],
        solutions: Solutions,
        outputs: Mapping[str, QuantParams],
        targets: Sequence[Target],
    ) -> None:
        self._program, self._layers, self._targets, self._outputs = program, layers, targets, outputs
        self._cuts = {layer.name for layer in layers}
        made_by = {name: step.name for step in program.steps for name in step.makes}
        self._adders = {layer.name: made_by[layer.output] for layer in layers}
        weights = {layer.weight for layer in layers}
        others = [s for s in program.steps if s.name not in self._cuts]
        used = {n for s in program.steps for n in s.reads if n not in weights} | {n for s in others for n in s.reads}
        self._parameters = {n: jnp.asarray(v) for n, v in program.parameters.items() if n in used}
        self._units = {la.name: jnp.ones(la.channels) for la in layers if _has_bias(la, solutions[la.name])}
        self._grids = {
            layer.name: f"{layer.input}/{solutions[layer.name].weight.spec.bits}/{grid.spec.bits}"
            for layer in layers
            if (grid := solutions[layer.name].input) is not None and layer.input not in outputs
        }

    def measure(self, solutions: Solutions, batches: Batches) -> None:
        """Take the units from some training samples."""
        inputs, _ = batches.draw()
        found = jax.vmap(self._deviations, (None, 0)) if batches.fixed else self._deviations
        deviations: Named = jax.jit(found)(self.constants(solutions), inputs)
        self._units = {name: d.mean(axis=0) if batches.fixed else d for name, d in deviations.items()}

    def constants(self, solutions: Solutions) -> Constants:
        """The network with these solutions."""
        weights = {la.name: jnp.asarray(solutions[la.name].dequantized(la.channel_axis)) for la in self._layers}
        return Constants(
            parameters=self._parameters,
            weights=weights,
            biases={name: jnp.asarray(solutions[name].bias) for name in self._units},
            units=self._units,
            inputs={grid: _numbers(solutions[name].input) for name, grid in self._grids.items()},
            outputs={name: _numbers(grid) for name, grid in self._outputs.items()},
        )

    def start(self, solutions: Solutions) -> Unknowns:
        """The unknowns of these solutions."""
        return Unknowns(
            bias={name: jnp.zeros_like(unit) for name, unit in self._units.items()},
            weight={name: jnp.zeros(len(s.weight.scale)) for name, s in solutions.items()},
            input={grid: jnp.zeros(()) for grid in self._grids.values()},
        )

    def losses(
        self, constants: Constants, unknowns: Unknowns, inputs: Named, teachers: Sequence[jax.Array]
    ) -> jax.Array:
        """Loss of each sample, (B,)."""
        made = self._run(constants, unknowns, inputs, [t.tensor for t in self._targets])
        pairs = zip(self._targets, teachers, strict=True)
        return sum((t.loss(teacher, made[t.tensor]) for t, teacher in pairs), start=jnp.zeros(()))

    def settled(self, solutions: Solutions, unknowns: Unknowns) -> dict[str, LayerSolution]:
        """The solutions as they would be stored."""
        found = {}
        for layer in self._layers:
            solution = solutions[layer.name]
            factor = np.exp(np.asarray(unknowns.weight[layer.name]))
            weight = replace(solution.weight, scale=(solution.weight.scale * factor).astype(np.float32))
            grid, bias = solution.input, solution.bias
            if grid is not None and layer.name in self._grids:
                scale = grid.scale * np.exp(np.asarray(unknowns.input[self._grids[layer.name]]))
                grid = replace(grid, scale=np.asarray(scale, np.float32))
            if bias is not None and layer.name in unknowns.bias:
                moved = np.asarray(self._units[layer.name] * unknowns.bias[layer.name])
                bias = _storable(layer, weight, grid, bias + moved)
            found[layer.name] = replace(solution, weight=weight, input=grid, bias=bias)
        return found

    def _deviations(self, constants: Constants, inputs: Named) -> Named:
        layers = [layer for layer in self._layers if layer.name in self._units]
        made = self._run(constants, None, inputs, [layer.output for layer in layers])
        found = {}
        for layer in layers:
            values = made[layer.output]
            channels = 1 if layer.window else values.ndim - 1
            spread = jnp.std(values, axis=[a for a in range(values.ndim) if a != channels])
            found[layer.name] = jnp.maximum(spread, SMALLEST_DEVIATION * jnp.sqrt(jnp.mean(jnp.square(spread))))
        return found

    def _run(self, constants: Constants, unknowns: Unknowns | None, inputs: Named, outputs: Sequence[str]) -> Named:
        hooks = self._hooks(constants, unknowns)
        return self._program.run(constants.parameters, inputs, hooks, outputs=outputs, cuts=self._cuts)

    def _hooks(self, constants: Constants, unknowns: Unknowns | None) -> Hooks:
        reads: dict[tuple[str, str], Callable[[jax.Array], jax.Array]] = {}
        for layer in self._layers:
            weight = constants.weights[layer.name]
            if unknowns is not None:
                shape = [-1 if axis == layer.channel_axis else 1 for axis in range(weight.ndim)]
                weight = weight * jnp.exp(unknowns.weight[layer.name]).reshape(shape)
            reads[layer.weight, layer.name] = partial(_instead, weight)
            if layer.bias and layer.name in constants.biases:
                bias = constants.biases[layer.name]
                if unknowns is not None:
                    bias = bias + constants.units[layer.name] * unknowns.bias[layer.name]
                reads[layer.bias, self._adders[layer.name]] = partial(_instead, bias)
            if layer.name in self._grids:
                key = self._grids[layer.name]
                grid = constants.inputs[key]
                if unknowns is not None:
                    grid = jnp.concatenate([grid[:1] * jnp.exp(unknowns.input[key]), grid[1:]])
                reads[layer.input, layer.name] = partial(_fake_quantize, grid=grid)
        return Hooks(reads, {t: partial(_fake_quantize, grid=grid) for t, grid in constants.outputs.items()})


def _instead(value: jax.Array, _: object) -> jax.Array:
    return value


def _numbers(params: QuantParams | None) -> jax.Array:
    assert params is not None
    return jnp.asarray([params.scale, params.zero_point, params.spec.qmin, params.spec.qmax], jnp.float32)


def _storable(
    layer: Layer, weight: QuantParams, grid: QuantParams | None, bias: NDArray[np.float32]
) -> NDArray[np.float32]:
    """The bias as the runtime will add it: on its int32 grid where an integer kernel may add it."""
    if grid is None or layer.op == "MatMul" or max(weight.spec.bits, grid.spec.bits) > 8:
        return bias.astype(np.float32)
    return on_bias_grid(bias, bias_scale(grid.scale, weight.scale, layer.channels))


def _descend(
    network: _Network, start: Solutions, rates: Unknowns, batches: Batches, options: TuningOptions, tick: Tick
) -> BiasTuning:
    forward = jax.vmap(network.losses, (None, None, 0, 0)) if batches.fixed else network.losses
    adam = optax.scale_by_adam(b1=0.9, b2=0.99)

    @jax.jit
    def evaluate(constants: Constants, unknowns: Unknowns, inputs: Named, teachers: Sequence[jax.Array]) -> jax.Array:
        return forward(constants, unknowns, inputs, teachers).reshape(batches.rows, -1).mean(axis=1)

    @jax.jit
    def step(
        constants: Constants,
        unknowns: Unknowns,
        state: optax.OptState,
        decay: jax.Array,
        inputs: Named,
        teachers: Sequence[jax.Array],
    ) -> tuple[Unknowns, optax.OptState]:
        gradient = jax.grad(lambda u: forward(constants, u, inputs, teachers).mean())(unknowns)
        direction, state = adam.update(gradient, state)
        return jax.tree.map(lambda u, r, d: u - decay * r * d, unknowns, rates, direction), state

    def held_out(solutions: Solutions) -> float:
        constants, total, count = network.constants(solutions), 0.0, 0
        for inputs, teachers, valid in batches.held():
            found = np.asarray(evaluate(constants, nothing, inputs, teachers))
            total, count = total + float(found[:valid].sum()), count + valid
        return total / count

    constants, nothing = network.constants(start), network.start(start)
    unknowns, state = nothing, adam.init(nothing)
    best, before = start, held_out(start)
    least, waited, made = before, 0, 0
    finite = bool(np.isfinite(before))
    while finite and made < options.steps and waited < PATIENCE:
        for _ in range(min(-(-options.steps // CHECKS), options.steps - made)):
            decay = 0.5 * (1 + np.cos(np.pi * made / options.steps))
            unknowns, state = step(constants, unknowns, state, jnp.float32(decay), *batches.draw())
            made += 1
            tick(1)
        finite = all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(unknowns))
        found = network.settled(start, unknowns) if finite else best
        loss = held_out(found)
        finite &= bool(np.isfinite(loss))
        waited = 0 if loss < least else waited + 1
        best, least = (found, loss) if loss < least else (best, least)
    outcome = Outcome.TUNED if least < before else Outcome.NO_GAIN if finite else Outcome.DIVERGED
    return BiasTuning(best, before, least, made, outcome)
