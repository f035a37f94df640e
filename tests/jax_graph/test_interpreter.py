"""The interpreter on whole little networks: agreement with onnxruntime, hooks, cuts and refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from small_models import build, conv_chain, images, normal, relu_chain, weight

from onnxq.errors import UnsupportedError
from onnxq.jax_graph.interpreter import Hooks, Program, read_program, unsupported

ROUNDING = 1e-5
"""Two float32 implementations of a few layers differ by some dozen roundings, relative to values of order 1."""


def runtime(model: onnx.ModelProto, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def compiled(program: Program, feed: dict[str, np.ndarray], hooks: Hooks | None = None) -> dict[str, np.ndarray]:
    run = jax.jit(lambda parameters, inputs: program.run(parameters, inputs, hooks))
    return {name: np.asarray(value) for name, value in run(program.parameters, feed).items()}


CONVOLUTIONS = {
    "pointwise": ("<strides=[2,2],pads=[1,0,0,1]>", (4, 6, 1, 1)),
    "depthwise": ("<group=6,strides=[2,1],pads=[1,1,0,2]>", (6, 1, 3, 3)),
    "depthwise_with_two_outputs_each": ("<group=6,dilations=[2,2],pads=[2,2,2,2]>", (12, 1, 3, 3)),
    "grouped": ("<group=2,strides=[2,2],pads=[1,1,1,1]>", (4, 3, 3, 3)),
    "dilated": ("<dilations=[2,1]>", (4, 6, 3, 2)),
    "same_lower": ('<auto_pad="SAME_LOWER",strides=[2,2]>', (4, 6, 3, 3)),
}


@pytest.mark.parametrize("attributes,shape", CONVOLUTIONS.values(), ids=CONVOLUTIONS.keys())
def test_each_lowering_of_a_convolution_computes_what_onnxruntime_does(attributes: str, shape: tuple[int, ...]) -> None:
    text = f"(float[N,6,9,8] x) => (float[N,M,H,W] y) {{ y = Conv{attributes}(x, w, b) }}"
    model = build(text, w=weight(1, *shape), b=normal(2, shape[0]))
    feed = {"x": normal(3, 2, 6, 9, 8)}
    np.testing.assert_allclose(
        compiled(read_program(model), feed)["y"], runtime(model, feed)["y"], rtol=ROUNDING, atol=ROUNDING
    )


@pytest.mark.parametrize("lowering", ["grouped", "pointwise"])
def test_other_devices_take_the_native_convolution_with_the_same_result(
    lowering: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    attributes, shape = CONVOLUTIONS[lowering]
    model = build(f"(float[N,6,9,8] x) => (float[N,M,H,W] y) {{ y = Conv{attributes}(x, w) }}", w=weight(1, *shape))
    feed = {"x": normal(3, 2, 6, 9, 8)}
    here = compiled(read_program(model), feed)["y"]
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    there = jax.make_jaxpr(lambda x: read_program(model).run(read_program(model).parameters, {"x": x}))(feed["x"])
    assert "conv_general_dilated" in str(there)
    made = jax.jit(lambda x: read_program(model).run(read_program(model).parameters, {"x": x})["y"])(feed["x"])
    np.testing.assert_allclose(made, here, rtol=ROUNDING, atol=ROUNDING)


def test_what_follows_from_shapes_is_known_while_tracing() -> None:
    model = build(
        """(float[N,3,8,8] x) => (float[N,192] y) {
            s = Shape(x) n = Gather<axis=0>(s, zero) u = Unsqueeze(n, axes) shape = Concat<axis=0>(u, rest)
            y = Reshape(x, shape) }""",
        zero=np.array(0),
        axes=np.array([0]),
        rest=np.array([-1]),
    )
    assert compiled(read_program(model), {"x": images(5)})["y"].shape == (5, 192)


def test_a_shape_that_depends_on_the_data_is_refused_by_name() -> None:
    model = build(
        "(float[4] x) => (float[N] y) { i = Cast<to=7>(x) y = Expand(one, i) }", one=np.ones((1, 1), np.float32)
    )
    with pytest.raises(UnsupportedError, match=r"node y \(Expand\).*operand i depends on the data"):
        compiled(read_program(model), {"x": np.ones(4, np.float32)})


def test_a_hook_on_a_read_changes_one_reader_only() -> None:
    model = build("(float[N,2] x) => (float[N,2] y, float[N,2] z) { y = Relu(x) z = Neg(x) }")
    made = compiled(read_program(model), {"x": np.ones((1, 2), np.float32)}, Hooks(reads={("x", "y"): lambda x: 3 * x}))
    assert made["y"].tolist() == [[3, 3]]
    assert made["z"].tolist() == [[-1, -1]]


def test_a_hook_on_a_tensor_changes_every_reader_and_the_output() -> None:
    model = build("(float[N,2] x) => (float[N,2] y, float[N,2] z) { y = Relu(x) z = Neg(y) }")
    made = compiled(read_program(model), {"x": np.ones((1, 2), np.float32)}, Hooks(makes={"y": lambda y: y + 1}))
    assert made["y"].tolist() == [[2, 2]]
    assert made["z"].tolist() == [[-2, -2]]


def test_a_hook_stands_in_for_a_parameter_that_is_not_given() -> None:
    model = relu_chain()
    program = read_program(model)
    rest = {name: value for name, value in program.parameters.items() if name != "w1"}
    hooks = Hooks(reads={("w1", "c1"): lambda _: jnp.asarray(program.parameters["w1"])})
    made = program.run(rest, {"x": jnp.asarray(images(2))}, hooks)["y"]
    np.testing.assert_allclose(made, runtime(model, {"x": images(2)})["y"], rtol=ROUNDING, atol=ROUNDING)


def residual() -> onnx.ModelProto:
    return conv_chain("a = Relu(c0)", "s = Add(c1, c0) d = Relu(s)")


def test_cuts_change_neither_values_nor_gradients() -> None:
    program = read_program(residual())
    x = jnp.asarray(images(4))

    def loss(parameters: dict[str, jax.Array], cuts: set[str] | None) -> jax.Array:
        return jnp.square(program.run(parameters, {"x": x}, cuts=cuts)["y"]).sum()

    plain, cut = (
        jax.jit(jax.value_and_grad(lambda p, cuts=cuts: loss(p, cuts)))(dict(program.parameters))
        for cuts in (None, {"c0", "c1", "y"})
    )
    for one, other in zip(jax.tree.leaves(plain), jax.tree.leaves(cut), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_only_tensors_that_cross_a_cut_are_kept() -> None:
    program = read_program(residual())
    assert program.crossing({"c0", "c1", "y"}) == {"c0", "c1", "y"}


def test_shapes_of_every_tensor_are_found_without_running() -> None:
    shapes = read_program(residual()).shapes({"x": jax.ShapeDtypeStruct((3, 3, 8, 8), np.float32)})
    assert shapes["s"].shape == (3, 8, 8, 8)


def test_every_node_that_cannot_run_is_named_at_once() -> None:
    model = build(
        """(float[N,4] x) => (float[N,4] y, float[N,4] z) {
            h = Hardmax(x) y = Relu(h)
            u = Unsqueeze(x, axes) i, j = MaxPool<kernel_shape=[1]>(u) z = Squeeze(i, axes) }""",
        axes=np.array([1]),
    )
    assert [(lack.node, lack.op, lack.opset, lack.detail) for lack in unsupported(model)] == [
        ("h", "Hardmax", 17, ""),
        ("i", "MaxPool", 17, "output 2"),
    ]
    with pytest.raises(UnsupportedError, match=r"h \(Hardmax of opset 17\); i \(MaxPool of opset 17, output 2\)"):
        read_program(model)


def test_an_operator_of_another_domain_is_named_with_it() -> None:
    model = build("(float[N,4] x) => (float[N,4] y) { y = Relu(x) }")
    model.graph.node[0].domain = "com.example"
    assert [str(lack) for lack in unsupported(model)] == ["y (com.example.Relu of opset 17)"]
