"""Quantized models adapted to samples of another kind, judged by onnxruntime on samples that nothing was made from."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from adapted_models import decibels, require_same_integers
from small_models import build, images, normal, relu_chain, weight, with_outputs
from small_transformer import encoder, sentences
from tiny_model import tiny_images, tiny_model

import onnxq
from onnxq.adaptation import reranging
from onnxq.adaptation.reranging import NoRoomError, on_grid
from onnxq.ir.layer import Layer, find_layers
from onnxq.ir.load import load
from onnxq.passes.prepare import prepare
from onnxq.quant.solution import INT32_ROOM, LayerSolution
from onnxq.quant.spec import QuantParams, activation_spec, weight_spec
from onnxq.verify import verify
from onnxq.verify.session import start_session

pytestmark = pytest.mark.slow


def bright(count: int, seed: int) -> np.ndarray:
    return 2 * images(count, seed)


@pytest.mark.parametrize(("weights", "activations", "gain"), [(8, 8, 10), (4, 8, 4), (4, 4, 2)])
def test_a_network_for_images_twice_as_bright_gains_and_keeps_every_integer(
    weights: Any, activations: Any, gain: float
) -> None:
    model, config = relu_chain(), onnxq.Config(weights=weights, activations=activations)
    plain = onnxq.quantize(model, images(128), config)
    made = onnxq.quantize(model, images(128), config, adapt=bright(32, 60))
    onnx.checker.check_model(made.model, full_check=True)
    require_same_integers(plain.model, made.model)
    unseen = bright(32, 70)
    assert decibels(model, made.model, unseen) > decibels(model, plain.model, unseen) + gain
    stage = made.report.stages[-1]
    assert stage.stage == "adapt" and "28 samples" in stage.did  # one of eight is held back
    assert stage.before is not None and stage.after is not None
    # The samples held back and the unseen ones are few, of one kind.
    assert -10 * np.log10(stage.after) == pytest.approx(decibels(model, made.model, unseen), abs=2)
    assert -10 * np.log10(stage.before) == pytest.approx(decibels(model, plain.model, unseen), abs=2)
    assert made.report.missed == () and made.report.ok
    assert (made.report.adapted, made.report.judged, made.report.judged_by) == (32, 4, "hold-out")
    told = made.report.simulated_sqnr_db["y"]
    assert told is not None and told == pytest.approx(decibels(model, made.model, bright(32, 60)[:4]), abs=0.2)


def test_means_and_deviations_behind_a_layer_are_those_of_the_float_network_on_the_new_samples() -> None:
    model, fresh = relu_chain(), bright(8, 60)
    config = onnxq.Config(weights=3, activations=8, edge_bits="same", equalise=False, second_order=False)
    fitted = {"x": fresh[1:]}  # the first is held back
    (exact,) = start_session(with_outputs(model, "c1").SerializeToString(), "disable").run(["c1"], fitted)

    def gaps(made: onnx.ModelProto) -> tuple[float, float]:
        session = start_session(with_outputs(made, "c1").SerializeToString(), "disable")
        (found,) = session.run(["c1"], fitted)
        a, b = ([f(v, axis=(0, 2, 3)) for f in (np.mean, np.std)] for v in (exact, found))
        return float(np.abs(a[0] - b[0]).max()), float(np.abs(a[1] / b[1] - 1).max())

    plain = gaps(onnxq.quantize(model, images(128), config).model)
    made = gaps(onnxq.quantize(model, images(128), config, adapt=fresh).model)
    # Half a step of the int32 bias and the float32 scales remain.
    assert made[0] < 2e-3 < 0.02 < plain[0]
    assert made[1] < 2e-3 < 0.02 < plain[1]


def test_a_model_that_has_nothing_to_gain_stays_as_it_was() -> None:
    model = build("(float[N, 64] x) => (float[N, 8] y) { a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) }", opset=21,
                  w=weight(0, 64, 64), v=weight(1, 64, 8))  # fmt: skip
    x = normal(2, 128, 64)
    config = onnxq.Config(weights=4, activations=32, edge_bits="same")  # scales of blocks, inputs in float
    plain, made = onnxq.quantize(model, x, config), onnxq.quantize(model, x, config, adapt=3 * x)
    assert made.model == plain.model
    stage = made.report.stages[-1]
    assert "left as it was" in stage.did and stage.before == stage.after
    assert made.report.simulated_sqnr_db == plain.report.simulated_sqnr_db


def test_ranges_that_lose_more_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def narrowed(layer: Layer, solution: LayerSolution, grid: QuantParams) -> LayerSolution:
        return on_grid(
            layer, solution, QuantParams(grid.spec, np.asarray(grid.scale / np.float32(50)), grid.zero_point)
        )

    plain = onnxq.quantize(relu_chain(), images(128))
    monkeypatch.setattr(reranging, "on_grid", narrowed)
    made = onnxq.quantize(relu_chain(), images(128), adapt=images(32, 60))
    assert made.model == plain.model
    stage = made.report.stages[-1]
    assert "left as it was" in stage.did
    assert stage.before is not None and stage.after is not None and stage.after > stage.before


@pytest.mark.parametrize("target", ["tensorrt", "qnn", "openvino", "generic"])
def test_integers_are_kept_on_every_target(target: Any) -> None:
    model, config = tiny_model(), onnxq.Config(target=target)
    plain = onnxq.quantize(model, tiny_images(128), config)
    made = onnxq.quantize(model, tiny_images(128), config, adapt=2 * tiny_images(32, 7))
    require_same_integers(plain.model, made.model)
    unseen = 2 * tiny_images(32, 8)
    assert decibels(model, made.model, unseen) > decibels(model, plain.model, unseen) + 6


def test_products_and_tables_of_a_transformer_are_adapted_alike() -> None:
    model = encoder()
    few, other = sentences(128), sentences(32, seed=5)
    # Of a narrow vocabulary: its ranges are not those of all words.
    (words,) = [n for n in few if few[n].ndim == 2 and few[n].max() > 2]
    few = {**few, words: few[words] % 3}
    plain = onnxq.quantize(model, few)
    made = onnxq.quantize(model, few, adapt=other)
    require_same_integers(plain.model, made.model)
    unseen = sentences(24, seed=9)
    before, after = (verify(model, m, [unseen], latency=False) for m in (plain.model, made.model))
    assert after.ok and after.outputs[0].sqnr_db is not None and before.outputs[0].sqnr_db is not None
    assert after.outputs[0].sqnr_db > before.outputs[0].sqnr_db


def test_one_sample_cannot_tell_of_others_and_changes_nothing() -> None:
    plain, made = (onnxq.quantize(tiny_model(), tiny_images(128), adapt=a) for a in (None, 2 * tiny_images(1, 7)))
    assert "left as it was: one sample" in made.report.stages[-1].did
    assert made.model.SerializeToString(deterministic=True) == plain.model.SerializeToString(deterministic=True)


@pytest.mark.parametrize("kind", ["few", "batches", "fixed"])
def test_a_few_samples_batches_and_fixed_sizes_do(kind: str) -> None:
    model = tiny_model(batch="8") if kind == "fixed" else tiny_model()
    fresh = 2 * tiny_images(20, 7)
    data: Any = {"few": fresh[:4], "batches": ({"image": fresh[i : i + 3]} for i in range(0, 20, 3)), "fixed": fresh}
    made = onnxq.quantize(model, tiny_images(128), adapt=data[kind])
    taken = {"few": "from 3 samples", "batches": "18 samples", "fixed": "8 samples"}
    assert taken[kind] in made.report.stages[-1].did
    assert decibels(model, made.model, 2 * tiny_images(8, 8)) > 25


def test_the_same_samples_give_the_same_bytes_however_they_come() -> None:
    fresh = 2 * tiny_images(40, 7)
    whole = onnxq.quantize(tiny_model(), tiny_images(128), adapt=fresh).model
    cut = onnxq.quantize(tiny_model(), tiny_images(128), adapt=[fresh[:7], fresh[7:]]).model
    assert whole.SerializeToString(deterministic=True) == cut.SerializeToString(deterministic=True)


def of_two_channels(bias: float, *, shared: bool = False) -> tuple[Layer, LayerSolution]:
    text = "(float[N, 1, 4, 4] x) => (float[N, 2, 4, 4] y) { y = Conv(x, w, b) }"
    (layer,), _ = find_layers(prepare(load(build(text, w=weight(0, 2, 1, 1, 1), b=normal(1, 2)))))
    scale = np.array([0.01] if shared else [0.01, 1e-9], np.float32)
    solution = LayerSolution(
        layer="y",
        integers=np.array([3, 1], np.int16).reshape(2, 1, 1, 1),
        weight=QuantParams(weight_spec(8), scale),
        bias=np.array([0.5, bias], np.float32),
        input=QuantParams(activation_spec(8), np.float32(0.1)),
        loss_nearest=0.0,
        loss=0.0,
        status="",
        seconds=0.0,
    )
    return layer, solution


def test_a_bias_that_would_overflow_beside_a_finer_grid_widens_the_scale_of_its_channel_alone() -> None:
    layer, solution = of_two_channels(bias=1e-1)
    grid = QuantParams(activation_spec(8), np.float32(0.02))
    found = on_grid(layer, solution, grid)
    assert found.bias is not None and solution.bias is not None and found.input is grid
    np.testing.assert_array_equal(found.integers, solution.integers)
    assert found.weight.scale[0] == solution.weight.scale[0] and found.weight.scale[1] > solution.weight.scale[1]
    steps = found.bias / (np.float32(0.02) * found.weight.scale)
    assert (np.abs(steps) <= INT32_ROOM * (1 + 1e-6)).all()
    np.testing.assert_allclose(steps, np.rint(steps), rtol=1e-6)
    np.testing.assert_allclose(found.bias, solution.bias, atol=0.5 * 0.02 * 0.01)


def test_one_scale_for_all_channels_does_not_give_way_to_a_bias(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, solution = of_two_channels(bias=1e7, shared=True)
    with pytest.raises(NoRoomError):
        on_grid(layer, solution, QuantParams(activation_spec(8), np.float32(0.02)))

    def crowded(*_: Any) -> LayerSolution:
        raise NoRoomError

    plain = onnxq.quantize(tiny_model(), tiny_images(128))
    monkeypatch.setattr(reranging, "on_grid", crowded)
    made = onnxq.quantize(tiny_model(), tiny_images(128), adapt=2 * tiny_images(32, 7))
    assert made.model == plain.model
    assert "no room" in made.report.stages[-1].did and made.report.stages[-1].change == "not judged"


def test_a_network_that_gives_out_classes_alone_is_judged_by_them() -> None:
    model = build(
        "(float[N, 3, 8, 8] x) => (int64[N] y) { a = Conv(x, w) b = Relu(a) c = Conv(b, v) d = Flatten(c)"
        " y = ArgMax<axis = 1, keepdims = 0>(d) }",
        w=weight(0, 8, 3, 3, 3),
        v=weight(1, 4, 8, 3, 3),
    )
    made = onnxq.quantize(model, images(128), onnxq.Config(activations=4), adapt=6 * images(64, 60))
    stage = made.report.stages[-1]
    assert "every integer kept" in stage.did
    assert stage.before is not None and stage.after is not None and stage.before > stage.after
    x = 6 * images(64, 70)
    wanted, found = (
        start_session(m.SerializeToString(), "disable").run(None, {"x": x})[0] for m in (model, made.model)
    )
    assert (wanted == found).mean() > 0.8
