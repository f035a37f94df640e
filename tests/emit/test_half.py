"""Half-precision models: what is not quantized takes no more space than it had."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from small_models import build, normal
from small_transformer import encoder, sentences

from onnxq.api import quantize
from onnxq.config import Config
from onnxq.emit.half import narrow_constants
from onnxq.runtime.session import Session
from onnxq.verify import check_levels


def halved(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its weights in half precision, and everything computed so."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            values = numpy_helper.to_array(tensor).clip(-65504, 65504)
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), tensor.name))
    for node in result.graph.node:
        if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT:
            node.attribute[0].i = TensorProto.FLOAT16
    result.graph.output[0].type.tensor_type.elem_type = TensorProto.FLOAT16
    return result


def test_tables_left_in_float_stay_half_floats() -> None:
    model = halved(encoder())
    result = quantize(model, sentences(), Config(embeddings=32)).model
    stored = {t.name: t.data_type for t in result.graph.initializer if t.dims and t.dims[0] == 300}
    assert stored == {"table/float16": TensorProto.FLOAT16}
    assert all(check.ok for check in check_levels(result, [sentences(4)]))


def test_a_float_model_is_left_alone() -> None:
    result = quantize(encoder(), sentences(), Config(embeddings=32)).model
    assert not [t for t in result.graph.initializer if t.data_type == TensorProto.FLOAT16]


def test_only_constants_that_lose_nothing_are_narrowed() -> None:
    exact = normal(0, 100, 50).astype(np.float16).astype(np.float32)
    model = build(
        "(float[100, 50] x) => (float[100, 50] y) { u = Add(x, a)  v = Add(u, b)  w = Add(v, c)  y = Add(w, d) }",
        a=exact,
        b=normal(1, 100, 50),
        c=exact[:1],
        d=np.full((100, 50), 1e6, np.float32),
    )
    wanted = Session(model, "the model").run({"x": exact})["y"]
    narrow_constants(model)
    kinds = {t.name: t.data_type for t in model.graph.initializer}
    half, single = TensorProto.FLOAT16, TensorProto.FLOAT
    assert kinds == {"a/float16": half, "b": single, "c": single, "d": single}
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(Session(model, "the model").run({"x": exact})["y"], wanted)
