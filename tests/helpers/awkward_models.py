"""Little models of the kinds that quantizers stumble over, one builder a kind, with samples and what is to come out.

Constants are drawn at fixed seeds. Samples are standard normal unless a kind needs others.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import TensorProto, checker, helper, numpy_helper, parser
from small_models import SAME, build, normal, relu_chain, weight


@dataclass(frozen=True)
class Awkward:
    """A model, samples, and what a quantization must make of it.

    Attributes:
        model: float.
        samples: one array an input, first axis samples.
        layers: names of the layers that must be quantized: these and no others.
        left: for nodes that must be named as left in float, a part of the reason.
        judge: the same function in a form that onnxruntime runs; None where it runs the model itself.
    """

    model: onnx.ModelProto
    samples: dict[str, np.ndarray]
    layers: tuple[str, ...]
    left: dict[str, str] = field(default_factory=dict)
    judge: onnx.ModelProto | None = None


def convtranspose() -> Awkward:
    """Transposed convolutions: groups, output padding, uneven pads; with a bias and without."""
    model = build(
        """(float[N,6,5,5] x) => (float[N,M,H,W] y) {
            a = ConvTranspose<group=2,strides=[2,2],pads=[1,1,0,1],output_padding=[1,1]>(x, w0, b0)
            r = Relu(a)
            y = ConvTranspose<strides=[1,2],dilations=[2,1]>(r, w1) }""",
        w0=weight(1, 6, 4, 3, 3) * 2,
        b0=0.1 * normal(2, 8),
        w1=weight(3, 8, 3, 2, 3) * 2,
    )
    return Awkward(model, {"x": normal(4, 32, 6, 5, 5)}, ("a", "y"))


def if_conv() -> Awkward:
    """The only readers of a ReLU are convolutions inside the branches of an If."""
    model = build(
        f"""(float[N,3,8,8] x) => (float[N,4,8,8] y) {{
            c = Conv{SAME}(x, w0, b0)
            r = Relu(c)
            m = ReduceMax<keepdims=0>(x)
            flag = Greater(m, three)
            y = If(flag) <then_branch = left () => (float[N,4,8,8] p) {{ p = Conv{SAME}(r, w1) }},
                          else_branch = right () => (float[N,4,8,8] q) {{ q = Conv{SAME}(r, w2) }}> }}""",
        w0=weight(1, 8, 3, 3, 3),
        b0=0.1 * normal(2, 8),
        w1=weight(3, 4, 8, 3, 3),
        w2=weight(4, 4, 8, 3, 3),
        three=np.float32(3.9),
    )
    return Awkward(model, {"x": normal(6, 16, 3, 8, 8)}, ("c",), {"y": "branch"})


def loop_body() -> Awkward:
    """A convolution in the body of a Loop that reads the main graph's ReLU, and one in a Scan."""
    model = build(
        f"""(float[2,3,6,6] x) => (float[2,4,6,6] y, float[S,4,6,6] z) {{
            c = Conv{SAME}(x, w0)
            r = Relu(c)
            l = Loop(trips, , r) <body = turn (int64 i, bool go, float[2,4,6,6] s) => (bool on, float[2,4,6,6] t) {{
                on = Identity(go)
                e = Conv{SAME}(r, w1)
                h = Tanh(e)
                t = Add(s, h) }}>
            z = Scan<num_scan_inputs=1, body = each (float[4,6,6] v) => (float[4,6,6] o) {{
                u = Unsqueeze(v, axis)
                f = Conv{SAME}(u, w1)
                o = Squeeze(f, axis) }}>(r)
            y = Conv{SAME}(l, w1) }}""",
        w0=weight(1, 4, 3, 3, 3),
        w1=weight(2, 4, 4, 3, 3),
        trips=np.array(3),
        axis=np.array([0]),
    )
    return Awkward(model, {"x": normal(3, 16, 3, 6, 6)}, ("c", "y"), {"l": "loop body", "z": "loop body"})


def lstm() -> Awkward:
    """An LSTM in both directions with a matrix behind it."""
    model = build(
        """(float[T,N,8] x) => (float[T,N,5] y) {
            l, h = LSTM<hidden_size=6,direction="bidirectional">(x, w, u, b)
            p = Transpose<perm=[0,2,1,3]>(l)
            q = Reshape(p, shape)
            m = MatMul(q, w1)
            y = Add(m, b1) }""",
        w=0.3 * normal(3, 2, 24, 8),
        u=0.3 * normal(4, 2, 24, 6),
        b=0.1 * normal(5, 2, 48),
        shape=np.array([0, 0, 12]),
        w1=weight(6, 12, 5),
        b1=0.1 * normal(7, 5),
    )
    return Awkward(model, {"x": normal(7, 12, 32, 8)}, ("m",))


def gru() -> Awkward:
    """A convolution over time, a GRU, a matrix."""
    model = build(
        """(float[N,4,12] x) => (float[1,N,5] y) {
            c = Conv<pads=[1,1]>(x, w0, b0)
            r = Relu(c)
            t = Transpose<perm=[2,0,1]>(r)
            l, h = GRU<hidden_size=6,linear_before_reset=1>(t, w, u, b)
            m = MatMul(h, w1)
            y = Add(m, b1) }""",
        w0=weight(1, 8, 4, 3),
        b0=0.1 * normal(2, 8),
        w=0.5 * normal(3, 1, 18, 8),
        u=0.5 * normal(4, 1, 18, 6),
        b=0.1 * normal(5, 1, 36),
        w1=weight(6, 6, 5),
        b1=0.1 * normal(8, 5),
    )
    return Awkward(model, {"x": normal(7, 32, 4, 12)}, ("c", "m"))


def dynamic_size() -> Awkward:
    """Height and width are open; the size that a Resize makes is worked out at run time."""
    model = build(
        f"""(float[N,3,H,W] x) => (float[N,4,P,Q] y) {{
            c = Conv{SAME}(x, w0, b0)
            r = Relu(c)
            e = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r)
            s = Shape(r)
            hw = Slice(s, two, four)
            es = Shape(e)
            nc = Slice(es, zero, two)
            size = Concat<axis=0>(nc, hw)
            f = Resize<mode="nearest">(e, , , size)
            h = Add(f, r)
            y = Conv(h, w1, b1) }}""",
        w0=weight(0, 8, 3, 3, 3),
        b0=0.1 * normal(1, 8),
        w1=weight(2, 4, 8, 3, 3),
        b1=0.1 * normal(3, 4),
        zero=np.array([0]),
        two=np.array([2]),
        four=np.array([4]),
    )
    return Awkward(model, {"x": normal(7, 16, 3, 10, 14)}, ("c", "y"))


def function() -> Awkward:
    """Layers inside functions of the model itself, one of them called twice and one inside another."""
    model = parser.parse_model(f"""
        <ir_version: 8, opset_import: ["": 17, "own": 1]>
        g (float[N,3,8,8] x) => (float[N,8,6,6] y) {{
            a = own.block(x, w0, b0)
            b = own.block(a, w1, b0)
            y = Conv(b, w2) }}
        <domain: "own", opset_import: ["": 17]>
        half (x) => (y) {{
            r = Relu(x)
            c = Constant<value = float {{0.5}}>()
            y = Mul(r, c) }}
        <domain: "own", opset_import: ["": 17, "own": 1]>
        block (x, w, b) => (y) {{
            c = Conv{SAME}(x, w, b)
            y = own.half(c) }}
    """)
    constants = {
        "w0": weight(1, 8, 3, 3, 3),
        "w1": 2 * weight(2, 8, 8, 3, 3),
        "w2": weight(3, 8, 8, 3, 3),
        "b0": 0.1 * normal(4, 8),
    }
    model.graph.initializer.extend(numpy_helper.from_array(v, k) for k, v in constants.items())
    checker.check_model(model)
    return Awkward(model, {"x": normal(7, 16, 3, 8, 8)}, ("Conv_0", "Conv_4", "Conv_8"))


def attention() -> Awkward:
    """Self-attention of two heads with its residual and normalization, over open batch and length."""
    model = build(
        """(float[N,T,16] x) => (float[N,T,16] y) {
            q0 = MatMul(x, wq)  q1 = Add(q0, bq)  q2 = Reshape(q1, heads)  q = Transpose<perm=[0,2,1,3]>(q2)
            k0 = MatMul(x, wk)  k1 = Add(k0, bk)  k2 = Reshape(k1, heads)  k = Transpose<perm=[0,2,3,1]>(k2)
            v0 = MatMul(x, wv)  v1 = Add(v0, bv)  v2 = Reshape(v1, heads)  v = Transpose<perm=[0,2,1,3]>(v2)
            s0 = MatMul(q, k)  s1 = Mul(s0, root)  s = Softmax<axis=-1>(s1)
            c0 = MatMul(s, v)  c1 = Transpose<perm=[0,2,1,3]>(c0)  c = Reshape(c1, back)
            o0 = MatMul(c, wo)  o = Add(o0, bo)  r = Add(x, o)
            n = LayerNormalization<axis=-1>(r, gamma, beta)
            f0 = MatMul(n, w1)  f1 = Add(f0, b1)  f = Relu(f1)
            g0 = MatMul(f, w2)  g1 = Add(g0, b2)
            y = Add(g1, n) }""",
        **{f"w{n}": weight(i, 16, 16) for i, n in enumerate("qkvo")},
        **{f"b{n}": 0.1 * normal(10 + i, 16) for i, n in enumerate("qkvo")},
        w1=weight(5, 16, 32),
        b1=0.1 * normal(15, 32),
        w2=weight(6, 32, 16),
        b2=0.1 * normal(16, 16),
        gamma=1 + 0.1 * normal(17, 16),
        beta=0.1 * normal(18, 16),
        heads=np.array([0, 0, 2, 8]),
        back=np.array([0, 0, 16]),
        root=np.float32(8**-0.5),
    )
    return Awkward(model, {"x": normal(7, 16, 12, 16)}, ("q0", "k0", "v0", "o0", "f0", "g0"))


def two_convolutions(opset: int = 17) -> onnx.ModelProto:
    """A convolution, a ReLU, a convolution."""
    return build(
        """(float[N,3,8,8] x) => (float[N,4,4,4] y) {
            c = Conv(x, w0, b0)  r = Relu(c)  y = Conv(r, w1) }""",
        opset,
        w0=weight(1, 8, 3, 3, 3),
        b0=0.1 * normal(2, 8),
        w1=weight(3, 4, 8, 3, 3),
    )


def external() -> Awkward:
    """Two convolutions; a test stores their weights in a file of its own."""
    return Awkward(two_convolutions(), {"x": normal(7, 16, 3, 8, 8)}, ("c", "y"))


def opset9() -> Awkward:
    """Operator set 9: attributes that became inputs since, initializers listed as inputs (IR 3)."""
    model = build(
        f"""(float[N,3,8,8] x) => (float[N,5] y) {{
            c = Conv{SAME}(x, w0, b0)
            r = Clip<min=0.0,max=6.0>(c)
            n = BatchNormalization(r, gamma, beta, mean, variance)
            u = Upsample<mode="nearest">(n, scales)
            p = Pad<pads=[0,0,1,1,0,0,1,1]>(u)
            d = Conv<strides=[2,2]>(p, w1)
            m = ReduceMean<axes=[2,3],keepdims=1>(d)
            s = Squeeze<axes=[2,3]>(m)
            e = Dropout<ratio=0.3>(s)
            y = Gemm<transB=1>(e, w2, b2) }}""",
        opset=9,
        w0=weight(1, 8, 3, 3, 3),
        b0=0.1 * normal(2, 8),
        gamma=1 + 0.1 * normal(3, 8),
        beta=0.1 * normal(4, 8),
        mean=0.1 * normal(5, 8),
        variance=np.ones(8, np.float32),
        scales=np.array([1, 1, 2, 2], np.float32),
        w1=weight(6, 6, 8, 3, 3),
        w2=weight(8, 5, 6),
        b2=0.1 * normal(9, 5),
    )
    model.ir_version = 3
    model.graph.input.extend(
        helper.make_tensor_value_info(t.name, t.data_type, t.dims) for t in model.graph.initializer
    )
    checker.check_model(model)
    return Awkward(model, {"x": normal(7, 16, 3, 8, 8)}, ("c", "d", "y"))


def half() -> Awkward:
    """float16 weights, inputs and outputs."""
    return Awkward(
        _halved(two_convolutions(), np.float16), {"x": normal(7, 16, 3, 8, 8).astype(np.float16)}, ("c", "y")
    )


def bfloat16() -> Awkward:
    """bfloat16 inside, behind casts; onnxruntime has no such kernels on the CPU."""
    plain = two_convolutions(26)
    rounded = onnx.ModelProto()
    rounded.CopyFrom(plain)
    for tensor in rounded.graph.initializer:
        raw = numpy_helper.to_array(tensor).view(np.uint32) & np.uint32(0xFFFF0000)
        tensor.CopyFrom(numpy_helper.from_array(raw.view(np.float32), tensor.name))
    model = onnx.ModelProto()
    model.CopyFrom(rounded)
    for tensor in model.graph.initializer:
        bits = (numpy_helper.to_array(tensor).view(np.uint32) >> 16).astype(np.uint16)
        tensor.CopyFrom(helper.make_tensor(tensor.name, TensorProto.BFLOAT16, bits.shape, bits.tobytes(), raw=True))
    model.graph.node[0].input[0], model.graph.node[2].output[0] = "narrow", "result"
    down = helper.make_node("Cast", ["x"], ["narrow"], "narrow", to=TensorProto.BFLOAT16)
    up = helper.make_node("Cast", ["result"], ["y"], "widen", to=TensorProto.FLOAT)
    nodes = [down, *(onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node), up]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    checker.check_model(model, full_check=True)
    return Awkward(model, {"x": normal(7, 16, 3, 8, 8)}, ("c", "y"), judge=rounded)


def embedding() -> Awkward:
    """Rows of a table, added up with positions, and two matrices."""
    model = build(
        """(int64[N,T] x) => (float[N,T,7] y) {
            e = Gather(table, x)
            p = Gather(places, index)
            s = Add(e, p)
            h = MatMul(s, w0)  a = Add(h, b0)  r = Relu(a)
            y = MatMul(r, w1) }""",
        table=normal(1, 50, 16),
        places=0.3 * normal(2, 12, 16),
        index=np.arange(12),
        w0=weight(3, 16, 24),
        b0=0.1 * normal(4, 24),
        w1=weight(5, 24, 7),
    )
    return Awkward(model, {"x": np.random.default_rng(6).integers(0, 50, (32, 12))}, ("h", "y"))


def dead_channels() -> Awkward:
    """Channels whose weights are next to nothing under a large bias: biases overflow 32 bits if taken as they come."""
    w0, b0 = weight(1, 8, 3, 3, 3), 0.1 * normal(2, 8)
    w0[2] *= 1e-9
    w0[5] = 0
    b0[2], b0[5] = 40.0, -30.0
    w1, b1 = weight(3, 8, 8, 3, 3), 0.1 * normal(4, 8)
    w1[0] *= 1e-8
    b1[0] = 25.0
    model = build(
        f"""(float[N,3,8,8] x) => (float[N,8,8,8] y) {{
            a = Conv{SAME}(x, w0, b0)  r = Relu(a)  y = Conv{SAME}(r, w1, b1) }}""",
        w0=w0,
        b0=b0,
        w1=w1,
        b1=b1,
    )
    return Awkward(model, _images(), ("a", "y"))


def shared_weights() -> Awkward:
    """One weight in four layers, one of them transposed; one bias in two; one input read twice."""
    model = build(
        f"""(float[N,8,8,8] x) => (float[N,8,8,8] y, float[N,8,8,8] z) {{
            a = Conv{SAME}(x, w, b)
            r = Relu(a)
            c = Conv{SAME}(r, w, b)
            d = Conv<pads=[2,2,2,2],dilations=[2,2]>(r, w)
            s = Add(c, d)
            y = ConvTranspose{SAME}(s, w)
            z = Conv{SAME}(x, v) }}""",
        w=weight(1, 8, 8, 3, 3),
        v=weight(3, 8, 8, 3, 3),
        b=0.1 * normal(2, 8),
    )
    return Awkward(model, {"x": normal(7, 16, 8, 8, 8)}, ("a", "c", "d", "y", "z"))


def conv1d3d() -> Awkward:
    """Convolutions over one and over three axes, and a transposed one over three."""
    model = build(
        """(float[N,3,16] x, float[N,2,5,6,7] v) => (float[N,4,14] y, float[N,2,P,Q,R] z) {
            a = Conv<pads=[2,0],dilations=[2]>(x, w0, b0)  r = Relu(a)  y = Conv(r, w1)
            d = Conv<group=2,pads=[1,1,1,1,1,1]>(v, w2, b2)  s = Relu(d)
            z = ConvTranspose<strides=[1,2,1]>(s, w3) }""",
        w0=weight(1, 6, 3, 3),
        b0=0.1 * normal(2, 6),
        w1=weight(3, 4, 6, 1),
        w2=weight(4, 4, 1, 3, 3, 3),
        b2=0.1 * normal(5, 4),
        w3=weight(6, 4, 2, 2, 2, 2),
    )
    return Awkward(model, {"x": normal(7, 16, 3, 16), "v": normal(8, 16, 2, 5, 6, 7)}, ("a", "y", "d", "z"))


def dynamic_sequence() -> Awkward:
    """Open batch and length, with positions sliced to the length at run time."""
    model = build(
        """(float[N,T,8] x) => (float[N,T,6] y, int64[2] n) {
            s = Shape(x)
            n = Slice(s, zero, two)
            t = Slice(s, one, two)
            p = Slice(places, zero, t)
            a = Add(x, p)
            h = MatMul(a, w0)  i = Add(h, b0)  r = Relu(i)
            y = MatMul(r, w1) }""",
        places=0.2 * normal(1, 40, 8),
        w0=weight(2, 8, 16),
        b0=0.1 * normal(3, 16),
        w1=weight(4, 16, 6),
        zero=np.array([0]),
        one=np.array([1]),
        two=np.array([2]),
    )
    return Awkward(model, {"x": normal(7, 24, 11, 8)}, ("h", "y"))


def overridable_weight() -> Awkward:
    """A weight that is also a graph input: a caller may put another in its place."""
    model = relu_chain()
    weights = {t.name: t for t in model.graph.initializer}
    model.graph.input.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, weights["w1"].dims))
    checker.check_model(model)
    return Awkward(model, _images(), ("c0", "y"), {"c1": "w1 is also a graph input"})


def weight_given_out() -> Awkward:
    """A weight that is also a graph output: the caller sees the float values."""
    model = relu_chain()
    weights = {t.name: t for t in model.graph.initializer}
    model.graph.node.append(helper.make_node("Identity", ["w1"], ["seen"], "seen"))
    model.graph.output.append(helper.make_tensor_value_info("seen", TensorProto.FLOAT, weights["w1"].dims))
    model.graph.output.append(helper.make_tensor_value_info("w2", TensorProto.FLOAT, weights["w2"].dims))
    checker.check_model(model)
    return Awkward(model, _images(), ("c0", "c1", "y"))


def other_domain() -> Awkward:
    """An operator of another maker between layers, and one that would be a layer if it were standard."""
    model = build(
        """(float[N,8] x) => (float[N,8] y) {
            a = Gemm(x, w0)
            b = Relu(a)
            c = MatMul(b, w1)
            y = MatMul(c, w2) }""",
        w0=weight(1, 8, 8),
        w1=weight(2, 8, 8),
        w2=weight(3, 8, 8),
    )
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    model.graph.node[1].op_type, model.graph.node[1].domain = "QuickGelu", "com.microsoft"
    model.graph.node[2].op_type, model.graph.node[2].domain = "FusedMatMul", "com.microsoft"
    checker.check_model(model)
    return Awkward(model, {"x": normal(7, 64, 8)}, ("a", "y"))


def folded_constants() -> Awkward:
    """Weights behind Constant, Identity, Cast, Transpose, Reshape and Mul nodes."""
    model = build(
        f"""(float[N,3,8,8] x) => (float[N,5] y) {{
            i0 = Identity(w0)
            i1 = Identity(i0)
            c = Conv{SAME}(x, i1)
            t = Transpose<perm=[3,2,0,1]>(w1)
            s = Reshape(t, square)
            d = Conv{SAME}(c, s)
            g = GlobalAveragePool(d)
            f = Flatten(g)
            k = Cast<to=1>(w2)
            y = MatMul(f, k) }}""",
        w0=weight(1, 8, 3, 3, 3),
        w1=0.2 * normal(2, 3, 3, 8, 8),
        square=np.array([8, 8, 3, 3]),
        w2=weight(3, 8, 5).astype(np.float64),
    )
    return Awkward(model, _images(), ("c", "d", "y"))


def bad_order() -> Awkward:
    """The nodes stand last to first."""
    model = relu_chain()
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in reversed(model.graph.node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return Awkward(model, _images(), ("c0", "c1", "y"), judge=relu_chain())


def thousands_of_nodes() -> Awkward:
    """Many nodes in a row between two convolutions."""
    count = 1200
    ops, names = ("Relu", "Neg", "Neg"), "abc"
    steps = "\n".join(f"{names[i % 3]}{i} = {ops[i % 3]}({names[(i + 2) % 3]}{i - 1})" for i in range(1, count + 1))
    text = f"""(float[N,3,4,4] x) => (float[N,4,4,4] y) {{
        k = Conv(x, w0)
        a0 = Relu(k)
        {steps}
        y = Conv({names[count % 3]}{count}, w1) }}"""
    model = build(text, w0=weight(1, 4, 3, 1, 1), w1=weight(2, 4, 4, 1, 1))
    return Awkward(model, {"x": normal(7, 16, 3, 4, 4)}, ("k", "y"))


def odd_names() -> Awkward:
    """Names outside ASCII, names that a quantizer would choose itself, equal and empty node names, a slash, a dot."""
    model = build(
        f"""(float[N,3,8,8] x) => (float[N,8,8,8] y) {{
            a = Conv{SAME}(x, w, b)
            r = Relu(a)
            c = Conv{SAME}(r, v)
            d = Relu(c)
            y = Conv{SAME}(d, u) }}""",
        w=weight(1, 8, 3, 3, 3),
        b=0.1 * normal(2, 8),
        v=weight(3, 8, 8, 3, 3),
        u=weight(4, 8, 8, 3, 3),
    )
    names = {
        "a": "größe/层",
        "r": "x/quantized",
        "c": "x/scale",
        "d": "w/dequantized",
        "w": "../x",
        "v": "x/zero_point",
    }
    for node in model.graph.node:
        node.input[:] = [names.get(n, n) for n in node.input]
        node.output[:] = [names.get(n, n) for n in node.output]
    for tensor in model.graph.initializer:
        tensor.name = names.get(tensor.name, tensor.name)
    judge = onnx.ModelProto()
    judge.CopyFrom(model)
    for node, name in zip(model.graph.node, ("слой", "same", "same", "", "x/quantized"), strict=True):
        node.name = name
    checker.check_model(model)
    # onnxruntime refuses nodes of one name, which the standard allows.
    return Awkward(model, _images(), ("слой", "same_2", "x/quantized"), judge=judge)


def transposed_everything() -> Awkward:
    """Transposed convolutions over one, two and three axes, with every attribute."""
    model = build(
        """(float[N,4,9] u, float[N,4,5,6] v, float[N,2,3,4,3] w)
            => (float[N,A,B] a, float[N,C,D,E] d, float[N,F,G,H,I] g, float[N,J,K,L] j) {
            a0 = ConvTranspose<strides=[3],output_padding=[2],pads=[1,0]>(u, w0, b0)
            a = ConvTranspose<group=3,dilations=[2]>(a0, w1)
            c = ConvTranspose<auto_pad="SAME_UPPER",strides=[2,2]>(v, w2)
            e = Relu(c)
            d = ConvTranspose<group=2,auto_pad="VALID",strides=[2,1]>(e, w3, b3)
            j = ConvTranspose<output_shape=[11,13],strides=[2,2]>(v, w2)
            f = ConvTranspose<pads=[0,1,0,0,0,1],strides=[2,1,2],output_padding=[1,0,0]>(w, w4)
            g = Clip(f, low, high) }""",
        w0=weight(1, 4, 3, 4) * 1.5,
        b0=0.1 * normal(2, 3),
        w1=weight(3, 3, 2, 3),
        w2=weight(4, 4, 6, 3, 3) * 1.5,
        w3=weight(5, 6, 2, 2, 3),
        b3=0.1 * normal(6, 4),
        w4=weight(7, 2, 3, 2, 3, 2),
        low=np.float32(-1),
        high=np.float32(2),
    )
    samples = {"u": normal(8, 32, 4, 9), "v": normal(9, 32, 4, 5, 6), "w": normal(10, 32, 2, 3, 4, 3)}
    return Awkward(model, samples, ("a0", "a", "c", "d", "j", "f"))


def several_ends() -> Awkward:
    """Several inputs of several types, outputs within the network, one output that is an input."""
    model = build(
        f"""(float[N,3,8,8] x, float[N,8] v, int64[N] k)
            => (float[N,8,8,8] a, float[N,8,8,8] r, float[N,4] y, int64[N] i) {{
            a = Conv{SAME}(x, w0, b0)
            r = Relu(a)
            g = GlobalAveragePool(r)
            f = Flatten(g)
            e = Gather(table, k)
            s = Add(f, v)
            t = Concat<axis=1>(s, e)
            y = Gemm(t, w1, b1)
            i = Identity(k) }}""",
        w0=weight(1, 8, 3, 3, 3),
        b0=0.1 * normal(2, 8),
        table=normal(3, 10, 4),
        w1=weight(4, 12, 4),
        b1=0.1 * normal(5, 4),
    )
    integers = np.random.default_rng(6).integers(0, 10, 16)
    return Awkward(model, {"x": normal(7, 16, 3, 8, 8), "v": normal(8, 16, 8), "k": integers}, ("a", "y"))


def _images() -> dict[str, np.ndarray]:
    return {"x": normal(50, 16, 3, 8, 8)}


def _halved(model: onnx.ModelProto, dtype: type) -> onnx.ModelProto:
    result = onnx.ModelProto()
    result.CopyFrom(model)
    for tensor in result.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(dtype), tensor.name))
    for value in (*result.graph.input, *result.graph.output):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    checker.check_model(result, full_check=True)
    return result


KINDS: dict[str, Callable[[], Awkward]] = {
    builder.__name__: builder
    for builder in (
        convtranspose,
        if_conv,
        loop_body,
        lstm,
        gru,
        dynamic_size,
        function,
        attention,
        external,
        opset9,
        half,
        bfloat16,
        embedding,
        dead_channels,
        shared_weights,
        conv1d3d,
        dynamic_sequence,
        overridable_weight,
        weight_given_out,
        other_domain,
        folded_constants,
        bad_order,
        thousands_of_nodes,
        odd_names,
        transposed_everything,
        several_ends,
    )
}
