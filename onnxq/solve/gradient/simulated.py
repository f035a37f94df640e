"""A quantized network as a differentiable function of its biases and scales.

Weights are the real numbers that their integers stand for, inputs of layers are rounded to their grids.
Rounding passes gradients straight through, clipping keeps its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from numpy.typing import NDArray

from onnxq.ir.layer import Layer
from onnxq.jax_graph.interpreter import Hooks, Program
from onnxq.jax_graph.registry import Array
from onnxq.quant.solution import LayerSolution, bias_scale, on_bias_grid
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.solve.gradient.fake_quantization import Mixing, fake_quantize, mixed, numbers
from onnxq.solve.gradient.objective import SMALLEST_POWER, Target, divergence
from onnxq.solve.gradient.samples import Batches

Named = dict[str, jax.Array]
Solutions = Mapping[str, LayerSolution]

SMALLEST_DEVIATION = 1e-3
"""A channel counts with at least this share of its layer's deviation: dead ones would have none."""


def has_bias(layer: Layer, solution: LayerSolution) -> bool:
    """Whether a bias stands in the graph that can be moved."""
    return layer.bias is not None and solution.bias is not None


class Unknowns(NamedTuple):
    """What is learnt; all 0 at the start.

    Attributes:
        bias: in standard deviations of the channel's output, (channels,) by layer.
        weight: logarithm of the weight's scales relative to their start, in the scales' shape, by layer.
        integers: in steps beside the integers of the start, in the stored shape, by layer below 8 bits.
        input: logarithm of the input grid's scale relative to its start, () by grid.
    """

    bias: Named
    weight: Named
    integers: Named
    input: Named


class Constants(NamedTuple):
    """What a network is made of; an argument of every function, so that none is built into compiled code.

    Attributes:
        parameters: floating-point constants that no layer replaces.
        teacher: those of the float network, where its features are compared.
        integers: of the weights, float32 in the stored shape, by layer.
        scales: of the weights, broadcast along their channels, by layer.
        biases: (channels,), by layer.
        units: standard deviation of each channel of the output, (channels,), by layer.
        inputs: scale, zero point, lowest and highest integer of the grid, (4,), by grid.
        outputs: the same, by tensor that is quantized where it is made.
    """

    parameters: Named
    teacher: Named
    integers: Named
    scales: Named
    biases: Named
    units: Named
    inputs: Named
    outputs: Named


class Network:
    """The quantized network as a function of its unknowns."""

    def __init__(
        self,
        program: Program,
        layers: Sequence[Layer],
        network: QuantizedNetwork,
        targets: Sequence[Target],
        features: float = 0.0,
        asks: bool = False,
    ) -> None:
        solutions, outputs = network.layers, network.outputs
        self._program, self._layers, self._targets, self._outputs = program, layers, targets, outputs
        self._features = features
        self._teacher = {n: jnp.asarray(v) for n, v in program.parameters.items()} if features or asks else {}
        self._bounds = {la.name: _bounds(solutions[la.name]) for la in layers}
        self._cuts = {layer.name for layer in layers}
        made_by = {name: step.name for step in program.steps for name in step.makes}
        self._adders = {layer.name: made_by[layer.output] for layer in layers}
        weights = {layer.weight for layer in layers}
        others = [s for s in program.steps if s.name not in self._cuts]
        used = {n for s in program.steps for n in s.reads if n not in weights} | {n for s in others for n in s.reads}
        known = {**program.parameters, **{t.constant: t.dequantized() for t in network.tables.values()}}
        self._parameters = {n: jnp.asarray(known[n]) for n in program.parameters if n in used}
        self._units = {la.name: jnp.ones(la.channels) for la in layers if has_bias(la, solutions[la.name])}
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
        return Constants(
            parameters=self._parameters,
            teacher=self._teacher,
            integers={la.name: jnp.asarray(solutions[la.name].integers, jnp.float32) for la in self._layers},
            scales={la.name: _along(la, jnp.asarray(solutions[la.name].weight.scale)) for la in self._layers},
            biases={name: jnp.asarray(solutions[name].bias) for name in self._units},
            units=self._units,
            inputs={grid: numbers(solutions[name].input) for name, grid in self._grids.items()},
            outputs={name: numbers(grid) for name, grid in self._outputs.items()},
        )

    def start(self, solutions: Solutions) -> Unknowns:
        """The unknowns of these solutions."""
        return Unknowns(
            bias={name: jnp.zeros_like(unit) for name, unit in self._units.items()},
            weight={name: jnp.zeros(s.weight.scale.shape) for name, s in solutions.items()},
            integers={n: jnp.zeros(s.integers.shape) for n, s in solutions.items() if s.weight.spec.bits < 8},
            input={grid: jnp.zeros(()) for grid in self._grids.values()},
        )

    def judged(
        self,
        constants: Constants,
        unknowns: Unknowns,
        inputs: Named,
        teachers: Sequence[jax.Array] | None,
        mixing: Mixing | None = None,
    ) -> tuple[jax.Array, jax.Array]:
        """Loss of each sample, and divergence of its class scores where there are any, (B,) each."""
        names = [layer.activated for layer in self._layers] if self._features else []
        ends = [t.tensor for t in self._targets]
        made = self._run(constants, unknowns, inputs, [*ends, *names], mixing)
        exact: Named = {}
        asked = [*(ends if teachers is None else []), *names]
        if asked:
            exact = _traced(self._program.run(constants.teacher, inputs, outputs=asked))
        if teachers is None:
            teachers = [exact[name] for name in ends]
        pairs = list(zip(self._targets, teachers, strict=True))
        losses = [t.loss(teacher, made[t.tensor]) for t, teacher in pairs]
        samples = min(len(part) for part in losses)
        loss = sum((_each(part, samples) for part in losses), start=jnp.zeros(()))
        apart = [_each(divergence(teacher, made[t.tensor]), samples) for t, teacher in pairs if t.scores]
        apart_sum = sum(apart, start=jnp.zeros_like(loss))
        if not names:
            return loss, apart_sum
        errors = sum(_each(_error(exact[name], made[name]), samples) for name in names)
        return loss + self._features / len(names) * errors, apart_sum

    def settled(self, solutions: Solutions, unknowns: Unknowns) -> dict[str, LayerSolution]:
        """The solutions as they would be stored."""
        found = {}
        for layer in self._layers:
            solution = solutions[layer.name]
            factor = np.exp(np.asarray(unknowns.weight[layer.name]))
            weight = replace(solution.weight, scale=(solution.weight.scale * factor).astype(np.float32))
            integers = solution.integers
            if layer.name in unknowns.integers:
                moved = np.rint(integers + np.asarray(unknowns.integers[layer.name]))
                integers = moved.clip(*self._bounds[layer.name]).astype(np.int16)
            grid, bias = solution.input, solution.bias
            if grid is not None and layer.name in self._grids:
                scale = grid.scale * np.exp(np.asarray(unknowns.input[self._grids[layer.name]]))
                grid = replace(grid, scale=np.asarray(scale, np.float32))
            if bias is not None and layer.name in unknowns.bias:
                shift = np.asarray(self._units[layer.name] * unknowns.bias[layer.name])
                bias = _storable(layer, replace(solution, weight=weight, input=grid), bias + shift)
            found[layer.name] = replace(solution, integers=integers, weight=weight, input=grid, bias=bias)
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

    def _run(
        self,
        constants: Constants,
        unknowns: Unknowns | None,
        inputs: Named,
        outputs: Sequence[str],
        mixing: Mixing | None = None,
    ) -> Named:
        hooks = self._hooks(constants, unknowns, mixing)
        return _traced(self._program.run(constants.parameters, inputs, hooks, outputs=outputs, cuts=self._cuts))

    def _hooks(self, constants: Constants, unknowns: Unknowns | None, mixing: Mixing | None) -> Hooks:
        reads: dict[tuple[str, str], Callable[[Any], jax.Array]] = {}
        for index, layer in enumerate(self._layers):
            weight = constants.integers[layer.name]
            if unknowns is not None and layer.name in unknowns.integers:
                moved = jnp.clip(weight + unknowns.integers[layer.name], *self._bounds[layer.name])
                weight = moved + lax.stop_gradient(jnp.round(moved) - moved)
            weight = weight * constants.scales[layer.name]
            if unknowns is not None:
                weight = weight * jnp.exp(_along(layer, unknowns.weight[layer.name]))
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
                reads[layer.input, layer.name] = partial(mixed, grid=grid, mixing=mixing, place=index)
        return Hooks(reads, {t: partial(fake_quantize, grid=grid) for t, grid in constants.outputs.items()})


def _traced(values: Mapping[str, Array]) -> Named:
    """Values as JAX arrays, those among them that are known while tracing."""
    return {name: jnp.asarray(value) for name, value in values.items()}


def _along(layer: Layer, columns: jax.Array) -> jax.Array:
    """One number a channel, or a block of inputs of a channel, in a shape that multiplies the stored weight."""
    if columns.ndim == 2:
        inputs = 1 - layer.channel_axis
        return jnp.repeat(columns, layer.weight_shape[inputs] // columns.shape[inputs], axis=inputs)
    return columns.reshape([-1 if axis == layer.channel_axis else 1 for axis in range(len(layer.weight_shape))])


def _bounds(solution: LayerSolution) -> tuple[int, int]:
    return solution.weight.spec.qmin, solution.weight.spec.qmax


def _error(wanted: jax.Array, made: jax.Array) -> jax.Array:
    """Squared error of each sample relative to its power, (B,)."""
    axes = tuple(range(1, wanted.ndim))
    power = jnp.maximum(jnp.square(wanted).mean(axis=axes), SMALLEST_POWER)
    return jnp.square(made - wanted).mean(axis=axes) / power


def _each(rows: jax.Array, samples: int) -> jax.Array:
    """Means of samples, (B,), of losses of rows: a sample's rows lie together, or else all samples share one mean."""
    if len(rows) % samples:
        return jnp.full(samples, rows.mean())
    return rows.reshape(samples, -1).mean(axis=1)


def _instead(value: jax.Array, _: object) -> jax.Array:
    return value


def _storable(layer: Layer, solution: LayerSolution, bias: NDArray[np.float32]) -> NDArray[np.float32]:
    """A bias as the runtime will add it: on its int32 grid where an integer kernel may add it."""
    weight, grid = solution.weight, solution.input
    integer = grid is not None and layer.adds_integer_bias(weight.spec.bits, grid.spec.bits)
    if grid is None or not integer or not solution.int32_bias:
        return bias.astype(np.float32)
    return on_bias_grid(bias, bias_scale(grid.scale, weight.scale, layer.channels))
