from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from onnx import helper, numpy_helper, parser
from small_models import normal

from onnxq.ir.layer import Layer, find_layers
from onnxq.ir.linear_form import (
    draw_positions,
    input_rows,
    multiplied_in_pairs,
    output_rows,
    scales_are_shared,
    stored_weight,
    weight_matrix,
)
from onnxq.ir.load import load
from onnxq.quant.saturation import without_saturation
from onnxq.verify.session import start_session


@dataclass(frozen=True)
class Case:
    """A layer: operator, shapes of input and stored weight, and attributes."""

    op: str
    x: tuple[int, ...]
    w: tuple[int, ...]
    attributes: dict[str, object]

    def __str__(self) -> str:
        return f"{self.op} {self.x} {self.w} {self.attributes}"


CASES = [
    Case("Conv", (2, 4, 9), (6, 4, 3), {"pads": [1, 1]}),
    Case("Conv", (2, 4, 11), (6, 2, 4), {"group": 2, "strides": [3], "dilations": [2], "pads": [2, 5]}),
    Case("Conv", (3, 4, 9, 8), (6, 4, 1, 1), {}),
    Case(
        "Conv", (2, 4, 9, 8), (6, 2, 3, 2), {"group": 2, "strides": [2, 1], "pads": [1, 0, 2, 1], "dilations": [1, 2]}
    ),
    Case("Conv", (2, 6, 7, 7), (6, 1, 3, 3), {"group": 6, "pads": [1, 1, 1, 1]}),
    Case("Conv", (2, 3, 5, 5), (12, 1, 3, 3), {"group": 3}),
    Case("Conv", (2, 4, 5, 5, 5), (4, 1, 3, 3, 3), {"group": 4, "pads": [1] * 6}),
    Case("Conv", (1, 2, 6, 5, 4), (3, 2, 2, 3, 1), {"strides": [2, 1, 3], "pads": [0, 1, 0, 1, 2, 0]}),
    Case("Conv", (1, 2, 3, 3), (5, 2, 3, 3), {}),
    Case("Conv", (2, 2, 2, 2), (3, 2, 3, 3), {"pads": [3, 3, 3, 3]}),
    Case("ConvTranspose", (2, 4, 9), (4, 3, 3), {"strides": [2], "dilations": [2]}),
    Case("ConvTranspose", (2, 4, 5, 6), (4, 3, 2, 2), {"strides": [2, 2]}),
    Case("ConvTranspose", (2, 4, 5, 6), (4, 1, 2, 2), {"strides": [3, 3], "group": 4}),
    Case(
        "ConvTranspose",
        (2, 4, 9, 8),
        (4, 3, 3, 2),
        {"group": 2, "strides": [2, 3], "pads": [1, 0, 1, 1], "output_padding": [1, 2]},
    ),
    Case("ConvTranspose", (1, 2, 3, 4, 2), (2, 3, 3, 2, 2), {"strides": [2, 1, 2], "pads": [1, 0, 0, 0, 1, 1]}),
    Case("Gemm", (7, 5), (6, 5), {"transB": 1}),
    Case("Gemm", (7, 5), (5, 6), {}),
    Case("MatMul", (7, 5), (5, 6), {}),
    Case("MatMul", (2, 3, 7, 5), (5, 6), {}),
]


def prepared(case: Case) -> tuple[Layer, np.ndarray, np.ndarray, np.ndarray]:
    """The layer, its weight, its input, and the output that onnxruntime makes of it."""
    x, w = normal(0, *case.x), normal(1, *case.w)
    node = helper.make_node(case.op, ["x", "w"], ["y"], "layer", **case.attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", 1, case.x)],
        [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(w, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    (layer,), remarks = find_layers(load(model))
    assert not remarks
    (y,) = start_session(model.SerializeToString(), "disable").run(None, {"x": x})
    return layer, w, x, y


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rows_times_the_weight_matrix_are_the_outputs_of_onnxruntime(case: Case) -> None:
    layer, w, x, y = prepared(case)
    before = x.copy()
    positions = draw_positions(layer, y.shape, 10**6, np.random.default_rng(0))
    rows, wanted = input_rows(layer, x, positions), output_rows(layer, y, positions)
    made = np.matmul(rows, weight_matrix(layer, w))
    assert made.shape == wanted.shape
    assert made.size == y.size  # every position was taken, and once
    np.testing.assert_allclose(made, wanted, atol=2e-5)  # float32 sums of up to 54 terms of size 1 to 10
    np.testing.assert_array_equal(x, before)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_weight_matrix_can_be_stored_back(case: Case) -> None:
    layer, w, _, _ = prepared(case)
    matrix = weight_matrix(layer, w)
    np.testing.assert_array_equal(stored_weight(layer, matrix), w)
    assert stored_weight(layer, matrix.astype(np.int16)).dtype == np.int16


@pytest.mark.parametrize("case", CASES, ids=str)
def test_output_channels_come_in_the_order_of_the_scales(case: Case) -> None:
    """Scales, one a column of the matrix group by group, mean the same along the stored channel axis."""
    layer, w, _, y = prepared(case)
    matrix = weight_matrix(layer, w)
    groups, _, columns = matrix.shape
    shared = scales_are_shared(layer)
    scale = np.arange(1, columns + 1) if shared else np.arange(1, groups * columns + 1)
    by_column = matrix * (np.tile(scale, (groups, 1)) if shared else scale.reshape(groups, columns))[:, None]
    shape = [-1 if i == layer.channel_axis else 1 for i in range(w.ndim)]
    np.testing.assert_array_equal(stored_weight(layer, by_column), w * scale.reshape(shape))
    assert layer.channels == groups * columns == y.shape[1 if layer.window else -1]


@pytest.mark.parametrize("case", CASES[3:5] + CASES[-3:], ids=str)
def test_some_positions_are_different_ordered_and_drawn_by_the_seed(case: Case) -> None:
    layer, _, _, y = prepared(case)
    total = y.size // layer.channels
    count = total // 2

    def draw(seed: int) -> np.ndarray:
        positions = draw_positions(layer, y.shape, count, np.random.default_rng(seed))
        return np.column_stack([positions.sample, positions.place])

    first = draw(0)
    assert len(np.unique(first, axis=0)) == len(first) == count
    assert (np.diff(first[:, 0]) >= 0).all()
    np.testing.assert_array_equal(first, draw(0))
    assert (first != draw(1)).any()


def test_rows_of_some_positions_are_those_among_all() -> None:
    layer, _, x, y = prepared(CASES[3])
    everything = draw_positions(layer, y.shape, 10**6, np.random.default_rng(0))
    some = draw_positions(layer, y.shape, 20, np.random.default_rng(0))
    place = np.ravel_multi_index((some.sample, *some.place.T), (y.shape[0], *y.shape[2:]))
    np.testing.assert_array_equal(input_rows(layer, x, some), input_rows(layer, x, everything)[:, place])
    np.testing.assert_array_equal(output_rows(layer, y, some), output_rows(layer, y, everything)[:, place])


def test_padding_reads_zero_even_where_the_input_is_not_finite() -> None:
    layer, _, x, y = prepared(CASES[9])
    x[:, :, 0, 0] = np.inf
    positions = draw_positions(layer, y.shape, 10**6, np.random.default_rng(0))
    rows = input_rows(layer, x, positions)
    corner = (positions.place == 0).all(axis=1)  # reads nothing but padding
    assert not rows[:, corner].any()


def through_integer_kernel(w: np.ndarray, x: np.ndarray, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Unoptimised and optimized answers of a quantized convolution of integers, in steps of 2,000."""
    model = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["": 13]> g (float[N,C,H,W] x) => (float[N,D,H,W] y)
        <float one = {{1}}, uint8 z = {{0}}, float step = {{2000}}, uint8 middle = {{128}}, int8 i = {{0}}> {{
        q = QuantizeLinear(x, one, z) d = DequantizeLinear(q, one, z) v = DequantizeLinear(w, one, i)
        c = Conv<group={group}>(d, v) p = QuantizeLinear(c, step, middle) y = DequantizeLinear(p, step, middle) }}"""
    )
    model.graph.initializer.append(numpy_helper.from_array(w.astype(np.int8), "w"))
    proto = model.SerializeToString()
    plain, fast = (start_session(proto, level).run(None, {"x": x})[0] for level in ("disable", "all"))
    return plain / 2000, fast / 2000


@pytest.mark.parametrize(
    ("shape", "group"),
    [
        ((8, 3, 3, 3), 1),
        ((16, 16, 1, 1), 1),
        ((17, 33, 1, 1), 1),
        ((64, 32, 3, 3), 1),
        ((7, 5, 3, 3), 1),
        ((20, 6, 3, 3), 2),
        ((48, 8, 5, 1), 3),
        ((12, 1, 3, 3), 12),
        ((24, 1, 3, 3), 12),
    ],
)
def test_weights_without_saturating_pairs_are_computed_exactly(shape: tuple[int, ...], group: int) -> None:
    rng = np.random.default_rng(0)
    stored = np.rint(rng.standard_t(3, shape) * 60).clip(-127, 127).astype(np.float32)
    channels = shape[1] * group
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node("Conv", ["x", "w"], ["y"], group=group)],
            "g",
            [helper.make_tensor_value_info("x", 1, (1, channels, 8, 8))],
            [helper.make_tensor_value_info("y", 1, None)],
            [numpy_helper.from_array(stored, "w")],
        ),
        opset_imports=[helper.make_opsetid("", 13)],
        ir_version=8,
    )
    (layer,), _ = find_layers(load(model))
    pairs = multiplied_in_pairs(layer)
    assert (pairs is None) == (shape[1] == 1 and shape[0] == group)
    if pairs is not None:
        exact = without_saturation(weight_matrix(layer, stored), pairs)
        stored = stored_weight(layer, exact).astype(np.float32)
    x = rng.choice(np.array([0, 3, 250, 255], np.float32), (1, channels, 8, 8), p=[0.2, 0.1, 0.2, 0.5])
    plain, fast = through_integer_kernel(stored, x, group)
    assert np.abs(plain - fast).max() <= 1  # the tie of one rounding; a single saturated pair is worth up to 16
