from __future__ import annotations

import gc
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import SAME, build, conv_constants, images, normal, relu_chain, with_outputs

from onnxq.api import quantize
from onnxq.calibration.calibrate import Calibration
from onnxq.calibration.hold_out import FOR_STARTS, HOLD_OUT
from onnxq.calibration.observer import Observation
from onnxq.calibration.wanted import Wanted
from onnxq.config import Config
from onnxq.errors import CalibrationError, OutputError
from onnxq.ir.layer import Layer, find_layers
from onnxq.ir.linear_form import draw_positions, input_rows, output_rows, weight_matrix
from onnxq.ir.load import load
from onnxq.ir.model import Model
from onnxq.ir.save import to_proto
from onnxq.ir.stage import Stage, split_stages
from onnxq.passes.prepare import prepare
from onnxq.quant.affine import fake_quantize
from onnxq.quant.histogram import Histogram
from onnxq.quant.spec import QuantParams, activation_spec
from onnxq.runtime.session import Session
from onnxq.runtime.spool import Spool

RESIDUAL = f"""(float[N,3,8,8] x) => (float[N,8,8,8] y) {{ c0 = Conv{SAME}(x, w0, b0) r0 = Relu(c0)
    c1 = Conv{SAME}(r0, w1, b1) s = Add(r0, c1) d = Relu(s) y = Conv{SAME}(d, w2, b2) }}"""
LARGE, SMALL = 2**26, 2**14
"""Bytes in which everything fits, and in which not even one batch does."""


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    actions=st.lists(
        st.tuples(
            st.sampled_from(["put", "drop", "keep"]), st.integers(0, 2), st.sampled_from("abc"), st.integers(0, 30)
        ),
        max_size=25,
    ),
    limit=st.integers(0, 200),
)
def test_a_spool_holds_what_a_dictionary_would_and_keeps_the_rest_on_disk(
    tmp_path: Path, actions: list[tuple[str, int, str, int]], limit: int
) -> None:
    expected: dict[tuple[int, str], np.ndarray] = {}
    with Spool(limit, tmp_path) as spool:
        for kind, batch, name, size in actions:
            if kind == "put":
                expected[batch, name] = np.arange(size, dtype=np.int32)
                spool.put(batch, {name: expected[batch, name]})
            elif kind == "drop":
                spool.drop([(batch, name)])
                expected.pop((batch, name), None)
            else:
                spool.keep_only([name])
                expected = {key: value for key, value in expected.items() if key[1] == name}
            for (b, n), value in expected.items():
                np.testing.assert_array_equal(spool.get(b, [n])[n], value)
            on_disk = [np.load(path) for path in files(tmp_path)]
            held = sum(v.nbytes for v in expected.values()) - sum(v.nbytes for v in on_disk)
            assert held <= limit and len(on_disk) <= len(expected)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int64, np.bool_, np.uint8])
def test_a_spool_gives_back_types_and_shapes_from_disk(dtype: type, tmp_path: Path) -> None:
    with Spool(0, tmp_path) as spool:
        values: list[np.ndarray] = [np.ones((2, 0, 3), dtype), np.array(1, dtype), np.ones((3, 4), dtype).T]
        for value in values:
            spool.put(0, {"t": value})
            found = spool.get(0, ["t"])["t"]
            assert (found.dtype, found.shape) == (value.dtype, value.shape)


def test_a_disk_that_takes_no_more_is_reported_with_a_way_out(tmp_path: Path) -> None:
    with Spool(0, tmp_path) as spool:
        next(tmp_path.iterdir()).rmdir()
        with pytest.raises(OutputError, match=r"cannot take the calibration tensors.*TMPDIR"):
            spool.put(0, {"t": np.ones(3)})


def opened(
    model: Model, data: np.ndarray | Iterator[dict[str, np.ndarray]], cut: int = 4, **options: object
) -> Calibration:
    feeds = [{"x": data[i : i + cut]} for i in range(0, len(data), cut)] if isinstance(data, np.ndarray) else data
    named = {"sequential": True, "float_rows": True, **options}
    wanted = {field.name: named.pop(field.name) for field in fields(Wanted) if field.name in named}
    settings = {"memory_limit": LARGE, "seed": 0, **named}
    return Calibration(model, feeds, Wanted(**wanted), **settings)  # type: ignore[arg-type]


def prepared() -> tuple[Model, tuple[Stage, ...]]:
    model = prepare(load(build(RESIDUAL, **conv_constants())))
    return model, split_stages(model, find_layers(model)[0])


def constants(model: Model, stage: Stage) -> Mapping[tuple[str, str], np.ndarray]:
    """The float values of a stage's weights and biases."""
    values = {name: np.asarray(t.values) for name, t in model.graph.tensors().items() if hasattr(t, "values")}
    return {(name, la.name): values[name] for la in stage.layers for name in (la.weight, la.bias) if name}


def walk(
    model: Model, stages: tuple[Stage, ...], calibration: Calibration, grids: Mapping[str, QuantParams] | None = None
) -> Iterator[tuple[Layer, Observation]]:
    """Observe and pass every stage with float weights; inputs quantized where a grid is given."""
    for stage in stages:
        seen = calibration.observe(stage, [], lambda _: None)
        yield from ((layer, seen) for layer in stage.layers)
        inputs = {layer.name: (grids or {}).get(layer.name) for layer in stage.layers}
        calibration.advance(stage, inputs, constants(model, stage), {}, lambda _: None)


def directly(model: Model, data: np.ndarray, layer: Layer) -> tuple[np.ndarray, np.ndarray]:
    """Input and output of a layer in the whole network."""
    names = [name for name in (layer.input, layer.output) if name not in ("x", "y")]
    found = Session(with_outputs(to_proto(model), *names), "the model").run({"x": data})
    return {"x": data, **found}[layer.input], found[layer.output]


@pytest.mark.parametrize("limit", [LARGE, SMALL])
def test_rows_and_histograms_are_those_of_the_whole_network(limit: int, tmp_path: Path) -> None:
    model, stages = prepared()
    data = images(10)
    with opened(model, data, memory_limit=limit, folder=tmp_path) as calibration:
        assert (calibration.samples, calibration.batches) == (10, 3)
        assert bool(files(tmp_path)) == (limit == SMALL)
        for layer, seen in walk(model, stages, calibration):
            rows = seen.rows[layer.name]
            x, y = directly(model, data, layer)
            if limit == LARGE:  # every position was drawn, in order, those of every fourth sample last
                places = draw_positions(layer, y.shape, 10**6, np.random.default_rng(0))
                order = np.argsort(places.sample % FOR_STARTS == FOR_STARTS - 1, kind="stable")
                np.testing.assert_allclose(rows.x, input_rows(layer, x, places)[:, order], atol=2e-5)
                np.testing.assert_allclose(rows.y, output_rows(layer, y, places)[:, order], atol=2e-5)
            made = np.matmul(rows.x_float, weight_matrix(layer, np.asarray(model.graph.tensors()[layer.weight].values)))
            bias = np.asarray(model.graph.tensors()[layer.bias].values)
            np.testing.assert_allclose(made + bias, rows.y, atol=2e-5)  # float32 sums of 72 terms
            np.testing.assert_array_equal(rows.x, rows.x_float)
            histogram = Histogram().update(x)
            np.testing.assert_allclose([seen.histograms[layer.input].high], [histogram.high], atol=2e-5)
            assert seen.histograms[layer.input].points()[1].sum() == x.size
        for batch in range(calibration.batches):
            exact, quantized = calibration.outputs(batch)
            np.testing.assert_array_equal(exact["y"], quantized["y"])
    assert not list(tmp_path.iterdir())


def test_sequential_rows_are_parallel_rows_when_nothing_is_quantised() -> None:
    model, stages = prepared()
    walks = []
    for sequential in (True, False):
        with opened(model, images(8), sequential=sequential, memory_limit=2**20) as calibration:
            walks.append([seen.rows[layer.name] for layer, seen in walk(model, stages, calibration)])
    for a, b in zip(*walks, strict=True):
        for one, other in ((a.x, b.x), (a.x_float, b.x_float), (a.y, b.y), (a.train, b.train)):
            np.testing.assert_array_equal(one, other)


def test_a_quantised_input_reaches_later_layers_in_the_sequential_network_alone() -> None:
    model, stages = prepared()
    data = images(8)
    grid = QuantParams(activation_spec(2), np.float32(0.5), 1)
    with opened(model, data) as calibration:
        seen = {layer.name: seen.rows[layer.name] for layer, seen in walk(model, stages, calibration, {"c0": grid})}
    first = find_layers(model)[0][1]
    wanted = directly(model, fake_quantize(data, grid), first)[0]
    places = draw_positions(first, (8, 8, 8, 8), 10**6, np.random.default_rng(0))
    places = places.reordered(np.argsort(places.sample % FOR_STARTS == FOR_STARTS - 1, kind="stable"))
    np.testing.assert_allclose(seen["c1"].x, input_rows(first, wanted, places), atol=2e-5)
    np.testing.assert_allclose(
        seen["c1"].x_float, input_rows(first, directly(model, data, first)[0], places), atol=2e-5
    )
    np.testing.assert_array_equal(seen["c0"].x, seen["c0"].x_float)  # before its own quantisation


@pytest.mark.parametrize(("samples", "cut"), [(40, 4), (40, 40), (20, 4), (5, 2), (3, 2), (1, 1)])
def test_samples_are_held_back_whole_and_rows_where_there_is_one_sample(samples: int, cut: int) -> None:
    model, stages = prepared()
    sample = np.repeat(np.arange(samples), 64)
    held = {
        40: sample % HOLD_OUT == HOLD_OUT - 1,  # for good
        20: sample % FOR_STARTS == FOR_STARTS - 1,  # until the starts of layers are chosen
        5: sample % FOR_STARTS == FOR_STARTS - 1,
        3: sample == 2,
        1: np.arange(64) % HOLD_OUT == HOLD_OUT - 1,
    }[samples]
    with opened(model, images(samples), cut) as calibration:
        for layer, seen in walk(model, stages, calibration):
            rows = seen.rows[layer.name]
            np.testing.assert_array_equal(
                rows.train, np.arange(len(held)) < len(held) - held.sum()
            )  # fitted come first
            np.testing.assert_array_equal(rows.units, np.concatenate([sample[~held], sample[held]]))
            counted = seen.histograms[layer.input].size / directly(model, images(1), layer)[0].size
            assert counted == (35 if samples == 40 else samples)  # ranges are of the fitted ones, or of all of a few


def test_rows_fit_their_share_of_the_memory() -> None:
    model, stages = prepared()
    with opened(model, images(64), 16, memory_limit=2**22) as calibration:
        for layer, seen in walk(model, stages, calibration):
            rows = seen.rows[layer.name]
            assert rows.x.nbytes + rows.x_float.nbytes + rows.y.nbytes <= 2**22 / 8 * 1.01
            assert rows.x.shape[1] < 64 * 64


def test_values_that_are_not_finite_are_reported_by_tensor() -> None:
    model = prepare(load(build("(float[N,4] x) => (float[N,2] y) { l = Log(x) y = Gemm(l, w) }", w=normal(0, 4, 2))))
    stages = split_stages(model, find_layers(model)[0])
    with opened(model, normal(1, 8, 4)) as calibration, pytest.raises(CalibrationError, match=r"'l'.*NaN or infinite"):
        list(walk(model, stages, calibration))


def test_samples_that_end_in_an_error_leave_nothing_behind(tmp_path: Path) -> None:
    def feeds() -> Iterator[dict[str, np.ndarray]]:
        yield {"x": images(4)}
        raise CalibrationError("no more")

    with pytest.raises(CalibrationError, match="no more"):
        opened(prepared()[0], feeds(), memory_limit=SMALL, folder=tmp_path)
    gc.collect()  # a folder that waits for the collector would warn here
    assert not list(tmp_path.iterdir())


def test_the_batches_that_samples_come_in_do_not_change_the_result() -> None:
    data = images(20)
    batches = [data[:7], data[7:8], data[8:]]
    config = Config(preset="light", weights=4, second_order=False)
    first, second = (quantize(relu_chain(), d, config).model.SerializeToString() for d in (data, batches))
    assert first == second
