"""Models over 2 GiB, made of small ones by lowering the limit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, version_converter
from small_models import images, relu_chain

from onnxq.api import quantize
from onnxq.ir import size
from onnxq.ir.external_weights import Outline
from onnxq.ir.load import load
from onnxq.ir.save import to_outline, to_proto
from onnxq.ir.size import fits_one_message, model_bytes, weight_bytes, without_large_weights
from onnxq.runtime.session import Session
from onnxq.verify.source import ModelSource

pytestmark = pytest.mark.slow


@pytest.fixture
def low_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(size, "PROTOBUF_LIMIT", 2000)
    monkeypatch.setattr(size, "LITTLE", 100)


def test_bytes_of_a_model_are_those_of_its_file_and_of_its_weights(tmp_path: Path) -> None:
    model = relu_chain()
    length = len(model.SerializeToString())
    weights = sum(4 * int(np.prod(t.dims)) for t in model.graph.initializer)
    assert model_bytes(model) == length and weight_bytes(model.graph) == weights
    onnx.save(model, tmp_path / "inline.onnx")
    assert model_bytes(tmp_path / "inline.onnx") == length
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    files = (tmp_path / "net.onnx", tmp_path / "net.data")
    assert model_bytes(tmp_path / "net.onnx") == sum(file.stat().st_size for file in files) > weights
    assert ModelSource.open(tmp_path / "net.onnx", "float").size == model_bytes(tmp_path / "net.onnx")


def test_report_counts_weights_in_other_files(tmp_path: Path) -> None:
    onnx.save(relu_chain(), tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    report = quantize(tmp_path / "net.onnx", images()).report
    assert report.fp32 == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert report.quantized < report.fp32


@pytest.mark.parametrize("dims", [[2**62], [2**40, 2**40], [-(2**62)]])
def test_size_that_a_tensor_only_claims_is_not_believed(dims: list[int]) -> None:
    model = relu_chain()
    model.graph.initializer.add(name="claim", data_type=TensorProto.FLOAT, dims=dims, raw_data=b"1234")
    assert fits_one_message(model)


def test_four_bit_weights_take_half_a_byte() -> None:
    tensor = helper.make_tensor("w", TensorProto.INT4, [6, 5], np.zeros(30, np.int8))
    assert weight_bytes(onnx.GraphProto(initializer=[tensor])) == 15 == len(tensor.raw_data or tensor.int32_data)


@pytest.mark.usefixtures("low_limit")
def test_graph_without_its_large_weights_is_a_model_still() -> None:
    light = without_large_weights(relu_chain())
    onnx.checker.check_model(light, full_check=True)
    assert light.ByteSize() < 2000 < relu_chain().ByteSize()
    assert [value.name for value in light.graph.input] == ["x", "w0", "w1", "w2"]


def test_operator_set_is_raised_without_large_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    proto = relu_chain(opset=13)
    proto.graph.input.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, [8, 8, 3, 3]))  # a default
    proto.graph.doc_string = "three convolutions"
    wanted = to_proto(load(proto, minimum_opset=21))
    seen: list[int] = []
    convert = version_converter.convert_version
    monkeypatch.setattr(
        version_converter, "convert_version", lambda m, opset: (seen.append(m.ByteSize()), convert(m, opset))[1]
    )
    monkeypatch.setattr(size, "LITTLE", 100)
    assert to_proto(load(proto, minimum_opset=21)) == wanted
    assert seen[0] < proto.ByteSize() / 3


@pytest.mark.usefixtures("low_limit")
def test_message_over_the_limit_runs_and_stays_whole() -> None:
    model, feed = relu_chain(), {"x": images()}
    assert not fits_one_message(model)
    over = Session(model, "the model").run(feed)["y"]
    np.testing.assert_array_equal(over, Session(to_outline(load(model)), "the model").run(feed)["y"])
    assert all(len(tensor.raw_data) for tensor in model.graph.initializer)


def test_model_over_the_limit_comes_out_as_one_under_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    under = quantize(relu_chain(), images(), work_dir=tmp_path / "under")
    beside: list[str] = []
    arrays = Outline.arrays
    monkeypatch.setattr(Outline, "arrays", lambda outline: (beside.extend(outline.constants), arrays(outline))[1])
    monkeypatch.setattr(size, "PROTOBUF_LIMIT", 2000)
    monkeypatch.setattr(size, "LITTLE", 100)
    over = quantize(relu_chain(opset=13), images(), work_dir=tmp_path / "over")
    assert {"w0", "w1", "w2"} <= set(beside), "weights were copied into messages"
    same = quantize(relu_chain(opset=13), images())
    assert over.model == same.model
    assert len(over.model.graph.node) == len(under.model.graph.node)
    monkeypatch.undo()
    assert quantize(relu_chain(opset=13), images()).model == over.model
