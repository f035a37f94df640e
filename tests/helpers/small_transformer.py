"""A little transformer encoder for the tests: token and position tables, attention with a mask, a GELU, pooling."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from small_models import build, normal

WIDTH, HEADS, INNER, TOKENS, WORDS = 32, 2, 64, 12, 300

ATTENTION = """
    q0 = MatMul(x0, Wq)  q = Add(q0, bq)  k0 = MatMul(x0, Wk)  k = Add(bk, k0)  v0 = MatMul(x0, Wv)  v = Add(v0, bv)
    qh = Reshape(q, heads)  kh = Reshape(k, heads)  vh = Reshape(v, heads)
    qt = Transpose<perm=[0,2,1,3]>(qh)  kt = Transpose<perm=[0,2,3,1]>(kh)  vt = Transpose<perm=[0,2,1,3]>(vh)
    scores = MatMul(qt, kt)  scaled = Mul(scores, root)  masked = Add(scaled, never)
    weights = Softmax<axis=-1>(masked)  context = MatMul(weights, vt)
    ct = Transpose<perm=[0,2,1,3]>(context)  cr = Reshape(ct, joined)
    o0 = MatMul(cr, Wo)  o = Add(o0, bo)  r1 = Add(o, x0)
"""
FUSED = "x1 = LayerNormalization<axis=-1, epsilon=0.00001>(r1, g1, h1)"
DECOMPOSED = """
    mean = ReduceMean<axes=[-1]>(r1)  centred = Sub(r1, mean)  square = Mul(centred, centred)
    variance = ReduceMean<axes=[-1]>(square)  safe = Add(variance, epsilon)  deviation = Sqrt(safe)
    unit = Div(centred, deviation)  spread = Mul(unit, g1)  x1 = Add(spread, h1)
"""
REST = """
    i0 = MatMul(x1, Wi)  i = Add(i0, bi)  i1 = Div(i, root2)  i2 = Erf(i1)  i3 = Add(i2, one)  i4 = Mul(i, i3)
    gelu = Mul(i4, half)  d0 = MatMul(gelu, Wd)  d = Add(d0, bd)
"""
POOLED = """
    r2 = Add(d, {residual})  kept = Cast<to=1>(attention_mask)  wide = Unsqueeze(kept, last)  real = Mul(r2, wide)
    total = ReduceSum<keepdims=0>(real, first)  count = ReduceSum<keepdims=0>(wide, first)  y = Div(total, count)
"""
MASKED = """
    given = Unsqueeze(attention_mask, middle)  is_real = Cast<to=9>(given)  never = Where(is_real, zero, lowest)
"""


def encoder(
    *, norm: str = FUSED, residual: str = "x1", outlier: float = 8.0, mask: str = "attention_mask"
) -> onnx.ModelProto:
    """One layer over sentences of padded tokens; one channel of its inner normalization is ``outlier`` times larger.

    Args:
        norm: how the inner normalization is written.
        residual: what the last addition adds; ``x1`` is the normalization's output, which then has a second reader.
        outlier: factor of channel 3.
        mask: name of the mask's input.
    """
    text = (
        "(int64[b, t] input_ids, int64[b, t] attention_mask) => (float[b, n] y) {"
        "words = Gather(table, input_ids)  length = Shape(input_ids)  tokens = Gather(length, index)"
        "until = Unsqueeze(tokens, zeroth)  upto = Slice(every, start, until)  places = Gather(positions, upto)"
        f"x0 = Add(words, places) {MASKED} {ATTENTION} {norm} {REST} {POOLED.format(residual=residual)} }}"
    )
    rng = np.random.default_rng(5)

    def matrix(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[0])).astype(np.float32)

    def vector(size: int) -> np.ndarray:
        return (0.1 * rng.standard_normal(size)).astype(np.float32)

    g1 = np.ones(WIDTH, np.float32)
    g1[3] = outlier
    constants = {
        "table": normal(1, WORDS, WIDTH), "positions": 0.3 * normal(2, 20, WIDTH), "index": np.int64(1),
        "every": np.arange(20), "zeroth": np.array([0]), "start": np.array([0]), "middle": np.array([1, 2]),
        "last": np.array([2]), "first": np.array([1]), "zero": np.float32(0), "one": np.float32(1),
        "half": np.float32(0.5), "root2": np.float32(np.sqrt(2)), "lowest": np.finfo(np.float32).min,
        "root": np.float32(1 / np.sqrt(WIDTH / HEADS)), "epsilon": np.float32(1e-5),
        "heads": np.array([0, 0, HEADS, WIDTH // HEADS]), "joined": np.array([0, 0, WIDTH]),
        "g1": g1, "h1": vector(WIDTH),
        "Wi": matrix(WIDTH, INNER), "bi": vector(INNER), "Wd": matrix(INNER, WIDTH), "bd": vector(WIDTH),
        **{f"W{n}": matrix(WIDTH, WIDTH) for n in "qkvo"}, **{f"b{n}": vector(WIDTH) for n in "qkvo"},
    }  # fmt: skip
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    return build(text.replace("attention_mask", mask), **arrays)


def fused_encoder(attention: str) -> onnx.ModelProto:
    """The same with Gelu as one operator and attention as another.

    Args:
        attention: ``onnx``, or ``microsoft`` for onnxruntime's own, which holds the matrices before it too.
    """
    model = encoder()
    fused = {"i1", "i2", "i3", "i4"} | set(
        ["qh", "kh", "vh", "qt", "kt", "vt", "scores", "scaled", "masked", "weights", "context", "ct"]
    )
    fused |= set(["q0", "k0", "v0", "q", "k", "v"]) if attention == "microsoft" else set()
    arrays = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    nodes = []
    for node in model.graph.node:
        if node.name == "gelu":
            node = helper.make_node("Gelu", ["i"], ["gelu"], "gelu")
        if node.name == "cr" and attention == "onnx":
            # The mask has to have a row for each query.
            nodes.append(helper.make_node("Mul", ["x0", "zero"], ["zeros"], "zeros"))
            nodes.append(helper.make_node("ReduceSum", ["zeros", "last"], ["rows"], "rows"))
            nodes.append(helper.make_node("Unsqueeze", ["rows", "first"], ["queries"], "queries"))
            nodes.append(helper.make_node("Add", ["queries", "never"], ["mask"], "mask"))
            heads = {"q_num_heads": HEADS, "kv_num_heads": HEADS}
            node = helper.make_node("Attention", ["q", "k", "v", "mask"], ["cr"], "cr", **heads)
        elif node.name == "cr":
            nodes.append(helper.make_node("Cast", ["attention_mask"], ["real32"], "real32", to=TensorProto.INT32))
            inputs = ["x0", "Wqkv", "bqkv", "real32"]
            node = helper.make_node("Attention", inputs, ["cr"], "cr", domain="com.microsoft", num_heads=HEADS)
        if node.name not in fused:
            nodes.append(onnx.NodeProto.FromString(node.SerializeToString()))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.opset_import[0].version, model.ir_version = (24, 11) if attention == "onnx" else (20, 9)
    if attention == "microsoft":
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
        for name, axis in (("W", 1), ("b", 0)):
            joined = np.concatenate([arrays[f"{name}{part}"] for part in "qkv"], axis)
            model.graph.initializer.append(numpy_helper.from_array(joined, f"{name}qkv"))
    read = {name for node in nodes for name in node.input}
    kept = [t for t in model.graph.initializer if t.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model


def sentences(count: int = 64, seed: int = 9, mask: str = "attention_mask") -> dict[str, np.ndarray]:
    """Padded sentences of 3 to 12 tokens; padding is token 0."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, TOKENS + 1, count)
    real = np.arange(TOKENS) < lengths[:, None]
    ids = np.where(real, rng.integers(1, WORDS, (count, TOKENS)), 0)
    return {"input_ids": ids.astype(np.int64), mask: real.astype(np.int64)}
