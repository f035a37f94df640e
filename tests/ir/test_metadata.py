"""What a model file says besides its graph, and of its parts, survives."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from small_models import build, normal

import onnxq
from onnxq.ir.load import load
from onnxq.ir.save import to_proto


def documented() -> onnx.ModelProto:
    model = build(
        "(float[batch,3,height,width] x, float[batch,2] unused) => (float[batch,classes] y, float[batch,8,hh,ww] r) "
        "{ c = Conv(x, w) r = Relu(c) g = GlobalAveragePool(r) f = Flatten(g) y = MatMul(f, v) }",
        w=normal(1, 8, 3, 3, 3) / 5,
        v=normal(2, 8, 5) / 3,
    )
    model.ir_version = 10
    model.doc_string, model.producer_name, model.model_version, model.domain = "model", "maker", 3, "org.example"
    model.metadata_props.add(key="license", value="MIT")
    graph = model.graph
    graph.doc_string = "graph"
    graph.metadata_props.add(key="of", value="graph")
    for kind, messages in (
        ("node", graph.node),
        ("constant", graph.initializer),
        ("end", (*graph.input, *graph.output)),
    ):
        for message in messages:
            message.doc_string = f"{kind} {message.name}"
            message.metadata_props.add(key="of", value=message.name)
    graph.input[0].type.denotation = "IMAGE"
    for dim, text in zip(graph.input[0].type.tensor_type.shape.dim, ("DATA_BATCH", "DATA_CHANNEL"), strict=False):
        dim.denotation = text
    onnx.checker.check_model(model)
    return model


@pytest.mark.parametrize(
    "config", [None, onnxq.Config(), onnxq.Config(weights=4), onnxq.Config(weights=16, activations=32)]
)
def test_documentation_denotations_and_properties_survive(config: onnxq.Config | None) -> None:
    model = documented()
    if config is None:
        made = to_proto(load(model))
    else:
        samples = {"x": normal(3, 8, 3, 9, 7), "unused": np.zeros((8, 2), np.float32)}
        made = onnxq.quantize(model, samples, config).model
    for field in ("doc_string", "producer_name", "model_version", "domain", "metadata_props"):
        assert getattr(made, field) == getattr(model, field)
    assert (made.graph.doc_string, made.graph.metadata_props) == ("graph", model.graph.metadata_props)
    assert list(made.graph.input) == list(model.graph.input) and list(made.graph.output) == list(model.graph.output)
    nodes = {n.name: (n.doc_string, list(n.metadata_props)) for n in made.graph.node}
    for node in model.graph.node:
        assert nodes.get(node.name, (node.doc_string, list(node.metadata_props)))[0] == f"node {node.name}"
        assert len(nodes.get(node.name, ("", [0]))[1]) == 1
    assert {"constant w", "constant v"} <= {t.doc_string for t in made.graph.initializer}


def test_an_output_whose_type_changes_with_its_precision_has_the_type_that_holds() -> None:
    model = build("(float16[N,4] x) => (float16[N,2] y) { y = MatMul(x, w) }", w=normal(1, 4, 2).astype(np.float16))
    model.graph.output[0].doc_string = "half"
    made = to_proto(load(model))
    onnx.checker.check_model(made, full_check=True)
    assert made.graph.output[0].doc_string == "half"
    assert made.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT16


def test_shapes_that_were_not_said_are_filled_in() -> None:
    model = build("(float[N,4] x) => (float[N,2] y) { y = MatMul(x, w) }", w=normal(1, 4, 2))
    model.graph.output[0].type.tensor_type.ClearField("shape")
    assert load(model).outputs[0].shape == (None, 2)
