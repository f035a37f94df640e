"""Tables: which are found, how they are solved, and how few bits they take in the file."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from onnx.reference import ReferenceEvaluator
from small_models import build, normal

from onnxq.emit.tables import emit_tables, stored_codes
from onnxq.ir.load import load
from onnxq.ir.table import Table, find_tables
from onnxq.quant.spec import weight_spec
from onnxq.quant.table import TableSolution
from onnxq.solve.closed_form.embedding import solve_table

LEVELS = ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL")


def lookup(values: np.ndarray, rank: int = 2) -> onnx.ModelProto:
    axes = ", ".join("abc"[:rank])
    return build(f"(int64[{axes}] ids) => (float[{axes}, d] y) {{ y = Gather(table, ids) }}", opset=21, table=values)


def emitted(model: onnx.ModelProto, solution: TableSolution, rank: int = 2) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.CopyFrom(model)
    rows, columns = solution.integers.shape
    emit_tables(proto, [Table("y", "table", "ids", "y", (rows, columns), rank)], {"y": solution})
    kept = [t for t in proto.graph.initializer if t.name != "table"]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    return proto


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("columns", "blocked"), [(64, True), (64, False), (48, True), (16, True)])
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_emitted_table_gives_the_solved_rows_at_every_level(bits: int, columns: int, blocked: bool, rank: int) -> None:
    values = normal(0, 50, columns)
    solution = solve_table("y", values, bits, blocked=blocked)
    model = emitted(lookup(values, rank), solution, rank)
    ids = np.random.default_rng(1).integers(0, 50, (2, 3, 4)[:rank])
    wanted = solution.dequantized()[ids]
    (by_reference,) = ReferenceEvaluator(model).run(None, {"ids": ids})
    np.testing.assert_allclose(by_reference, wanted, rtol=1e-6)  # two products in float32, in either order
    for level in LEVELS:
        options = ort.SessionOptions()
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        np.testing.assert_allclose(session.run(None, {"ids": ids})[0], wanted, rtol=1e-6)


@pytest.mark.parametrize(("bits", "bytes_each"), [(4, 0.5 + 2 / 32), (8, 1 + 2 / 384)])
def test_table_takes_its_bits_and_little_more(bits: int, bytes_each: float) -> None:
    values = normal(0, 2000, 384)
    model = emitted(lookup(values), solve_table("y", values, bits, blocked=True))
    assert model.ByteSize() / values.size == pytest.approx(bytes_each, rel=0.01)  # a kilobyte of nodes beside it


def test_half_bytes_hold_both_codes() -> None:
    solution = solve_table("y", normal(3, 7, 64), 4, blocked=True)
    codes = stored_codes(solution)
    assert codes.shape == (7, 2, 16)
    unpacked = np.concatenate([codes & 15, codes >> 4], axis=-1).reshape(7, 64).astype(int) - 8
    np.testing.assert_array_equal(unpacked, solution.integers)


def test_more_scales_and_more_bits_mean_less_error() -> None:
    values = normal(4, 200, 64) * np.repeat([1, 4], 32)
    solutions = [(4, False), (4, True), (8, False)]
    errors = [np.square(solve_table("y", values, b, blocked=k).dequantized() - values).mean() for b, k in solutions]
    assert all(later < 0.7 * earlier for earlier, later in pairwise(errors))


@settings(max_examples=30)
@given(arrays(np.float32, (3, 32), elements=st.floats(-1e6, 1e6, width=32)), st.sampled_from([4, 8]))
def test_searched_scales_are_at_least_as_good_as_the_full_range(values: np.ndarray, bits: int) -> None:
    spec = weight_spec(bits)
    reach = np.maximum(values.max(axis=1) / spec.qmax, values.min(axis=1) / spec.qmin).astype(float)
    full = np.maximum(reach, 1e-30)[:, None]
    plain = np.sqrt(np.square((values / full).round() * full - values).sum(axis=1))
    solved = solve_table("y", values, bits, blocked=True).dequantized().astype(float)
    found = np.sqrt(np.square(solved - values).sum(axis=1))
    # A half float of a row's scale is off by 1/2048 at most, and it is 6e-5 of the largest scale at least.
    slack = np.sqrt(values.shape[1]) * -spec.qmin * (reach / 2048 + 6.2e-5 * reach.max())
    assert (found <= plain + slack + 1e-30).all()


def test_a_table_of_zeros_stays_zero() -> None:
    solution = solve_table("y", np.zeros((4, 32), np.float32), 4, blocked=True)
    assert not solution.dequantized().any()


def test_two_lookups_share_one_stored_table() -> None:
    values = normal(0, 500, 64)
    model = build(
        "(int64[a] i, int64[a] j) => (float[a, d] y, float[a, d] z) { y = Gather(table, i)  z = Gather(table, j) }",
        table=values,
    )
    solution = solve_table("y", values, 8, blocked=True)
    tables = find_tables(load(model))
    assert [t.name for t in tables] == ["y", "z"]
    emit_tables(model, tables, {"y": solution, "z": solution})
    assert sum(list(t.dims[:1]) == [500] for t in model.graph.initializer if t.data_type == onnx.TensorProto.UINT8) == 1


def test_only_rows_of_float_tables_are_found() -> None:
    model = build(
        """(int64[a] i, float[a, 32] x) => (float y, float z, float u, int64 v) {
            y = Gather(table, i)  z = Gather<axis=1>(table, i)  u = Gather(x, i)  v = Gather(numbers, i) }""",
        table=normal(0, 40, 32),
        numbers=np.arange(64).reshape(2, 32),
    )
    assert [t.name for t in find_tables(load(model))] == ["y"]
