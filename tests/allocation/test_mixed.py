"""Bits chosen layer by layer, from the configuration or the command to the file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner, Result
from scipy.special import log_softmax
from small_models import build, normal, weight
from tiny_model import LAYERS, tiny_images, tiny_model

import onnxq
from onnxq import api, pipeline
from onnxq.allocation.allocate import allocate
from onnxq.allocation.bit_allocation import BitAllocation, Outcome
from onnxq.allocation.problem import problem_from_json
from onnxq.allocation.reallocate import Attempt, best_of, carry_out
from onnxq.allocation.sensitivity import measure_sensitivities
from onnxq.allocation.sensitivity_table import SensitivityTable
from onnxq.allocation.uniform import best_uniform
from onnxq.cli import main
from onnxq.config import make_config
from onnxq.config.bit_widths import FLOAT, Candidate
from onnxq.config.budget import Budget
from onnxq.errors import ConfigError, UnsupportedError
from onnxq.ir.model import Model
from onnxq.runtime.session import Session

pytestmark = pytest.mark.slow

W4, W8 = Candidate(4, 8), Candidate(8, 8)
MIX = onnxq.Config(candidates=("w2a8", "w4a8", "w8a8"), budget=("size=0.72",), edge_bits="same", table_samples=16)


def chosen(*bits: Candidate, loss: float = 0.0) -> BitAllocation:
    choice = dict(zip(LAYERS, bits, strict=True))
    return BitAllocation(choice, loss, 0.0, {}, "loss", Outcome.OPTIMAL, loss, 0.0, {})


def stored(result: onnxq.Result) -> dict[str, tuple[int | None, int | None]]:
    return {la.name: (la.stored_weight_bits, la.stored_activation_bits) for la in result.report.layers}


def test_every_layer_gets_the_bits_of_the_allocation_and_float_ones_are_left_alone() -> None:
    result = onnxq.quantize(tiny_model(), tiny_images(24), allocation=chosen(W8, Candidate(3, 6), FLOAT))
    assert stored(result) == {"first": (8, 8), "middle": (3, 6)}
    assert result.report.ok
    assert ("last", "left in float by the allocation") in {(r.node, r.reason) for r in result.report.left_in_float}
    assert result.report.allocation is not None
    assert result.report.allocation["choice"] == {"first": "w8a8", "middle": "w3a6", "last": "float"}


def test_the_operator_set_follows_the_bits_in_use_and_not_the_configuration() -> None:
    config = onnxq.Config(weights=4)
    eight = onnxq.quantize(tiny_model(), tiny_images(8), config, allocation=chosen(W8, W8, W8))
    four = onnxq.quantize(tiny_model(), tiny_images(8), config, allocation=chosen(W8, W4, W8))
    assert [m.model.opset_import[0].version for m in (eight, four)] == [17, 21]


def test_the_measured_loss_in_the_report_is_that_of_the_file() -> None:
    images = tiny_images(24)
    result = onnxq.quantize(tiny_model(), images, allocation=chosen(W4, W4, W8))
    p, q = (
        log_softmax(np.asarray(Session(m, "").run({"image": images})["scores"], np.float64), axis=-1)
        for m in (tiny_model(), result.model)
    )
    assert result.report.allocation is not None
    wanted = (np.exp(p) * (p - q)).sum(axis=-1).mean()
    # onnxruntime computes batches of other sizes in another order.
    assert result.report.allocation["measured_loss"] == pytest.approx(wanted, rel=1e-2)


def test_an_allocation_of_other_layers_is_refused() -> None:
    other = BitAllocation({"first": W8, "else": W8}, 0.0, 0.0, {}, "loss", Outcome.OPTIMAL, 0.0, 0.0, {})
    with pytest.raises(ConfigError, match="does not fit the model's 3 layers: it lacks middle, last and names else"):
        onnxq.quantize(tiny_model(), tiny_images(8), allocation=other)
    with pytest.raises(ConfigError, match="leaves every layer in float"):
        onnxq.quantize(tiny_model(), tiny_images(8), allocation=chosen(FLOAT, FLOAT, FLOAT))


def test_candidates_and_a_budget_make_a_file_within_it() -> None:
    moments: list[onnxq.Progress] = []
    result = onnxq.quantize(tiny_model(), tiny_images(24), MIX, progress=moments.append)
    assert result.model.ByteSize() <= 0.72 * tiny_model().ByteSize()
    account = result.report.allocation
    assert account is not None
    assert account["status"] == "optimal"
    assert account["costs"]["size"] == pytest.approx(result.model.ByteSize(), abs=300)
    assert 1 <= len(account["rounds"]) <= 4
    assert [m.detail for m in moments if m.stage == "measure"][: len(LAYERS)] == LAYERS
    assert any(note.node == "allocation" and "predicted" in note.reason for note in result.report.notes)


def test_the_same_candidates_and_seed_give_the_same_bytes_from_an_array_and_from_a_stream() -> None:
    images = tiny_images(24)
    whole = onnxq.quantize(tiny_model(), images, MIX).model.SerializeToString(deterministic=True)
    parts = ({"image": images[i : i + 7]} for i in range(0, 24, 7))
    assert onnxq.quantize(tiny_model(), parts, MIX).model.SerializeToString(deterministic=True) == whole


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The operator sets that the model is read at."""
    asked: list[int] = []

    def load(*given: Any, **options: Any) -> Model:
        asked.append(options["minimum_opset"])
        return pipeline_load(*given, **options)

    pipeline_load = pipeline.load
    monkeypatch.setattr(pipeline, "load", load)
    return asked


def test_the_model_is_read_once_for_all_that_is_tried(read: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    config = onnxq.Config(candidates=("w4a8", "w8a8"), budget=("size=0.85",), edge_bits="same", table_samples=16)
    result = onnxq.quantize(tiny_model(), tiny_images(48), config)
    once = len(read)
    assert once == len(set(read))  # once for each operator set that the bits of an attempt need
    monkeypatch.setattr(pipeline.Source, "at", lambda self, opset: pipeline.prepared_model(tiny_model(), config, opset))
    again = onnxq.quantize(tiny_model(), tiny_images(48), config)
    assert len(read) - once >= once
    assert again.model.SerializeToString(deterministic=True) == result.model.SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("source", "asked", "expected"),
    [(17, [21, 21, 13], [21, 13]), (22, [21, 13, 21], [21]), (13, [13, 21, 13, 21], [13, 21])],
)
def test_a_model_is_read_again_only_where_that_gives_another(
    source: int, asked: list[int], expected: list[int], read: list[int]
) -> None:
    """What was raised is not what a lower operator set would have left as it was."""
    model = tiny_model()
    model.opset_import[0].version = source
    found = pipeline.Source(model, onnxq.Config())
    assert [found.at(opset).opset for opset in asked] == [max(opset, source) for opset in asked]
    assert read == expected


def test_a_budget_that_cannot_be_kept_is_told_before_anything_is_solved() -> None:
    config = make_config({"candidates": "w4a8,w8a8", "budget": "size=1%", "table_samples": 8})
    with pytest.raises(ConfigError, match="the least size that can be reached is"):
        onnxq.quantize(tiny_model(), tiny_images(8), config)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"candidates": "w4a9"}, "candidate 'w4a9' is not understood"),
        ({"candidates": ["w4a8"], "budget": "speed=3"}, "budget 'speed=3' names no known quantity"),
        ({"budget": ["size=1", "size=2"]}, "size has two budgets"),
    ],
)
def test_candidates_and_budgets_are_checked_where_they_come_in(values: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make_config(values)


def test_an_allocation_that_loses_what_was_predicted_is_kept_and_another_is_solved_again_at_most_thrice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    losses = iter([0.9, 0.5, 0.7, 0.6])
    tried: list[BitAllocation] = []

    def solve(allocation: BitAllocation) -> Attempt[None]:
        tried.append(allocation)
        return Attempt(allocation, None, None, next(losses), None)  # type: ignore[arg-type]

    others = iter([chosen(W4, W8, W8, loss=0.1), chosen(W8, W4, W8, loss=0.1), chosen(W8, W8, W4, loss=0.1)])
    monkeypatch.setattr("onnxq.allocation.reallocate._around", lambda *_: problem())
    monkeypatch.setattr("onnxq.allocation.reallocate.best_uniform", lambda *_: None)
    first = chosen(W4, W4, W4, loss=0.1)
    best, rounds = carry_out(first, problem(), [], MIX, solve, lambda _: next(others), lambda _: None)
    assert (len(tried), best.loss) == (4, 0.5)
    assert rounds == ((0.1, 0.9), (0.1, 0.5), (0.1, 0.7), (0.1, 0.6))
    losses = iter([0.15])
    best, rounds = carry_out(first, problem(), [], MIX, solve, lambda _: next(others), lambda _: None)
    assert rounds == ((0.1, 0.15),)
    losses = iter([0.9])
    best, rounds = carry_out(
        first, None, [], MIX, solve, lambda _: next(others), lambda _: None
    )  # nothing to choose again from
    assert rounds == ((0.1, 0.9),)


def test_a_uniform_allocation_that_is_predicted_close_is_solved_too_and_the_choice_made_around_it_if_it_wins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, rival, better = (chosen(*bits, loss=0.1) for bits in ((W4, W8, W8), (W4, W4, W4), (W8, W4, W4)))
    measured = {str(first.choice): 0.1, str(rival.choice): 0.08, str(better.choice): 0.07}
    around: list[Any] = []

    def solve(allocation: BitAllocation) -> Attempt[None]:
        return Attempt(allocation, None, None, measured[str(allocation.choice)], None)  # type: ignore[arg-type]

    def note_reference(attempt: Attempt[None], *_: object) -> SensitivityTable:
        around.append(attempt.allocation.choice)
        return problem().sensitivity

    def carry(rival: BitAllocation) -> tuple[Attempt[None], tuple[tuple[float, float], ...]]:
        monkeypatch.setattr("onnxq.allocation.reallocate.best_uniform", lambda *_: rival)
        return carry_out(first, problem(), [], MIX, solve, lambda _: better, lambda _: None)

    monkeypatch.setattr("onnxq.allocation.reallocate._around", note_reference)
    best, rounds = carry(rival)
    assert (best.allocation, around) == (better, [rival.choice])
    assert rounds == ((0.1, 0.1), (0.1, 0.08), (0.1, 0.07))
    best, rounds = carry(dataclasses.replace(rival, loss=0.21))  # more than twice what the first is predicted to lose
    assert (best.allocation, rounds) == (first, ((0.1, 0.1),))


def test_under_a_budget_of_loss_what_keeps_it_and_costs_least_is_taken_and_no_uniform_rival_solved() -> None:
    def attempt(bits: Candidate, size: float, loss: float) -> Attempt[None]:
        limits = {"minimised": "size", "budgets": {"loss": 1.0}, "costs": {"size": size}}
        allocation = dataclasses.replace(chosen(bits, bits, bits, loss=loss), **limits)
        return Attempt(allocation, None, None, loss, None)  # type: ignore[arg-type]

    small, large, lossy = attempt(W4, 4.0, 0.9), attempt(W8, 8.0, 0.1), attempt(Candidate(2, 8), 2.0, 1.1)
    assert best_of([large, small, lossy]) is small
    assert best_of([lossy, dataclasses.replace(large, loss=1.05)]).loss == 1.05  # neither keeps it: the nearer one
    best, _ = carry_out(small.allocation, problem(), [], MIX, lambda _: small, allocation_unused, lambda _: None)
    assert best is small


def allocation_unused(_: object) -> BitAllocation:
    raise AssertionError("nothing else is to be chosen")


def test_the_best_uniform_allocation_keeps_the_budgets_and_gives_layers_without_the_candidate_their_own() -> None:
    from small_problems import problem as small

    candidates = (Candidate(2, 8), W4, W8)
    nan = float("nan")
    tables = small([[9, 3, 1], [9, 4, 1], [nan, nan, 2]], {"size": [[1, 2, 4], [1, 2, 4], [1, 2, 4]]}, candidates)

    def within(size: float) -> BitAllocation | None:
        return best_uniform(tables, lambda p: allocate(p, [Budget("size", size)]))

    found = [within(size) for size in (12, 11, 7, 5)]
    assert [f and [*f.choice.values()] for f in found] == [
        [W8, W8, W8],
        [W4, W4, W8],
        [Candidate(2, 8), Candidate(2, 8), W8],
        None,
    ]
    assert found[1] is not None and found[1].loss == 9


def problem() -> onnxq.allocation.problem.AllocationProblem:
    from small_problems import problem as small

    return small([[1, 0]], {"size": [[1, 2]]}, (W4, W8))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a model and samples, where the command runs."""
    onnx.save(tiny_model(), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", image=tiny_images(20))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*words: str) -> Result:
    return CliRunner().invoke(main, list(words))


def make_table(*more: str) -> None:
    words = ("--calibration", "data.npz", "--candidates", "w2a8,w4a8,w8a8", "--edge-bits", "same", "-o", "table.json")
    result = run("sensitivity", "net.onnx", *words, "--table-samples", "12", *more)
    assert result.exit_code == 0, result.output


def test_a_table_once_measured_serves_every_budget_and_its_allocation_quantises(place: Path) -> None:
    make_table()
    table = problem_from_json(Path("table.json").read_text())
    assert (table.layers, table.sensitivity.samples, table.model) == (tuple(LAYERS), 10, "net.onnx")
    sizes = []
    for share in ("0.72", "0.75", "0.9"):
        result = run("allocate", "table.json", "--budget", f"size={share}", "-o", "bits.json", "--json")
        assert result.exit_code == 0, result.output
        found = json.loads(result.stdout)
        assert found == json.loads(Path("bits.json").read_text())
        assert found["costs"]["size"] <= float(share) * Path("net.onnx").stat().st_size
        sizes.append(found["costs"]["size"])
    assert sizes == sorted(sizes)
    words = ("--calibration", "data.npz", "-o", "q.onnx", "--allocation", "bits.json", "--json")
    result = run("quantize", "net.onnx", *words)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert {la["name"]: f"w{la['weight_bits']}a{la['activation_bits']}" for la in report["layers"]} == found["choice"]
    assert report["quantized"] == Path("q.onnx").stat().st_size
    text = run("allocate", "table.json", "--budget", "loss=0.1")
    assert "proven optimal" in text.stdout
    assert all(name in text.stdout for name in LAYERS)


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_the_front_is_a_table_json_and_a_picture(place: Path, ending: str) -> None:
    make_table("--method", "scaled")
    result = run("allocate", "table.json", "--pareto", "--points", "5", "--plot", f"front.{ending}", "--json")
    assert result.exit_code == 0, result.output
    front = json.loads(result.stdout)["front"]
    assert [p["loss"] for p in front] == sorted((p["loss"] for p in front), reverse=True)
    head = Path(f"front.{ending}").read_bytes()[:300]
    assert (b"<svg" in head or b"<?xml" in head) if ending == "svg" else head.startswith(b"\x89PNG")
    text = run("allocate", "table.json", "--pareto", "--points", "3", "--over", "bops").stdout
    assert "bit operations" in text


def test_fixed_layers_and_allowed_candidates_are_kept(place: Path) -> None:
    make_table()
    words = ("--fix", "middle=w2a8", "--allow", "w2a8,w8a8", "--json")
    found = json.loads(run("allocate", "table.json", *words).stdout)
    assert found["choice"]["middle"] == "w2a8"
    assert "w4a8" not in found["choice"].values()


def test_latencies_from_a_csv_go_into_the_table_and_several_budgets_hold_at_once(place: Path) -> None:
    lines = [f"{name},{bits},{spent}" for name in LAYERS for bits, spent in (("float", 3), ("w4a8", 2), ("w8a8", 1))]
    Path("npu.csv").write_text("layer,candidate,milliseconds\n" + "\n".join(lines) + "\n")
    make_table("--latency-table", "npu.csv")
    result = run("allocate", "table.json", "--budget", "size=0.78", "--budget", "latency=0.6", "--json")
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["costs"]["latency"] <= 5.4
    assert set(found["choice"].values()) <= {"w4a8", "w8a8"}


def test_measured_latency_can_be_a_budget(place: Path) -> None:
    config = make_config({**{k: getattr(MIX, k) for k in ("candidates", "edge_bits")}, "budget": "latency=50ms"})
    result = onnxq.quantize(tiny_model(), tiny_images(12), config)
    assert result.report.allocation is not None
    assert result.report.allocation["costs"]["latency"] <= 50


@pytest.mark.parametrize(
    ("words", "told"),
    {
        ("allocate", "none.json"): "table none.json cannot be read",
        ("allocate", "net.onnx"): "table net.onnx cannot be read: it is not text",
        ("allocate", "table.json", "--budget", "size=0.01"): "the least size that can be reached",
        (
            "allocate",
            "table.json",
            "--budget",
            "latency=3ms",
        ): "the table holds no latency; it holds loss, size",
        ("allocate", "table.json", "--fix", "first"): "--fix 'first' is not understood",
        ("allocate", "table.json", "--plot", "front.svg"): "ask for one with --pareto",
        ("allocate", "table.json", "--pareto", "--plot", "front.bmp"): "let its name end in .svg or .png",
        ("allocate", "table.json", "--pareto", "--over", "loss"): "--over names a cost",
        (
            "quantize",
            "net.onnx",
            "--calibration",
            "data.npz",
            "-o",
            "q.onnx",
            "--allocation",
            "table.json",
        ): "allocation",
        ("sensitivity", "net.onnx", "--calibration", "data.npz", "-o", "t.json"): "no candidate was given",
        (
            "sensitivity",
            "net.onnx",
            "--calibration",
            "data.npz",
            "-o",
            "t.json",
            "--method",
            "fast",
        ): "write full or sc",
    }.items(),
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_used_ends_in_a_sentence_and_2(place: Path, words: tuple[str, ...], told: str) -> None:
    table = """{"model": "", "layers": ["a"], "candidates": ["w4a8"], "edges": [], "agreements": [], "sensitivity":
        {"metric": "kl", "method": "full", "samples": 1, "loss": [[1]], "error": [[0]],
         "reference": {}, "reference_loss": 0},
        "costs": {"size": {"values": [[5]], "whole": 10, "rest": 0, "source": ""}}}"""
    Path("table.json").write_text(table)
    result = run(*words)
    assert result.exit_code == 2, result.output
    assert told in result.stderr
    assert not Path("q.onnx").exists()
    assert not Path("t.json").exists()


def test_layers_that_share_a_weight_are_given_the_same_bits() -> None:
    proto = build(
        "(float[N,4] x) => (float[N,4] y) { a = Gemm(x, w) b = Relu(a) c = Gemm(b, w) d = Relu(c) y = Gemm(d, v) }",
        w=weight(0, 4, 4), v=weight(1, 4, 4),
    )  # fmt: skip
    config = onnxq.Config(candidates=("w2a8", "w8a8"), budget=("bops=0.05",), edge_bits="same")
    samples = np.random.default_rng(0).normal(size=(32, 4)).astype(np.float32)
    result = onnxq.quantize(proto, samples, config)
    assert result.report.allocation is not None
    bits = result.report.allocation["choice"]
    assert bits["a"] == bits["c"]
    assert "w2a8" in bits.values()  # the budget is below all at 8 bits


def test_tables_in_a_work_directory_serve_other_budgets_and_no_other_samples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = []
    real = measure_sensitivities

    def counting(*args: Any, **options: Any) -> SensitivityTable:
        measured.append(args)
        return real(*args, **options)

    monkeypatch.setattr("onnxq.allocation.measure.measure_sensitivities", counting)
    images, place = tiny_images(24), tmp_path / "work"

    def run(budget: str, samples: np.ndarray = images, **options: Any) -> onnxq.Result:
        config = dataclasses.replace(MIX, budget=(budget,))
        return onnxq.quantize(tiny_model(), samples, config, work_dir=place, **options)

    first = run("size=0.9")
    assert len(measured) == 1
    other = run("size=0.72", resume=True)
    again = run("size=0.9", resume=True)
    assert len(measured) == 1
    assert stored(other) != stored(first)
    assert again.model.SerializeToString() == first.model.SerializeToString()
    alone = onnxq.quantize(tiny_model(), images, MIX)  # budget size=0.72, without a folder
    assert other.model.SerializeToString() == alone.model.SerializeToString()
    with pytest.raises(ConfigError, match="resume it, or give another directory"):
        run("size=0.9")
    with pytest.raises(ConfigError, match="another model, configuration or calibration set"):
        run("size=0.9", images[::-1].copy(), resume=True)


def test_a_model_without_layers_is_refused_with_candidates_too() -> None:
    model = build("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    for options in (
        {"candidates": "w4a8,w8a8", "budget": "size=0.5"},
        {"candidates": "w4a32,w8a8", "budget": "bops=1"},
    ):
        with pytest.raises(UnsupportedError, match="no layer to quantise"):
            onnxq.quantize(model, normal(0, 8, 4), make_config(options))
        with pytest.raises(UnsupportedError, match="no layer to quantise"):
            api.sensitivity(model, normal(0, 8, 4), make_config(options))
