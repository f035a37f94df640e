"""Every constant of a floating type above 1 KiB that is not quantized is told of, with its share of the file."""

from __future__ import annotations

import io
import re

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from rich.console import Console
from small_models import build, normal

import onnxq
from onnxq.api import inspect
from onnxq.plan.inspection import describe
from onnxq.report.text import show_run

IDS = {"ids": np.random.default_rng(5).integers(0, 50, (32, 5))}

MODELS: dict[str, tuple[onnx.ModelProto, dict[str, np.ndarray]]] = {
    "LSTM": (
        build(
            "(int64[T,N] ids) => (float[T,N,5] y) { e = Gather(t,ids) l, h = LSTM<hidden_size=24>(e,w,u) "
            "s = Squeeze(l,ax) y = MatMul(s,w1) }",
            t=normal(1, 50, 16),
            w=normal(2, 1, 96, 16) / 4,
            u=normal(3, 1, 96, 24) / 5,
            ax=np.array([1]),
            w1=normal(4, 24, 5) / 5,
        ),
        {"ids": IDS["ids"].T.copy()},
    ),
    "Einsum": (
        build(
            '(float[N,6,8] x) => (float[N,6,5] y) { a = Einsum<equation="bsd,dh->bsh">(x,w0) r = Relu(a) '
            "y = MatMul(r,w1) }",
            w0=normal(1, 8, 64) / 3,
            w1=normal(2, 64, 5) / 8,
        ),
        {"x": normal(4, 32, 6, 8)},
    ),
    "narrow table": (
        build(
            "(int64[N,5] ids) => (float[N,5,4] y) { e = Gather(t,ids) a = MatMul(e,w0) y = Relu(a) }",
            t=normal(1, 500, 8),
            w0=normal(2, 8, 4) / 3,
        ),
        IDS,
    ),
    "arithmetic": (
        build(
            "(float[N,6,8] x) => (float[N,6,5] y) { a = MatMul(x,w0) f = Mul(a,big) g = Add(f,bias) y = MatMul(g,w1) }",
            w0=normal(1, 8, 300) / 3,
            big=normal(3, 1, 6, 300),
            bias=normal(4, 6, 300),
            w1=normal(2, 300, 5) / 17,
        ),
        {"x": normal(4, 32, 6, 8)},
    ),
    "a branch": (
        build(
            "(float[N,8] x, bool yes) => (float[N,24] y) { a = Gemm(x,w0) y = If(yes)"
            "<then_branch = t () => (float[N,24] u) { u = MatMul(a,inner) },"
            " else_branch = e () => (float[N,24] v) { v = Identity(a) }> }",
            w0=normal(1, 8, 24) / 3,
            inner=normal(2, 24, 24) / 5,
        ),
        {"x": normal(4, 32, 8), "yes": np.array(True)},
    ),
}


def floats_in(model: onnx.ModelProto) -> dict[str, int]:
    """Bytes of the constants of floating type, the scales of quantized ones excepted, by name."""
    floats = [t for t in model.graph.initializer if t.data_type in (1, 10, 11) and not t.name.endswith("/scale")]
    return {t.name: numpy_helper.to_array(t).nbytes for t in floats}


@pytest.mark.parametrize("name", [n for n in MODELS if n != "a branch"])
def test_what_stays_in_float_is_told_with_its_share_of_the_file(name: str) -> None:
    model, samples = MODELS[name]
    result = onnxq.quantize(model, samples)
    told = " ".join(r.reason for r in result.report.left_in_float)
    size = len(result.model.SerializeToString())
    held = {n: b for n, b in floats_in(result.model).items() if b > 1024}
    assert held
    for constant, taken in held.items():
        found = re.search(rf"\b{constant} \[[\d, ]+\]: ([\d.]+) KiB, ([\d.]+)% of the file", told)
        assert found and float(found[1]) == pytest.approx(taken / 1024, abs=0.06)
        assert float(found[2]) == pytest.approx(100 * taken / size, abs=0.6)
    nodes = [r.node for r in result.report.left_in_float]
    assert len(nodes) == len(set(nodes))
    whole = sum(np.prod(t.dims) for t in model.graph.initializer if t.data_type == 1 and len(t.dims) > 1)
    in_float = sum(
        taken / 4
        for constant, taken in floats_in(result.model).items()
        if constant in {t.name for t in model.graph.initializer}
    )
    assert result.report.quantized_share == pytest.approx(1 - in_float / whole, abs=0.02)


def test_weights_inside_a_branch_are_told_of() -> None:
    model, _ = MODELS["a branch"]
    told = {r.node: r.reason for r in describe(*inspect(model)).left_in_float}
    assert any("inner [24, 24]: 2.2 KiB" in reason for reason in told.values())


def test_a_network_whose_weights_are_all_quantised_says_so_and_nothing_else() -> None:
    model = build(
        "(float[N,8] x) => (float[N,24] y) { a = Gemm(x,w0) r = Relu(a) y = Gemm(r,w1) }",
        w0=normal(1, 8, 24),
        w1=normal(2, 24, 24),
    )
    report = onnxq.quantize(model, normal(3, 32, 8)).report
    assert report.left_in_float == () and report.quantized_share == 1.0
    console = Console(file=io.StringIO(), width=120)
    show_run(console, report, title="t")
    assert "100.0% are quantised" in console.file.getvalue()


def test_an_inspection_tells_the_same_constants() -> None:
    model, _ = MODELS["Einsum"]
    told = {r.node: r.reason for r in describe(*inspect(model)).left_in_float}
    assert "w0 [8, 64]: 2.0 KiB, 61.5% of the file" in told["a"]
