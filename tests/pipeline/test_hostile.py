"""Damaged and hostile files: one sentence, in bounded memory and time, and nothing of anyone else's is read."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hostile_files import GOOD, run_files
from onnx import TensorProto, helper
from small_models import build, images, normal, relu_chain, weight

from onnxq.api import quantize
from onnxq.errors import ModelError, OnnxqError
from onnxq.ir.load import load
from onnxq.runtime.diagnosis import diagnosed

pytestmark = pytest.mark.slow


def test_every_hostile_file_is_refused_in_one_sentence_or_does_no_harm(tmp_path: Path) -> None:
    rows = run_files(0, 0, 72, tmp_path)
    assert [row for row in rows if row["outcome"] not in GOOD] == []
    assert all(row["levels"] == 4 for row in rows if row["outcome"] == "quantised")
    refused = [row for row in rows if row["outcome"] == "refused"]
    assert len(refused) > 40
    assert all(row["reason"] and "\n" not in row["reason"] for row in refused)


@pytest.mark.parametrize("kind", ["outside", "absolute", "link", "linked folder"])
def test_weights_outside_the_folder_of_the_model_are_not_read(kind: str, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    secret = tmp_path / "secret.bin"
    secret.write_bytes(weight(1, 8, 3, 3, 3).tobytes())
    (folder / "link.bin").symlink_to(secret)
    (folder / "linked").symlink_to(tmp_path)
    location = {
        "outside": "../secret.bin",
        "absolute": str(secret),
        "link": "link.bin",
        "linked folder": "linked/secret.bin",
    }[kind]
    _save_external(folder / "net.onnx", location)
    with pytest.raises(ModelError, match=r"net\.onnx: its external data cannot be read"):
        load(folder / "net.onnx")


@pytest.mark.parametrize(
    "entries", [{"offset": "4000"}, {"offset": "-4"}, {"length": "860"}, {"length": "900"}, {"offset": "x"}]
)
def test_weights_that_are_not_where_they_should_be_are_told_of(entries: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(weight(1, 8, 3, 3, 3).tobytes())
    _save_external(tmp_path / "net.onnx", "w.bin", **entries)
    with pytest.raises(ModelError, match=r"net\.onnx"):
        quantize(tmp_path / "net.onnx", images())


def test_model_in_memory_whose_weights_are_elsewhere_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "w.bin").write_bytes(weight(1, 8, 3, 3, 3).tobytes())
    _save_external(tmp_path / "net.onnx", "w.bin")
    with pytest.raises(ModelError, match="the model keeps its weights in other files"):
        quantize(onnx.load(tmp_path / "net.onnx", load_external_data=False), images())


def _save_external(path: Path, location: str, **entries: str) -> None:
    model = relu_chain()
    tensor = next(t for t in model.graph.initializer if t.name == "w0")
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())


def test_branches_within_branches_do_not_double_the_time() -> None:
    # Twice the time for each of 24 levels would be hours.
    inner = helper.make_graph([helper.make_node("Neg", ["x"], ["z0"])], "g", [], [_value("z0")])
    for level in range(1, 24):
        other = helper.make_graph([helper.make_node("Abs", ["x"], [f"e{level}"])], "e", [], [_value(f"e{level}")])
        node = helper.make_node("If", ["flag"], [f"z{level}"], f"i{level}", then_branch=inner, else_branch=other)
        inner = helper.make_graph([node], f"g{level}", [], [_value(f"z{level}")])
    model = build("(float[N,4] x) => (float[N,3] y) { y = MatMul(x, w) }", w=weight(1, 4, 3))
    model.graph.initializer.append(helper.make_tensor("flag", TensorProto.BOOL, [], [True]))
    model.graph.node.extend(inner.node)
    model.graph.output.append(_value("z23"))
    report = quantize(model, normal(2, 16, 4)).report
    assert [layer.name for layer in report.layers] == ["y"]


def _value(name: str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4])


def test_fault_in_a_sound_model_is_not_blamed_on_the_model() -> None:
    with pytest.raises(ZeroDivisionError), diagnosed(relu_chain()):
        raise ZeroDivisionError


def test_fault_in_a_model_that_onnxruntime_refuses_is_the_models() -> None:
    model = relu_chain()
    model.graph.node[0].op_type = "Mystery"
    with pytest.raises(ModelError, match=r"the model is not sound .*Mystery"), diagnosed(model):
        raise KeyError("w0")


def test_name_that_is_no_text_is_the_models_fault() -> None:
    with pytest.raises(ModelError, match="a name in it is not UTF-8"), diagnosed(relu_chain()):
        b"\xe6".decode()


def test_error_that_says_what_is_wrong_stays_as_it_is() -> None:
    with pytest.raises(OnnxqError, match=r"^as it is$"), diagnosed(relu_chain()):
        raise OnnxqError("as it is")


def test_command_says_in_one_sentence_that_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "net.onnx").write_text("import torch\n" * 100)
    np.savez(tmp_path / "x.npz", x=images())
    command = [sys.executable, "-m", "onnxq", "quantize", "net.onnx", "-o", "out.onnx", "--calibration", "x.npz"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and "net.onnx is not an ONNX file" in done.stderr
    assert not (tmp_path / "out.onnx").exists()
