"""Biases and scales tuned through a whole quantized network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx.reference import ReferenceEvaluator
from scipy.special import rel_entr, softmax
from small_models import build, conv_constants, normal, weight, with_outputs

from onnxq.api import quantize
from onnxq.config import Config
from onnxq.config.optimization import Refinement, Tuning
from onnxq.emit.qdq import emit
from onnxq.ir.layer import find_layers
from onnxq.ir.load import load
from onnxq.ir.model import Model
from onnxq.ir.save import to_proto
from onnxq.jax_graph.interpreter import read_program
from onnxq.passes.prepare import prepare
from onnxq.plan.inspection import pass_work
from onnxq.plan.make_plan import make_plan
from onnxq.plan.values import Plan
from onnxq.progress import silent
from onnxq.quant.solution import bias_scale
from onnxq.report.run import RunReport
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.solve.checkpoint import Checkpoint
from onnxq.solve.gradient.circumstances import Circumstances
from onnxq.solve.gradient.fake_quantization import fake_quantize
from onnxq.solve.gradient.objective import Objective, divergence, find_targets
from onnxq.solve.gradient.samples import HOLD_OUT, Batches
from onnxq.solve.gradient.training_loop import in_errors
from onnxq.solve.gradient.tuning import Outcome, TuningResult, tune_network
from onnxq.solve.gradient.work_budget import find_effort
from onnxq.solve.network import solve_network
from onnxq.solve.network_tuning import affordable
from onnxq.solve.problem import Status
from onnxq.verify.session import start_session

pytestmark = pytest.mark.slow

PLAIN = Tuning(rows=32, features=1.0, mixtures=0, mirrored=0, shift=0)
"""Samples as they are, so that what the hold-out loses can be computed otherwise."""

FAST = replace(PLAIN, steps=48, rate=0.01, weight_rate=0.002, input_rate=0.002, integer_rate=0, features=0)

Feeds = list[dict[str, np.ndarray]]


@dataclass(frozen=True)
class Solved:
    """A network solved by closed forms, ready to be tuned."""

    model: Model
    proto: onnx.ModelProto
    plan: Plan
    config: Config
    network: QuantizedNetwork
    feeds: Feeds

    def tune(self, options: Tuning = FAST, solutions: dict[str, Any] | None = None, **changes: object) -> TuningResult:
        return tune_network(
            self.proto,
            [p.layer for p in self.plan.layers],
            replace(self.network, layers=solutions or self.network.layers),
            self.feeds,
            options,
            Circumstances(**changes),  # type: ignore[arg-type]
        )

    def outputs(self, layers: object) -> np.ndarray:
        """What onnxruntime makes of the first feeds' samples with the emitted model."""
        proto = emit(self.model, self.plan, replace(self.network, layers=layers), self.config)  # type: ignore[arg-type]
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return np.concatenate([session.run(None, feed)[0] for feed in self.feeds])


def classifier(end: str = "y = Gemm(f, v, c)", shape: str = "[N,10]") -> onnx.ModelProto:
    """Two convolutions, one of them with a residual connection, pooled to ten class scores."""
    text = f"""(float[N,3,8,8] x) => (float{shape} y) {{
        c0 = Conv<pads=[1,1,1,1]>(x, w0, b0) a = Relu(c0) c1 = Conv<pads=[1,1,1,1]>(a, w1, b1)
        s = Add(c1, a) d = Relu(s) p = GlobalAveragePool(d) f = Flatten(p) {end} }}"""
    return build(text, v=3 * normal(7, 8, 10), c=normal(8, 10), **conv_constants())


def solved(model: onnx.ModelProto, feeds: Feeds | None = None, **options: object) -> Solved:
    feeds = feeds or [{"x": 3 * normal(20 + i, 16, 3, 8, 8)} for i in range(4)]
    config = Config(preset="light", **{"weights": 4, "activations": 4, "edge_bits": "same", **options})  # type: ignore[arg-type]
    prepared = prepare(load(model, minimum_opset=config.opset))
    plan = make_plan(prepared, config)
    network = solve_network(prepared, plan, config, feeds, Checkpoint(None, "", resume=False), silent)
    return Solved(prepared, to_proto(prepared), plan, config, network, feeds)


@pytest.fixture(scope="module")
def case() -> Solved:
    return solved(classifier(), second_order=False)  # rounded to nearest, which leaves something to gain


@pytest.fixture(scope="module")
def tuned(case: Solved) -> TuningResult:
    return case.tune()


def held_out_loss(case: Solved, layers: object, objective: str) -> float:
    """The hold-out's loss from onnxruntime's outputs and numpy alone."""
    wanted = np.concatenate([ReferenceEvaluator(case.proto).run(None, feed)[0] for feed in case.feeds]).astype(float)
    made = case.outputs(layers).astype(float)
    power, held = np.mean(wanted**2), np.arange(len(wanted)) % HOLD_OUT == HOLD_OUT - 1
    if objective == "kl":
        return float(rel_entr(softmax(wanted, axis=1), softmax(made, axis=1)).sum(axis=1)[held].mean())
    return float(np.mean((made - wanted)[held] ** 2) / power)


def moved_away(case: Solved, layer: str) -> dict[str, Any]:
    """The solutions with a bias so far off that there is something to gain beyond doubt."""
    solution = case.network.layers[layer]
    return {**case.network.layers, layer: replace(solution, bias=solution.bias + np.float32(0.5))}


def test_the_hold_out_gains(tuned: TuningResult) -> None:
    assert tuned.outcome is Outcome.TUNED
    assert tuned.loss_after < 0.95 * tuned.loss_before  # 0.85 to 0.91, by how many threads add up the products


def test_losses_are_those_of_the_emitted_model(case: Solved, tuned: TuningResult) -> None:
    # A rounding that falls the other way moves one of 4 bits; a hundredth of the loss covers a few of them.
    assert tuned.loss_before == pytest.approx(held_out_loss(case, case.network.layers, "mse"), rel=0.01)
    assert tuned.loss_after == pytest.approx(held_out_loss(case, tuned.layers, "mse"), rel=0.01)


def test_integers_alone_move_over_their_grid_and_the_hold_out_gains() -> None:
    case = solved(classifier(), weights=2, second_order=False, activations=8)
    found = case.tune(replace(PLAIN, steps=100, rate=1e-9, weight_rate=0, input_rate=0, integer_rate=0.05))
    assert found.outcome is Outcome.TUNED and found.loss_after < 0.6 * found.loss_before
    for name, solution in found.layers.items():
        assert (solution.integers != case.network.layers[name].integers).any()
        assert solution.integers.min() >= -2 and solution.integers.max() <= 1


def test_8_bit_integers_stay() -> None:
    case = solved(classifier(), weights=8)
    found = case.tune(replace(FAST, steps=12, integer_rate=0.5))
    for name, solution in case.network.layers.items():
        np.testing.assert_array_equal(found.layers[name].integers, solution.integers)


def test_features_add_the_error_of_what_every_layer_makes(case: Solved) -> None:
    layers = [p.layer for p in case.plan.layers]
    names = [layer.activated for layer in layers]
    emitted = emit(case.model, case.plan, case.network, case.config)
    held = [np.arange(16 * i, 16 * i + 16) % HOLD_OUT == HOLD_OUT - 1 for i in range(len(case.feeds))]
    errors = []
    for feed, rows in zip(case.feeds, held, strict=True):
        exact, made = (
            start_session(with_outputs(m, *names).SerializeToString(), "disable").run(names, feed)
            for m in (case.proto, emitted)
        )
        for a, b in zip(exact, made, strict=True):
            axes = tuple(range(1, a.ndim))
            errors.append((np.square(a - b).mean(axis=axes) / np.square(a).mean(axis=axes))[rows])
    found = case.tune(replace(FAST, steps=1, features=2.0))
    wanted = held_out_loss(case, case.network.layers, "mse") + 2.0 * float(np.mean(np.concatenate(errors)))
    assert found.loss_before == pytest.approx(wanted, rel=0.01)  # as above: a few roundings may fall the other way


def test_divergence_is_that_of_the_emitted_model(case: Solved) -> None:
    found = case.tune(replace(FAST, steps=16, objective="kl"))
    assert found.loss_before == pytest.approx(held_out_loss(case, case.network.layers, "kl"), rel=0.01)
    assert found.loss_after == pytest.approx(held_out_loss(case, found.layers, "kl"), rel=0.01)


def test_biases_that_were_moved_away_are_found_again(case: Solved) -> None:
    found = case.tune(replace(PLAIN, steps=128, rate=0.03, weight_rate=0, input_rate=0), moved_away(case, "c0"))
    assert found.loss_after < 0.3 * found.loss_before


def test_integers_stay_and_biases_lie_on_their_grid(case: Solved, tuned: TuningResult) -> None:
    for name, solution in tuned.layers.items():
        assert np.array_equal(solution.integers, case.network.layers[name].integers)
        steps = solution.bias / bias_scale(solution.input.scale, solution.weight.scale, len(solution.bias)).astype(
            float
        )
        np.testing.assert_allclose(steps, np.rint(steps), rtol=1e-6, atol=1e-3)  # the bias itself is rounded to float32


def test_rates_of_zero_leave_scales_alone(case: Solved) -> None:
    found = case.tune(replace(FAST, weight_rate=0.0, input_rate=0.0))
    for name, solution in found.layers.items():
        assert np.array_equal(solution.weight.scale, case.network.layers[name].weight.scale)
        assert solution.input.scale == case.network.layers[name].input.scale


def test_layers_that_share_a_grid_keep_sharing_it() -> None:
    text = """(float[N,3,8,8] x) => (float[N,10] y) {
        a = Conv<pads=[1,1,1,1]>(x, w0, b0) b = Conv<pads=[1,1,1,1]>(x, w1, b1) s = Add(a, b)
        p = GlobalAveragePool(s) f = Flatten(p) y = Gemm(f, v, c) }"""
    constants = {**conv_constants(), "w1": weight(4, 8, 3, 3, 3), "v": 3 * normal(7, 8, 10), "c": normal(8, 10)}
    case = solved(build(text, **constants))
    found = case.tune(replace(FAST, rate=0.03, input_rate=1e-4, weight_rate=0.0), moved_away(case, "a"))
    assert found.outcome is Outcome.TUNED
    assert found.layers["a"].input.scale != case.network.layers["a"].input.scale
    assert found.layers["a"].input.scale == found.layers["b"].input.scale


def test_the_same_seed_gives_the_same_biases(case: Solved, tuned: TuningResult) -> None:
    again = case.tune()
    assert all(np.array_equal(again.layers[n].bias, tuned.layers[n].bias) for n in tuned.layers)


def test_a_harmful_rate_gives_back_the_start(case: Solved) -> None:
    found = case.tune(replace(FAST, rate=1.0))
    assert found.outcome in (Outcome.NO_GAIN, Outcome.DIVERGED)
    assert found.steps < FAST.steps  # given up when that was sure
    assert found.layers == case.network.layers
    assert found.loss_after == found.loss_before


def test_a_gain_whose_class_scores_diverge_more_is_not_kept(case: Solved, monkeypatch: pytest.MonkeyPatch) -> None:
    # Brought back to where it came from, every iterate diverges less: turned round, that counts as more.
    monkeypatch.setattr("onnxq.solve.gradient.simulated.divergence", lambda wanted, made: -divergence(wanted, made))
    moved = moved_away(case, "c1")
    found = case.tune(replace(FAST, rate=0.03), moved)
    assert found.outcome is Outcome.NO_GAIN and found.layers == moved


def test_a_bias_that_is_no_number_is_reported(case: Solved) -> None:
    broken = dict(case.network.layers)
    broken["c0"] = replace(broken["c0"], bias=np.full(8, np.nan, np.float32), input=None)
    assert case.tune(solutions=broken).outcome is Outcome.DIVERGED


def test_integer_kernels_and_their_output_grids_are_tuned_through() -> None:
    case = solved(classifier(), weights=8, activations=8)
    assert case.network.outputs
    found = case.tune(replace(FAST, rate=0.001, weight_rate=0.0, input_rate=0.0))
    assert found.loss_before == pytest.approx(held_out_loss(case, case.network.layers, "mse"), rel=0.05)
    assert found.loss_after <= found.loss_before


def test_a_network_with_a_fixed_batch_is_tuned_feed_by_feed() -> None:
    model = classifier("y = Gemm(f, v, c)", "[2,10]")
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    case = solved(model, [{"x": 3 * normal(20 + i, 2, 3, 8, 8)} for i in range(24)])
    assert case.tune(replace(FAST, rate=0.03), moved_away(case, "c0"), fixed=True).outcome is Outcome.TUNED


def test_a_bias_behind_a_product_is_tuned() -> None:
    text = """(float[N,4,6] x) => (float[N,4,5] y) {
        m = MatMul(x, w) h = Add(m, b) g = Relu(h) n = MatMul(g, v) y = Add(n, c) }"""
    model = build(text, w=normal(1, 6, 8), b=normal(2, 8), v=normal(3, 8, 5), c=normal(4, 5))
    case = solved(model, [{"x": normal(20 + i, 16, 4, 6)} for i in range(4)], second_order=False)
    moved = moved_away(case, "m")
    found = case.tune(replace(FAST, rate=0.03), moved)
    assert found.outcome is Outcome.TUNED
    assert not np.array_equal(found.layers["m"].bias, moved["m"].bias)


def test_a_network_that_cannot_be_differentiated_is_left_alone_and_says_why() -> None:
    case = solved(classifier("g = Gemm(f, v, c) y = Hardmax(g)"))
    opset = max(17, case.config.opset)
    found = case.tune()
    assert found.outcome is Outcome.UNSUPPORTED
    assert found.detail == f"y (Hardmax of opset {opset})"
    assert found.layers == case.network.layers


def test_one_sample_is_too_few(case: Solved) -> None:
    assert replace(case, feeds=[{"x": normal(1, 1, 3, 8, 8)}]).tune().outcome is Outcome.TOO_FEW


def test_every_step_is_counted(case: Solved) -> None:
    ticks: list[int] = []
    found = case.tune(replace(FAST, steps=5), tick=ticks.append)
    assert sum(ticks) == found.steps == 5


def effort(case: Solved, options: Tuning = PLAIN, memory: int = 2**30) -> tuple[int, int]:
    found = find_effort(read_program(case.proto), [p.layer for p in case.plan.layers], case.feeds[0], options, memory)
    return found.rows, found.steps


def test_less_memory_means_fewer_samples_in_a_step(case: Solved) -> None:
    rows = [effort(case, memory=limit)[0] for limit in (2**30, 2**17, 1)]
    assert rows[0] == 32 > rows[1] > rows[2] == 1


WORK = (8 * 3 * 9 + 8 * 8 * 9) * 64 + 8 * 10 + 40 * (5 * 8 * 64 + 2 * 8 + 10)
"""Of a pass of the classifier: two convolutions on 8 × 8 pictures, ten class scores, and 40 for each value made (by two
convolutions, two ReLUs and a sum; pooled, flattened, scored)."""


@pytest.mark.parametrize(
    ("samples", "rows", "steps"),
    [(10**6, 32, 600), (32 * 300, 32, 300), (16 * 200, 16, 200), (8 * 100, 8, 100), (8 * 3, 8, 3)],
)
def test_work_is_kept_by_fewer_samples_a_step_and_then_by_fewer_steps(
    case: Solved, samples: int, rows: int, steps: int
) -> None:
    # The constants' sizes are the classifier's: a wrong count of its work would give other numbers of steps.
    assert effort(case, replace(PLAIN, work=(samples + 0.5) * 4 * WORK)) == (rows, steps)


def test_a_network_that_is_too_large_for_the_work_is_left_alone(case: Solved) -> None:
    found = case.tune(replace(PLAIN, work=8 * 40 * 4 * WORK))
    assert found.outcome is Outcome.TOO_LARGE and found.layers == case.network.layers


@pytest.mark.parametrize(("samples", "enough"), [(32 * 200, True), (31 * 200, False), (20 * 600, True)])
def test_a_network_is_tuned_where_enough_steps_show_enough_samples(samples: int, enough: bool) -> None:
    macs, values = 1e6, 1e5  # 5e6 multiply-adds' worth of time, four times in a step
    assert Tuning(work=4 * 5e6 * (samples + 0.5)).affords(macs, values) is enough
    assert Tuning(work=4 * 5e6 * 8.5 * 200, rows=8).affords(macs, values)  # no more is asked for


def test_changed_samples_are_judged_by_what_the_float_network_makes_of_them(case: Solved) -> None:
    # A network that equals the float one loses nothing on any sample; were the stored outputs held against changed
    # samples, it would.
    exact = solved(classifier(), weights=16, activations=32, second_order=False)
    found = exact.tune(replace(FAST, steps=1, mixtures=1.0, mirrored=1.0, shift=0.3))
    assert found.loss_before < 1e-6
    assert case.tune(replace(FAST, steps=1, mixtures=1.0)).loss_before > 1e-3


def test_changed_samples_teach_as_well(case: Solved) -> None:
    found = case.tune(replace(FAST, mixtures=0.5, mirrored=0.5, shift=0.1))
    assert found.outcome is Outcome.TUNED and found.loss_after < found.loss_before


def test_rounding_passes_gradients_and_clipping_stops_them() -> None:
    grid = jnp.asarray([0.5, 4, 0, 15])
    gradient = jax.grad(lambda x: fake_quantize(x, grid).sum())(jnp.asarray([-3.0, -1.9, 0.2, 5.4, 6.0]))
    assert gradient.tolist() == [0, 1, 1, 1, 0]


def test_the_gradient_of_the_scale_is_that_of_learned_step_sizes() -> None:
    x = np.array([-3.0, -1.9, 0.2, 5.4, 6.0], np.float32)
    gradient = jax.jacobian(lambda s: fake_quantize(jnp.asarray(x), jnp.stack([s, *map(jnp.float32, (4, 0, 15))])))
    # inside the grid ⌊x/s⌉ − x/s, outside the integer that it is clipped to less the zero point
    expected = [-4, np.rint(-3.8) + 3.8, 0 - 0.4, np.rint(10.8) - 10.8, 11]
    np.testing.assert_allclose(gradient(jnp.float32(0.5)), expected, rtol=1e-5, atol=1e-6)


def objectives(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> list[tuple[str, Objective]]:
    return [(t.tensor, t.objective) for t in find_targets(model, [feed], "mse")]


def test_scores_before_a_final_softmax_stand_for_its_output() -> None:
    model = build("(float[N,4] x) => (float[N,4] y) { s = Mul(x, x) y = Softmax(s) }")
    assert objectives(model, {"x": normal(1, 3, 4)}) == [("s", Objective.MSE)]


def test_divergence_is_for_class_scores_only() -> None:
    model = build(
        """(float[N,4] x) => (float[N,4] y, float[N,1] z, float[2,N,2] w) {
            y = Relu(x) z = ReduceMax(x, a) w = Reshape(x, s) }""",
        a=np.array([1]),
        s=np.array([2, -1, 2]),
        opset=21,
    )
    found = find_targets(model, [{"x": normal(1, 3, 4)}], "kl")
    assert [t.objective for t in found] == [Objective.KL, Objective.MSE, Objective.MSE]


def test_outputs_of_integers_are_passed_over() -> None:
    model = build(
        "(float[N,4] x) => (float[N,2,2] y, int64[N,1] i) { i = ArgMax<axis=1>(x) y = Reshape(x, s) }",
        s=np.array([-1, 2, 2]),
    )
    assert objectives(model, {"x": normal(1, 3, 4)}) == [("y", Objective.MSE)]


def batches(sizes: Sequence[int], rows: int = 4, fixed: bool = False) -> Batches:
    """Samples whose value is their number."""
    ends = np.cumsum(sizes)
    numbers = [np.arange(end - size, end, dtype=np.float32)[:, None] for size, end in zip(sizes, ends, strict=True)]
    return Batches([{"x": n} for n in numbers], [numbers], rows, fixed, 0)


@pytest.mark.parametrize(("sizes", "every"), [([40, 20, 11], 8), ([10, 10, 5], 4), ([10, 3], 2)])
def test_some_samples_are_held_out_and_never_drawn(sizes: list[int], every: int) -> None:
    samples, count = batches(sizes), sum(sizes)
    held = np.concatenate([np.asarray(inputs["x"])[:valid, 0] for inputs, _, valid in samples.held()])
    assert held.tolist() == [i for i in range(count) if i % every == every - 1]
    assert samples.held_rows == len(held)
    drawn = {float(v) for _ in range(400) for v in samples.draw()[0]["x"][:, 0]}
    assert drawn == set(range(count)) - set(held.tolist())


def test_a_gain_counts_when_it_is_larger_than_its_standard_error() -> None:
    assert in_errors(np.array([1.0, 2.0, 3.0])) == pytest.approx(2 * np.sqrt(3))
    assert in_errors(np.array([-1.0, -2.0, -3.0])) == pytest.approx(-2 * np.sqrt(3))
    assert in_errors(np.array([1.0, -1.0, 0.5])) < 0.3
    assert in_errors(np.array([5.0])) == 0  # nothing is known of its error
    assert in_errors(np.zeros(4)) == 0


def test_teachers_are_drawn_with_their_samples() -> None:
    inputs, teachers = batches([10, 10]).draw()
    assert np.array_equal(inputs["x"], teachers[0])


def test_few_samples_are_split_in_halves() -> None:
    samples = batches([3])
    assert [valid for *_, valid in samples.held()] == [1]
    assert samples.rows == 2


def test_feeds_of_another_shape_are_left_out() -> None:
    feeds = [{"x": np.zeros((4, width), np.float32)} for width in (3, 5, 3)]
    samples = Batches(feeds, [[np.zeros((4, 1), np.float32)] * 3], 4, False, 0)
    assert {samples.draw()[0]["x"].shape for _ in range(20)} == {(4, 3)}


def test_a_fixed_batch_is_drawn_whole() -> None:
    inputs, _ = batches([2] * 16, rows=3, fixed=True).draw()
    assert inputs["x"].shape == (3, 2, 1)
    assert (inputs["x"][:, 1] - inputs["x"][:, 0] == 1).all()


def quantized(**options: object) -> RunReport:
    feeds = [{"x": 3 * normal(20 + i, 16, 3, 8, 8)} for i in range(4)]
    config = Config(preset="advanced", weights=4, activations=4, edge_bits="same", **options)  # type: ignore[arg-type]
    return quantize(classifier(), feeds, config).report


def test_the_advanced_preset_tunes_and_says_what_was_lost_before_and_after() -> None:
    report = quantized(second_order=False, tuning=replace(FAST, integer_rate=0.01))
    solved, tuned = report.stages
    assert (solved.stage, tuned.stage) == ("solve", "tune")
    # Nearest rounding is what was asked for; biases go onto their grid since, which costs less than a hundredth.
    assert solved.after == pytest.approx(solved.before, rel=0.01)
    assert solved.did == "3 layers rounded to nearest at the scale of least squared error"
    assert tuned.before is not None and tuned.after is not None and tuned.after < tuned.before
    assert tuned.did == Outcome.TUNED.value


def test_a_network_too_large_to_tune_has_its_layers_refined_and_says_so() -> None:
    report = quantized(tuning=replace(PLAIN, work=8 * 40 * 4 * WORK), refinement=Refinement(steps=12))
    assert [stage.stage for stage in report.stages] == ["solve"]
    assert report.config["tune"] is False
    (told,) = (note.reason for note in report.notes if "not tuned as a whole" in note.reason)
    assert "refined one by one instead" in told
    assert Status.REFINED.value in {layer.status for layer in report.layers}


def test_layers_are_refined_only_where_the_network_is_not_tuned_unless_asked_for() -> None:
    advanced = Config(preset="advanced")
    assert advanced.tunes and not advanced.refines
    assert replace(advanced, tune=False).refines
    assert replace(advanced, refine=True).refines and replace(advanced, refine=True).tunes
    assert not replace(advanced, tune=False, refine=False).refines
    assert not Config().refines and not Config().tunes


def test_the_work_of_open_sizes_is_that_of_the_samples() -> None:
    text = "(float[N, 3, {0}, {1}] x) => (float y) {{ a = Conv<strides=[2,2]>(x, w)  b = Relu(a)  y = Conv(b, v) }}"
    weights = {"w": weight(0, 8, 3, 3, 3), "v": weight(1, 4, 8, 1, 1)}
    works = []
    for height, width in ((65, 33), ("H", "W")):
        model = prepare(load(build(text.format(height, width), **weights)))
        works.append(pass_work(model, find_layers(model)[0], {"x": np.zeros((5, 3, 65, 33), np.float32)}))
    places = 32 * 16
    assert works[0] == works[1] == (places * (8 * 27 + 4 * 8), 3 * 65 * 33 + places * (8 + 8 + 4))


@pytest.mark.parametrize(("size", "tuned"), [(9, True), (129, False)])
def test_a_network_of_open_sizes_is_refined_where_its_samples_are_too_large_to_tune(size: int, tuned: bool) -> None:
    text = "(float[N, 3, H, W] x) => (float y) { a = Conv(x, w)  b = Relu(a)  y = Conv(b, v) }"
    model = prepare(load(build(text, w=weight(0, 8, 3, 3, 3), v=weight(1, 4, 8, 1, 1))))
    config = Config(preset="advanced", tuning=Tuning(work=1e10))
    found, told = affordable(config, model, make_plan(model, config), {"x": normal(0, 2, 3, size, size)})
    assert found.tunes is tuned and found.refines is not tuned
    assert bool(told) is not tuned
