"""Killed runs leave nothing half done, and go on; runs that share a folder do not mix."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_model import tiny_images, tiny_model

import onnxq
from onnxq.errors import ConfigError
from onnxq.quant.solution import LayerSolution
from onnxq.quant.spec import Granularity, QuantParams, QuantSpec
from onnxq.solve.checkpoint import Checkpoint

# The first report, one in the middle of solving, a layer being written and about to be kept, the verification done,
# the output written and about to be synced, and about to get its name.
POINTS = ("progress:1", "progress:5", "savez:1", "savez:3", "replace:1", "replace:2", "fsync:1", "replace:4")

pytestmark = pytest.mark.unseen  # runs in other processes are those of people


def test_killed_run_leaves_no_output_and_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    script = Path(__file__).parents[1] / "helpers" / "crash_points.py"
    done = subprocess.run([sys.executable, script, tmp_path, *POINTS], capture_output=True, text=True, check=False)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["point"] for row in rows] == list(POINTS), done.stderr
    for row in rows:
        assert row["killed"] == -9, row
        assert not row["there"], row
        assert row["resumed"] == 0 and row["same"], row
    kept = {row["point"]: row["kept"] for row in rows}
    assert kept["savez:1"] == 0 and kept["savez:3"] == 2 and kept["replace:4"] == 3


def test_runs_started_together_in_one_folder_are_refused_or_right(tmp_path: Path) -> None:
    alone = onnxq.quantize(tiny_model(), tiny_images(16)).model.SerializeToString(deterministic=True)
    barrier = threading.Barrier(3)
    results: list[bytes | ConfigError] = []

    def start() -> None:
        barrier.wait()
        try:
            result = onnxq.quantize(tiny_model(), tiny_images(16), work_dir=tmp_path)
            results.append(result.model.SerializeToString(deterministic=True))
        except ConfigError as error:
            results.append(error)

    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    refusals = [r for r in results if isinstance(r, ConfigError)]
    assert [r for r in results if isinstance(r, bytes)] == [alone]
    assert all("holds an earlier run" in str(r) for r in refusals)


def test_runs_that_resume_together_both_come_out_right(tmp_path: Path) -> None:
    alone = onnxq.quantize(tiny_model(), tiny_images(16), work_dir=tmp_path).model.SerializeToString(deterministic=True)
    for layer in list(tmp_path.glob("*.npz"))[:2]:
        layer.unlink()
    command = [sys.executable, "-c", RESUME, str(tmp_path)]
    runs = [
        subprocess.Popen(command, cwd=Path(__file__).parents[1] / "helpers", stdout=subprocess.PIPE) for _ in range(2)
    ]
    assert [run.communicate()[0] for run in runs] == [alone, alone]


RESUME = """
import sys, onnxq
from tiny_model import tiny_images, tiny_model
result = onnxq.quantize(tiny_model(), tiny_images(16), work_dir=sys.argv[1], resume=True)
sys.stdout.buffer.write(result.model.SerializeToString(deterministic=True))
"""


@pytest.mark.parametrize("attempt", range(20))  # the order of the two varies from one to the next
def test_of_two_runs_that_differ_one_gets_the_folder(tmp_path: Path, attempt: int) -> None:
    barrier = threading.Barrier(2)

    def claim(mark: str) -> str:
        barrier.wait()
        try:
            Checkpoint(tmp_path / "work", mark, resume=True)
        except ConfigError as error:
            return str(error)
        return mark

    with ThreadPoolExecutor(2) as pool:
        outcomes = list(pool.map(claim, ("first", "second")))
    (winner,) = [o for o in outcomes if o in ("first", "second")]
    assert (tmp_path / "work" / "fingerprint").read_text() == winner
    assert any("belongs to a run with another model" in o for o in outcomes)
    assert [p.name for p in (tmp_path / "work").iterdir()] == ["fingerprint"]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[Checkpoint, Path, bytes]:
    folder = tmp_path_factory.mktemp("work")
    checkpoint = Checkpoint(folder, "mark", resume=False)
    spec = QuantSpec(4, True, Granularity.PER_CHANNEL)
    checkpoint.save(
        LayerSolution(
            layer="conv",
            integers=np.arange(-6, 6).reshape(3, 4),
            weight=QuantParams(spec, np.array([0.5, 1, 2], np.float32)),
            bias=np.zeros(3, np.float32),
            input=QuantParams(QuantSpec(8, False), np.float32(0.1), 3),
            loss_nearest=2.0,
            loss=1.0,
            status="solved",
            seconds=0.5,
        )
    )
    (path,) = folder.glob("*.npz")
    return checkpoint, path, path.read_bytes()


@given(data=st.data())
def test_damaged_layer_is_solved_again_rather_than_believed(
    kept: tuple[Checkpoint, Path, bytes], data: st.DataObject
) -> None:
    checkpoint, path, whole = kept
    if data.draw(st.booleans(), "truncate"):
        path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1), "length")])
    else:
        damaged = bytearray(whole)
        damaged[data.draw(st.integers(0, len(whole) - 1), "place")] ^= data.draw(st.integers(1, 255), "flip")
        path.write_bytes(damaged)
    found = checkpoint.load("conv")
    # Flips in the directory of the archive, such as a date, leave the arrays what they are.
    assert found is None or np.array_equal(found.integers, np.arange(-6, 6).reshape(3, 4))
