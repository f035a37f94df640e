from __future__ import annotations

import numpy as np
import onnx
import pytest
from scipy.special import log_softmax
from small_models import SAME, build, conv_constants, images, relu_chain, weight
from tiny_model import tiny_images, tiny_model

from onnxq.allocation.choices import Choices, find_agreements, make_choices
from onnxq.allocation.output_loss import OutputLoss
from onnxq.allocation.problem import Agreement
from onnxq.allocation.sensitivity import How, Reference, measure_sensitivities
from onnxq.config import Config
from onnxq.config.bit_widths import FLOAT, Candidate, parse_candidates
from onnxq.emit.qdq import emit
from onnxq.ir.layer import find_layers
from onnxq.ir.load import load
from onnxq.ir.model import Model
from onnxq.ir.save import to_proto
from onnxq.passes.prepare import prepare
from onnxq.plan.make_plan import make_plan
from onnxq.progress import silent
from onnxq.quant.solution import LayerSolution
from onnxq.runtime.quantized_network import QuantizedNetwork
from onnxq.runtime.session import Session
from onnxq.runtime.staged_network import Chain
from onnxq.solve.checkpoint import Checkpoint
from onnxq.solve.network import solve_network

pytestmark = pytest.mark.slow

PARALLEL = Config(mode="parallel", edge_bits="same", weights=4, container="int4")
CANDIDATES = parse_candidates("w2a8,w4a4,w4a32,float")
"""None of them has an integer kernel, beside which an output would be quantized too."""


def prepared(proto: onnx.ModelProto) -> Model:
    return prepare(load(proto, minimum_opset=21))


def everywhere(model: Model, candidate: Candidate) -> dict[str, Candidate]:
    return dict.fromkeys((layer.name for layer in find_layers(model)[0]), candidate)


def solved(model: Model, feed: dict[str, np.ndarray], choice: dict[str, Candidate]) -> QuantizedNetwork:
    plan = make_plan(model, PARALLEL, choice)
    return solve_network(model, plan, PARALLEL, [feed], Checkpoint(None, "", resume=False), silent)


def outputs_with(
    model: Model, choice: dict[str, Candidate], solutions: dict[str, LayerSolution], feed: dict[str, np.ndarray]
) -> list[np.ndarray]:
    """What onnxruntime makes of the whole emitted network."""
    plan = make_plan(model, PARALLEL, choice)
    proto = emit(model, plan, QuantizedNetwork(solutions), PARALLEL)
    return [np.asarray(v, np.float64) for v in Session(proto, "the whole").run(feed).values()]


def kl(exact: np.ndarray, found: np.ndarray) -> np.ndarray:
    p, q = log_softmax(exact, axis=-1), log_softmax(found, axis=-1)
    return (np.exp(p) * (p - q)).sum(axis=-1)


@pytest.mark.parametrize("others", [0, 24])
def test_every_entry_is_that_of_running_the_whole_network_with_one_layer_quantised(others: int) -> None:
    model, feed = prepared(tiny_model()), {"image": tiny_images(48)}
    choices = make_choices(model, CANDIDATES, PARALLEL)
    judged = {"image": tiny_images(48 + others)[48:]} if others else feed
    table = measure_sensitivities(model, choices, [feed], PARALLEL, judged=[judged] if others else ())
    (exact,) = Session(to_proto(model), "float").run(judged).values()
    assert (table.metric, table.samples, table.reference_loss) == ("kl", others or 48, 0.0)
    for j, candidate in enumerate(choices.candidates):
        if candidate == FLOAT:
            assert [row[j] for row in table.loss] == [0.0] * 3
            continue
        network = solved(model, feed, everywhere(model, candidate))
        for i, layer in enumerate(choices.layers):
            choice = everywhere(model, FLOAT) | {layer.name: candidate}
            (found,) = outputs_with(model, choice, dict(network.layers), judged)
            each = kl(np.asarray(exact, np.float64), found)
            # onnxruntime fuses the whole and its parts differently, which moves the last bits of float32.
            assert table.loss[i][j] == pytest.approx(each.mean(), rel=2e-3, abs=1e-9)
            assert table.error[i][j] == pytest.approx(each.std(ddof=1) / np.sqrt(len(each)), rel=2e-3, abs=1e-9)


def test_around_a_quantised_network_an_entry_is_the_difference_from_it_and_may_be_negative() -> None:
    model, feed = prepared(tiny_model()), {"image": tiny_images(48)}
    bits = everywhere(model, Candidate(2, 4))
    network = solved(model, feed, bits)
    choices = make_choices(model, (Candidate(2, 4), FLOAT), PARALLEL)
    table = measure_sensitivities(
        model, choices, [feed], PARALLEL, reference=Reference(bits, QuantizedNetwork(network.layers))
    )
    exact = np.asarray(next(iter(Session(to_proto(model), "float").run(feed).values())), np.float64)
    base = kl(exact, outputs_with(model, bits, dict(network.layers), feed)[0])
    assert table.reference_loss == pytest.approx(base.mean(), rel=1e-4)
    column = choices.candidates.index(FLOAT)
    for i, layer in enumerate(choices.layers):
        changed = kl(exact, outputs_with(model, bits | {layer.name: FLOAT}, dict(network.layers), feed)[0])
        assert table.loss[i][column] == pytest.approx((changed - base).mean(), rel=2e-3, abs=1e-7)
    assert min(row[column] for row in table.loss) < 0
    assert table.predicted(bits)[0] == pytest.approx(
        base.mean() + sum(row[choices.candidates.index(Candidate(2, 4))] for row in table.loss)
    )


def test_cutting_the_samples_into_batches_changes_nothing_but_the_rows_drawn() -> None:
    model, x = prepared(tiny_model()), tiny_images(32)
    choices = make_choices(model, (Candidate(8, 32), FLOAT), PARALLEL)
    whole = measure_sensitivities(model, choices, [{"image": x}], PARALLEL)
    parts = measure_sensitivities(model, choices, [{"image": x[:20]}, {"image": x[20:]}], PARALLEL)
    assert parts.samples == whole.samples == 32
    assert parts.reference == whole.reference == {}


def test_only_what_follows_the_changed_layer_runs_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepared(relu_chain())
    starts: list[int] = []
    whole = Chain.run

    def listening(self: Chain, arrays: dict[str, np.ndarray], start: int) -> dict[str, np.ndarray]:
        starts.append(start)
        return whole(self, arrays, start)

    monkeypatch.setattr(Chain, "run", listening)
    choices = make_choices(model, parse_candidates("w2a8,w4a8"), PARALLEL)
    measure_sensitivities(model, choices, [{"x": images()}], PARALLEL)
    assert starts == [0, 0, 2, 2, 3, 3, 4, 4]  # twice the float network; then two candidates of each of three stages


def test_scaled_entries_run_one_candidate_a_layer_and_follow_the_errors_of_its_output(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, feed = prepared(tiny_model()), {"image": tiny_images(64)}
    choices = make_choices(model, parse_candidates("w2a8,w3a8,w4a8"), PARALLEL)
    full = np.array(measure_sensitivities(model, choices, [feed], PARALLEL).loss)
    scaled = measure_sensitivities(model, choices, [feed], PARALLEL, how=How(method="scaled"))
    found = np.array(scaled.loss)
    assert scaled.method == "scaled"
    assert (np.isclose(found, full, rtol=1e-9).sum(axis=1) == 1).all()  # the one that was run
    assert (np.diff(found, axis=1) < 0).all()
    assert np.abs(np.log2(found / full)).max() < 2  # within a factor of four on a net of random weights


def test_outputs_that_are_no_class_scores_are_compared_by_squared_error() -> None:
    model, feed = prepared(relu_chain()), {"x": images(40)}
    choices = make_choices(model, (Candidate(3, 32),), PARALLEL)
    table = measure_sensitivities(model, choices, [feed], PARALLEL)
    network = solved(model, feed, everywhere(model, Candidate(3, 32)))
    (exact,) = Session(to_proto(model), "float").run(feed).values()
    assert table.metric == "mse"
    for i, layer in enumerate(choices.layers):
        choice = everywhere(model, FLOAT) | {layer.name: Candidate(3, 32)}
        (found,) = outputs_with(model, choice, dict(network.layers), feed)
        wanted = np.square(found - exact).mean() / np.asarray(exact, np.float64).var()
        assert table.loss[i][0] == pytest.approx(wanted, rel=1e-3)


def test_probabilities_are_compared_as_they_are_and_scores_through_a_softmax() -> None:
    rng = np.random.default_rng(0)
    scores, other = rng.normal(size=(5, 4)), rng.normal(size=(5, 4))
    shares = [np.exp(log_softmax(s, axis=-1)) for s in (scores, other)]
    of_scores = OutputLoss([{"y": scores}]).of(0, {"y": other})
    of_shares = OutputLoss([{"y": shares[0]}]).of(0, {"y": shares[1]})
    np.testing.assert_allclose(of_scores, kl(scores, other), rtol=1e-12)
    np.testing.assert_allclose(of_shares, of_scores, rtol=1e-9)
    both = OutputLoss([{"y": scores, "z": scores, "count": np.arange(5)}])
    np.testing.assert_allclose(both.of(0, {"y": other, "z": other, "count": np.zeros(5)}), 2 * of_scores, rtol=1e-12)
    assert OutputLoss([{"y": scores[:, :1]}]).metric == "mse"
    assert OutputLoss([{"y": scores}], "mse").metric == "mse"


def test_first_and_last_layers_take_candidates_raised_to_the_edge_bits() -> None:
    model = prepared(relu_chain())
    choices = make_choices(model, parse_candidates("w2a4,w4a8,float"), Config())
    names = [layer.name for layer in choices.layers]
    assert choices.edges == (names[0], names[2])
    assert choices.of(names[0]) == choices.of(names[2]) == [FLOAT, Candidate(8, 8)]
    assert choices.of(names[1]) == [Candidate(2, 4), Candidate(4, 8), FLOAT]
    free = make_choices(model, parse_candidates("w2a4,w4a8"), Config(edge_bits="same"))
    assert free.open.all()
    table = measure_sensitivities(model, choices, [{"x": images()}], PARALLEL)
    np.testing.assert_array_equal(np.isfinite(np.array(table.loss)), choices.open)


def test_readers_of_one_tensor_inputs_of_a_concat_and_owners_of_one_weight_must_agree() -> None:
    text = f"""(float[N,3,8,8] x) => (float[N,8,8,8] y) {{
        c0 = Conv{SAME}(x, w0, b0) c1 = Conv{SAME}(c0, w1, b1) c2 = Conv{SAME}(c0, w2, b2)
        d = Concat<axis=1>(c1, c2) e = Conv{SAME}(c1, w1, b1) f = Conv<kernel_shape=[1,1]>(d, w4) y = Add(e, f) }}"""
    model = prepared(build(text, **conv_constants(), w4=weight(9, 8, 16, 1, 1)))
    layers, _ = find_layers(model)
    found = set(find_agreements(model, layers))
    assert Agreement(("c1", "c2"), weights=False) in found  # both read c0
    assert Agreement(("e", "f"), weights=False) in found  # f reads the Concat of what e reads
    assert Agreement(("c1", "e"), weights=True) in found
    assert len(found) == 3


def test_choices_know_their_layers() -> None:
    model = prepared(relu_chain())
    layers, _ = find_layers(model)
    open_ = np.array([[True, False], [False, True], [True, True]])
    choices = Choices(layers, (FLOAT, Candidate(4, 8)), open_)
    assert [choices.of(layer.name) for layer in layers] == [[FLOAT], [Candidate(4, 8)], [FLOAT, Candidate(4, 8)]]
