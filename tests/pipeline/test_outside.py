"""What lies outside: files that are no files, pictures that are none, samples that are others, sparse constants."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper
from small_models import build, normal, weight
from tiny_model import tiny_images, tiny_model

import onnxq
from onnxq.cli import main
from onnxq.data import read_feeds
from onnxq.data.replay import batch_size, batch_within
from onnxq.errors import CalibrationError, ConfigError, OutputError
from onnxq.ir.load import load
from onnxq.ir.save import check_writable, save, to_proto, write_text
from onnxq.ir.tensor import TensorInfo


def test_a_pipe_is_not_replaced_by_a_file(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    for write in (lambda: save(tiny_model(), pipe), lambda: write_text(pipe, "x"), lambda: check_writable(pipe)):
        with pytest.raises(OutputError, match="is a device or a pipe, not a file"):
            write()
    assert pipe.is_fifo()
    with pytest.raises(OutputError, match="/dev/null is a device or a pipe"):
        check_writable(Path("/dev/null"))


@pytest.mark.parametrize("there", [False, True])
def test_a_link_is_written_through(there: bool, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target, link = tmp_path / "real" / "m.onnx", tmp_path / "link.onnx"
    if there:
        target.write_text("old")
    link.symlink_to(target)
    save(tiny_model(), link)
    assert link.is_symlink() and onnx.load(target).graph.node
    write_text(link, "text")
    assert link.is_symlink() and target.read_text() == "text"
    assert sorted(p.name for p in (tmp_path / "real").iterdir()) == ["m.onnx"]


@pytest.mark.parametrize(
    "content", [b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EOF\n", b"GIF89a\x01\x00\x01\x00\x00\x00\x00;"]
)
def test_a_file_of_another_format_under_the_name_of_a_picture_is_refused(
    content: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marks = tmp_path / "bin"
    marks.mkdir()
    (marks / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\nexit 1\n")
    (marks / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{marks}:{os.environ['PATH']}")
    folder = tmp_path / "f"
    folder.mkdir()
    (folder / "preprocess.toml").write_text("resize = [8, 8]\n")
    (folder / "a.png").write_bytes(content)
    with pytest.raises(CalibrationError, match=r"a\.png cannot be used as an image"):
        list(read_feeds(folder, [TensorInfo("x", np.dtype(np.float32), (None, 3, 8, 8))], batch=1))
    assert not (tmp_path / "called").exists()


@pytest.mark.parametrize("kind", ["array", "list", "npz", "folder"])
def test_a_run_with_other_samples_is_not_resumed(kind: str, tmp_path: Path) -> None:
    first, second = tiny_images(24), tiny_images(24) * np.float32(2)
    place, work = tmp_path / "s", tmp_path / "work"

    def run(values: np.ndarray, **options: object) -> onnxq.Result:
        data: object = values if kind == "array" else [values[:10], values[10:]]
        if kind in ("npz", "folder"):
            place.mkdir(exist_ok=True)
            data = place / "s.npz" if kind == "npz" else place
            if kind == "npz":
                np.savez(place / "s.npz", **{tiny_model().graph.input[0].name: values})
                os.utime(place / "s.npz", (1, 1))  # as after a copy that keeps times
            else:
                np.save(place / "a.npy", values)
            os.utime(place, (1, 1))
        return onnxq.quantize(tiny_model(), data, work_dir=work, **options)

    done = run(first)
    again = run(first, resume=True)
    assert again.model.SerializeToString() == done.model.SerializeToString()
    with pytest.raises(ConfigError, match="another model, configuration or calibration set"):
        run(second, resume=True)


def sparse(where: str, coordinates: bool) -> tuple[onnx.ModelProto, np.ndarray]:
    """A matrix of which every seventh entry is not 0, and that matrix."""
    text = "(float[N,16] x) => (float[N,4] y) { c = MatMul(x, w0) r = Relu(c) y = MatMul(r, w1) }"
    model = build(text, w0=normal(5, 16, 24), w1=normal(2, 24, 4) / 5)
    del model.graph.initializer[0]
    places = np.arange(0, 384, 7)
    values = normal(1, len(places))
    dense = np.zeros(384, np.float32)
    dense[places] = values
    index = np.stack(np.unravel_index(places, (16, 24)), axis=1) if coordinates else places
    name = "w0" if where == "initializer" else ""
    parts = numpy_helper.from_array(values, name), numpy_helper.from_array(index.astype(np.int64), "i")
    constant = helper.make_sparse_tensor(*parts, [16, 24])
    if where == "initializer":
        model.graph.sparse_initializer.append(constant)
    else:
        model.graph.node.insert(0, helper.make_node("Constant", [], ["w0"], "cw", sparse_value=constant))
    return model, dense.reshape(16, 24)


@pytest.mark.parametrize("where", ["initializer", "node"])
@pytest.mark.parametrize("coordinates", [False, True])
def test_a_sparse_weight_is_that_of_a_layer(where: str, coordinates: bool) -> None:
    model, matrix = sparse(where, coordinates)
    made = to_proto(load(model))
    x = normal(3, 8, 16)
    found = ort.InferenceSession(made.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"x": x})[0]
    w1 = numpy_helper.to_array(model.graph.initializer[0])
    np.testing.assert_allclose(found, np.maximum(x @ matrix, 0) @ w1, atol=1e-5)
    report = onnxq.quantize(model, normal(4, 48, 16)).report
    assert [la.name for la in report.layers] == ["c", "y"] and report.ok


def test_the_json_form_is_one_object_whatever_the_libraries_have_to_say(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = build("(float[N,8] x) => (float[N,4] y) { y = MatMul(x, w) }", w=normal(1, 8, 4))
    model.graph.value_info.append(helper.make_tensor_value_info("none", onnx.TensorProto.FLOAT8E4M3FN, [1]))
    model.graph.input.append(helper.make_tensor_value_info("f8", onnx.TensorProto.BFLOAT16, ["N"]))
    onnx.save(model, tmp_path / "m.onnx")
    capfd.readouterr()
    done = CliRunner().invoke(main, ["inspect", str(tmp_path / "m.onnx"), "--json"])
    assert done.exit_code == 0 and done.output.startswith("{")
    assert capfd.readouterr().out == ""


def test_a_batch_is_smaller_where_little_memory_is_allowed() -> None:
    text = "(float[N,3,64,64] x) => (float[N,64,64,64] y) { y = Conv<pads=[1,1,1,1]>(x, w) }"
    model = load(build(text, w=weight(1, 64, 3, 3, 3)))
    usual = batch_size(model.inputs)
    assert batch_within(model, 2**40) == usual == 64
    small = [batch_within(model, 2**power) for power in (20, 26, 28)]
    assert small[0] == 1 and small == sorted(small) and small[2] < usual
    fixed = load(build("(float[4,8] x) => (float[4,4] y) { y = MatMul(x, w) }", w=normal(1, 8, 4)))
    assert batch_within(fixed, 1) == 4
