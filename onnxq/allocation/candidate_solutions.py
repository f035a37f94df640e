"""A layer solved at each of its candidates, on the same rows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from onnxq.calibration.observer import Observation
from onnxq.config import FLOAT_BITS, Config
from onnxq.config.bit_widths import Candidate
from onnxq.ir.layer import Layer
from onnxq.ir.model import Model
from onnxq.plan.make_plan import block_of
from onnxq.quant.scale_search import activation_params
from onnxq.quant.solution import LayerSolution
from onnxq.quant.spec import activation_spec
from onnxq.runtime.blas_threads import threads_for
from onnxq.solve.closed_form.initial_solution import fitted_input
from onnxq.solve.closed_form.normal_equations import lay_groundwork
from onnxq.solve.layer import LayerTask, make_problem, solve_layer


def solve_candidates(
    model: Model, layer: Layer, candidates: Sequence[Candidate], seen: Observation, config: Config, *, alone: bool
) -> dict[Candidate, LayerSolution]:
    """The solutions of a layer by candidate; candidates with the same activations share what the rows give.

    Args:
        model: prepared.
        layer: which.
        candidates: all but float.
        seen: what its stage showed.
        config: how.
        alone: nothing else reads its input, whose grid may be fitted.
    """
    rows, histogram = seen.rows[layer.name], seen.histograms[layer.input]
    weight = model.constant(layer.weight)
    bias = model.constant(layer.bias) if layer.bias else None
    posed = partial(make_problem, layer, weight, bias, rows=rows, tails=histogram.tails)
    task = partial(LayerTask, target=config.rules, bounded=config.bounded_influence)
    found: dict[Candidate, LayerSolution] = {}
    for bits in dict.fromkeys(c.activations for c in candidates):
        grid = None
        if bits != FLOAT_BITS:
            grid = activation_params(histogram, activation_spec(bits, symmetric=config.rules.symmetric))
        shared = posed(task=task(FLOAT_BITS, fit_input=alone), grid=grid)
        with threads_for(shared.weight.shape[1]):
            shared = fitted_input(shared)
            ground = lay_groundwork(shared) if config.second_order else None
        for candidate in (c for c in candidates if c.activations == bits):
            asked = task(candidate.weights, block_of(layer, candidate, config))
            problem = posed(task=asked, grid=shared.input)
            found[candidate] = solve_layer(layer, problem, config, config.seed, ground)
    return {c: found[c] for c in candidates}
