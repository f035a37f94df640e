"""Matrices with a scale for each block of inputs, and the grids, plans and files that hold them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from small_models import build, normal, weight

from onnxq.api import quantize
from onnxq.calibration.layer_rows import Rows
from onnxq.config import Config
from onnxq.ir.load import load
from onnxq.passes.prepare import prepare
from onnxq.plan.make_plan import make_plan
from onnxq.quant.solution import LayerSolution
from onnxq.quant.spec import weight_spec
from onnxq.solve.checkpoint import Checkpoint
from onnxq.solve.closed_form.blocked import block_scales, refitted_scales, solve_blocked, spread
from onnxq.solve.closed_form.moments import factorize
from onnxq.solve.closed_form.rounding import Target, gptq_round
from onnxq.solve.layer import LayerTask, make_problem
from onnxq.verify import audit_bits, verify

SPEC = weight_spec(4)


def hessian(seed: int, size: int) -> np.ndarray:
    x = normal(seed, 4 * size, size) @ normal(seed + 1, size, size)
    return (x.T @ x / len(x) + 0.1 * np.eye(size)).astype(np.float64)


def error(h: np.ndarray, gap: np.ndarray) -> float:
    return float(np.einsum("kn,kl,ln->", gap, h, gap))


def solved(
    inputs: int = 64, block: int | None = 16, *, second_order: bool = True, uneven: float = 1.0
) -> LayerSolution:
    w = weight(0, inputs, 24) * np.where(np.arange(inputs) < 8, uneven, 1)[:, None]
    model = prepare(load(build("(float[a, 5, k] x) => (float y) { y = MatMul(x, w) }", w=w.astype(np.float32))))
    layer = make_plan(model, Config(weights=4, activations=32)).layers[0].layer
    x = (normal(1, 1, 600, inputs) @ normal(2, inputs, inputs)).astype(np.float32)
    y = np.matmul(x, model.constant("w"))
    rows = Rows(x, x, y, np.arange(600) < 500, np.arange(600))
    problem = make_problem(layer, model.constant("w"), None, LayerTask(4, block), None, rows)
    return solve_blocked(layer, problem, second_order=second_order)


def test_error_propagation_beats_nearest_rounding() -> None:
    solution = solved()
    assert solution.loss < 0.6 * solution.loss_nearest
    assert solved(second_order=False).loss == solution.loss_nearest


def test_smaller_blocks_mean_less_error() -> None:
    losses = [solved(block=block, second_order=False, uneven=6.0).loss for block in (64, 32, 16)]
    assert losses == sorted(losses, reverse=True)


def test_solution_has_one_scale_a_block_and_stays_on_its_grid() -> None:
    solution = solved()
    assert solution.weight.scale.shape == (4, 24)
    assert solution.integers.min() >= SPEC.qmin and solution.integers.max() <= SPEC.qmax
    wanted = solution.integers * spread(solution.weight.scale, 64)
    np.testing.assert_array_equal(solution.dequantized(1), wanted)
    turned = dataclasses.replace(
        solution,
        integers=solution.integers.T,
        weight=dataclasses.replace(solution.weight, scale=solution.weight.scale.T),
    )
    np.testing.assert_array_equal(turned.dequantized(0), wanted.T)


def test_block_scales_are_those_of_each_block_alone() -> None:
    w = normal(3, 32, 5)
    together = block_scales(w, 8, SPEC)
    for b in range(4):
        np.testing.assert_array_equal(together[b], block_scales(w[8 * b : 8 * b + 8], 8, SPEC)[0])


def test_refitted_scales_lose_less_and_a_single_block_is_exact() -> None:
    h, target = hessian(4, 32), normal(6, 32, 7).astype(np.float64)
    for block in (8, 32):
        scale = block_scales(target.astype(np.float32), block, SPEC)
        integers = (target / spread(scale, 32)).round().clip(-8, 7).astype(np.float32)
        fitted = refitted_scales(h, target, integers, scale)
        before, after = (error(h, target - integers * spread(s, 32)) for s in (scale, fitted))
        assert after < before
    best = np.einsum("kn,kl,ln->n", integers, h, target) / np.einsum("kn,kl,ln->n", integers, h, integers)
    np.testing.assert_allclose(fitted[0], best, rtol=1e-5)


def test_propagation_with_equal_steps_is_the_one_with_a_scale_a_channel() -> None:
    h, target = hessian(8, 20)[None], normal(9, 1, 20, 6).astype(np.float64)
    scale = np.float32(0.25) * 2.0 ** np.arange(-3, 3, dtype=np.float32)[None]  # powers of two: units change nothing
    asked = Target(h.astype(np.float32), factorize(h), target)
    plain = gptq_round(asked, scale, SPEC)
    wide = gptq_round(asked, np.broadcast_to(scale[:, None], target.shape), SPEC)
    np.testing.assert_array_equal(plain, wide)


@pytest.mark.parametrize(
    ("inputs", "config", "block"),
    [
        (64, Config(weights=4, activations=32, edge_bits="same"), 32),
        (64, Config(weights=4, activations=32, edge_bits="same", block=128), 64),
        (48, Config(weights=4, activations=32, edge_bits="same", block=32), 16),
        (40, Config(weights=4, activations=32, edge_bits="same"), None),
        (64, Config(weights=4, activations=32), None),  # an edge layer of 8 bits
        (64, Config(weights=4, activations=8, edge_bits="same"), None),
        (64, Config(weights=4, activations=32, edge_bits="same", block=None), None),
    ],
)
def test_plan_chooses_blocks_that_divide_the_inputs(inputs: int, config: Config, block: int | None) -> None:
    model = prepare(load(build("(float[a, 5, k] x) => (float y) { y = MatMul(x, w) }", w=weight(0, inputs, 8))))
    assert make_plan(model, config).layers[0].block == block


@pytest.mark.parametrize("transposed", [0, 1])
def test_blocked_gemm_keeps_its_answers_at_every_level(transposed: int) -> None:
    w = weight(0, 32, 64) if transposed else weight(0, 64, 32)
    model = build(
        f"(float[a, 64] x) => (float[a, n] y) {{ y = Gemm<transB={transposed}>(x, w, b) }}", w=w, b=normal(1, 32)
    )
    result = quantize(model, {"x": normal(2, 200, 64)}, Config(weights=4, activations=32, edge_bits="same"))
    report = verify(model, result.model, [{"x": normal(3, 50, 64)}])
    assert all(check.ok for check in report.loads)
    assert report.kernels["MatMulNBits"] == 1
    assert max(check.relative_diff or 0.0 for check in report.loads) < 0.01  # its input is taken at 8 bits inside
    assert report.outputs[0].sqnr_db > 17
    assert audit_bits(result.model)[0].weight_bits == 4


def test_checkpoint_keeps_blocked_solutions(tmp_path: Path) -> None:
    solution = solved()
    Checkpoint(tmp_path, "mark", resume=False).save(solution)
    found = Checkpoint(tmp_path, "mark", resume=True).load(solution.layer)
    assert found is not None
    np.testing.assert_array_equal(found.weight.scale, solution.weight.scale)
    assert found.weight.spec == solution.weight.spec
