"""A little transformer encoder for the tests: token and position tables, attention with a mask, a GELU, pooling."""

from __future__ import annotations

import numpy as np
import onnx
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
    """One layer over sentences of padded tokens; one channel of its inner normalisation is ``outlier`` times larger.

    Args:
        norm: how the inner normalisation is written.
        residual: what the last addition adds; ``x1`` is the normalisation's output, which then has a second reader.
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


def sentences(count: int = 64, seed: int = 9, mask: str = "attention_mask") -> dict[str, np.ndarray]:
    """Padded sentences of 3 to 12 tokens; padding is token 0."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, TOKENS + 1, count)
    real = np.arange(TOKENS) < lengths[:, None]
    ids = np.where(real, rng.integers(1, WORDS, (count, TOKENS)), 0)
    return {"input_ids": ids.astype(np.int64), mask: real.astype(np.int64)}
