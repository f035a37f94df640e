from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_models import normal

from onnxq.config.optimization import Refinement
from onnxq.quant.spec import QuantParams, activation_spec, weight_spec
from onnxq.solve.closed_form.initial_solution import round_to_nearest, scored
from onnxq.solve.gradient.adaquant import _descend, predict, refine, straight_through
from onnxq.solve.gradient.adaquant_parameters import Unknowns, initial, make_setting
from onnxq.solve.problem import LayerProblem, Solution, Status

pytestmark = pytest.mark.slow

QUICK = Refinement(steps=48, rows=64)
ROWS, INPUTS, CHANNELS = 160, 9, 4


def problem(groups: int = 1, **changes: object) -> LayerProblem:
    """A layer behind a ReLU and before one; every test shares the shapes, and with them one compilation."""
    x = np.abs(normal(0, groups, ROWS, INPUTS))
    w, b = normal(1, groups, INPUTS, CHANNELS), normal(2, groups, CHANNELS)
    fields: dict[str, object] = {
        "x": x,
        "x_float": x,
        "y": np.matmul(x, w) + b[:, None],
        "train": np.arange(ROWS) % 8 != 7,
        "influence": np.ones(ROWS, np.float32),
        "weight": w,
        "bias": b,
        "low": 0.0,
        "high": float("inf"),
        "weight_spec": weight_spec(2),
        "input": QuantParams(activation_spec(4), np.float32(0.18)),
        "shared_scales": False,
        "fit_input": True,
        "fit_bias": True,
    }
    return LayerProblem(**{**fields, **changes})  # type: ignore[arg-type]


def same(a: Solution, b: Solution) -> bool:
    assert a.input is not None and b.input is not None
    parts = ((a.integers, b.integers), (a.scale, b.scale), (a.bias, b.bias), (a.input.scale, b.input.scale))
    return all(np.array_equal(one, other) for one, other in parts) and a.input.zero_point == b.input.zero_point


def test_a_straight_through_value_is_exact_with_the_gradient_of_the_smooth_one() -> None:
    x = jnp.linspace(-2, 2, 17)
    np.testing.assert_allclose(straight_through(jnp.round(3 * x), jnp.sin(x)), np.round(3 * x), atol=1e-6)
    through = jax.grad(lambda v: straight_through(jnp.round(3 * v), jnp.sin(v)).sum())(x)
    smooth = jax.grad(lambda v: jnp.sin(v).sum())(x)
    np.testing.assert_array_equal(through, smooth)


@pytest.mark.parametrize("changes", [{}, {"input": None}, {"low": -float("inf")}, {"high": 1.0}])
def test_the_prediction_before_any_step_is_the_starting_solution(changes: dict[str, object]) -> None:
    p = problem(**changes)
    start = round_to_nearest(p)
    made = predict(initial(p, start), make_setting(p, start, QUICK), jnp.asarray(p.x[:, p.held]), None, None)
    wanted = p.y[:, p.held].clip(p.low, p.high)
    power = np.square(p.y.clip(p.low, p.high)).mean()
    assert float(np.square(np.asarray(made) - wanted).mean() / power) == pytest.approx(start.loss, rel=1e-4)


def test_gradients_of_scale_and_bias_are_the_differences_of_the_loss() -> None:
    """Integers stay as they are under both, so the derivative exists and can be measured."""
    p = problem()
    start = round_to_nearest(p)
    setting, at = make_setting(p, start, QUICK), initial(p, start)

    @jax.jit
    def loss(unknowns: Unknowns) -> jax.Array:
        return jnp.square(predict(unknowns, setting, jnp.asarray(p.x), None, None) - jnp.clip(p.y, 0)).mean()

    gradient, step = jax.grad(loss)(at), 1e-2
    for name in ("log_scale", "bias"):
        for channel in range(CHANNELS):
            shift = jnp.zeros((1, CHANNELS)).at[0, channel].set(step)
            ends = [loss(at._replace(**{name: getattr(at, name) + sign * shift})) for sign in (1, -1)]
            measured = float(ends[0] - ends[1]) / (2 * step)
            # Central differences err by the square of the step, and by the ReLUs that it switches.
            np.testing.assert_allclose(getattr(gradient, name)[0, channel], measured, rtol=0.05, atol=2e-3)


def test_weights_pass_gradients_straight_through_inside_their_grid_and_none_outside() -> None:
    p = problem(input=None, low=-float("inf"))
    start = round_to_nearest(p)
    setting, at = make_setting(p, start, QUICK), initial(p, start)
    at = at._replace(weight=at.weight.at[0, 0].set(5.0).at[0, 1].set(-7.0).at[0, 2].set(0.3))
    gradient = jax.grad(lambda u: predict(u, setting, jnp.asarray(p.x), None, None).sum())(at).weight
    inside = (np.asarray(at.weight) > -2) & (np.asarray(at.weight) < 1)
    assert inside[0, 2:].any() and not inside[0, :2].any()
    expected = np.where(inside, p.x.sum(axis=1)[:, :, None] * start.scale[:, None], 0)  # d(s · Σ x u) / du
    np.testing.assert_allclose(gradient, expected, rtol=1e-4)


def test_refinement_lowers_the_loss_of_a_coarse_start_well() -> None:
    p = problem()
    start = round_to_nearest(p)
    found = refine(p, start, replace(QUICK, weight_rate=0.05), 0)
    assert found.status is Status.REFINED
    assert found.loss < 0.7 * start.loss
    assert found.loss == scored(p, found).loss
    np.testing.assert_array_equal(found.integers, np.round(found.integers).clip(-2, 1))
    assert found.input is not None and found.input.zero_point == 0  # behind a ReLU it stays


@pytest.mark.parametrize("rates", [{}, {"weight_rate": 1.0, "scale_rate": 1.0, "bias_rate": 1.0}, {"mixing": 0.5}])
@pytest.mark.parametrize("bits", [2, 8])
def test_a_refined_layer_is_never_worse_than_its_start(bits: int, rates: dict[str, float]) -> None:
    p = problem(weight_spec=weight_spec(bits), input=QuantParams(activation_spec(bits), np.float32(3 / 2**bits)))
    start = round_to_nearest(p)
    found = refine(p, start, replace(QUICK, **rates), 0)  # type: ignore[arg-type]
    assert found.loss <= start.loss


def test_nothing_to_learn_gives_the_start_back() -> None:
    p = problem(fit_bias=False, fit_input=False)
    start = round_to_nearest(p)
    assert refine(p, start, replace(QUICK, learn_weights=False, learn_scales=False), 0) is start


def test_what_may_not_be_fitted_is_left_as_it_is() -> None:
    p = problem(fit_bias=False, fit_input=False)
    start = round_to_nearest(p)
    found = refine(p, start, QUICK, 0)
    assert found.loss < start.loss
    np.testing.assert_array_equal(found.bias, start.bias)
    assert found.input == start.input


def test_rows_that_are_not_finite_fall_back_to_the_start() -> None:
    x = problem().x.copy()
    x[0, 3, 2] = np.nan  # a row that is fitted
    p = problem(x=x)
    start = round_to_nearest(p)
    found = refine(p, start, QUICK, 0)
    assert found.status is Status.FALLEN_BACK and same(found, start) and found.loss == start.loss


def test_the_same_seed_gives_the_same_solution_and_another_seed_another() -> None:
    p = problem()
    start = round_to_nearest(p)
    first, again, other = (refine(p, start, replace(QUICK, mixing=0.5), seed) for seed in (3, 3, 4))
    assert same(first, again)
    assert not same(first, other)


def test_groups_that_share_scales_still_share_them() -> None:
    p = problem(groups=2, shared_scales=True)
    start = round_to_nearest(p)
    found = refine(p, start, QUICK, 0)
    assert found.loss < start.loss
    np.testing.assert_array_equal(found.scale[0], found.scale[1])


def test_one_compilation_serves_every_width_range_and_rate() -> None:
    refine(problem(), round_to_nearest(problem()), QUICK, 0)
    compiled = _descend._cache_size()
    for bits in (3, 4, 8):
        p = problem(weight_spec=weight_spec(bits), high=6.0, input=QuantParams(activation_spec(bits), np.float32(0.1)))
        refine(p, round_to_nearest(p), replace(QUICK, scale_rate=0.001), bits)
    assert _descend._cache_size() == compiled


def test_one_scale_for_all_channels_and_a_grid_around_zero_stay_so_when_they_are_refined() -> None:
    spec = activation_spec(4, symmetric=True)
    p = problem(one_scale=True, input=QuantParams(spec, np.float32(0.35)), weight_spec=weight_spec(2))
    start = round_to_nearest(p)
    assert len(np.unique(start.scale)) == 1
    refined = refine(p, start, QUICK, 0)
    assert refined.status is Status.REFINED
    assert refined.loss < start.loss
    assert len(np.unique(refined.scale)) == 1
    assert refined.scale[0, 0] != start.scale[0, 0]
    assert refined.input is not None
    assert refined.input.zero_point == 0
    assert refined.input.spec is spec
