"""BERTs (uncased) as transformers publishes them, in the plain operators that torch's exporters write.

J. Devlin, M.-W. Chang, K. Lee, K. Toutanova, *BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding*, NAACL 2019, section 3: 12 layers, 768 hidden units, 12 heads. MiniLM has the same architecture in
another size (W. Wang et al., *MiniLM: Deep Self-Attention Distillation*, NeurIPS 2020); ``all-MiniLM-L6-v2`` keeps
every second of its 12 layers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from onnx import TensorProto

from onnxq.models.network import Axis, Network, Writer

Head = Literal["pooler", "question_answering", "none"]


@dataclass(frozen=True)
class Size:
    """Sizes in which BERTs differ: layers, width, attention heads, and width inside the perceptron."""

    layers: int
    hidden: int
    heads: int
    inner: int


BASE, MINILM_L6 = Size(12, 768, 12, 3072), Size(6, 384, 12, 1536)
WORDS, POSITIONS, TYPES = 30522, 512, 2
EPSILON = 1e-12
"""Added to the variance of a layer normalization, as BERT was trained."""

TOKENS, MASK, SEGMENTS = "input_ids", "attention_mask", "token_type_ids"
INPUTS: list[tuple[str, int, tuple[Axis, ...]]] = [
    (name, TensorProto.INT64, ("batch", "sequence")) for name in (TOKENS, MASK, SEGMENTS)
]


def bert_base(head: Head = "pooler", *, plain_normalisation: bool = False, size: Size = BASE) -> Network:
    """BERT-Base, uncased.

    Args:
        head: ``pooler`` gives ``last_hidden_state`` and ``pooler_output`` (BertModel, 109,482,240 parameters);
            ``none`` leaves the pooler out (108,891,648); ``question_answering`` gives ``start_logits`` and
            ``end_logits`` instead (BertForQuestionAnswering, 108,893,186).
        plain_normalisation: write each layer normalization as nine elementwise operators and means, as exporters
            do below operator set 17, instead of one LayerNormalization.
        size: of another network of this architecture.

    Returns:
        A network with inputs ``input_ids``, ``attention_mask`` and ``token_type_ids``, (batch, sequence), int64.
    """
    writer = _Transformer(plain_normalisation, size)
    x = writer.encoder()
    axes: tuple[Axis, ...] = ("batch", "sequence", size.hidden)
    hidden = ("last_hidden_state", TensorProto.FLOAT, axes)
    if head == "question_answering":
        writer.answers(x)
        spans = [(n, TensorProto.FLOAT, ("batch", "sequence")) for n in ("start_logits", "end_logits")]
        return writer.finish("bert_base_qa", INPUTS, spans)
    writer.node("Identity", hidden[0], [x], hidden[0])
    if head == "none":
        return writer.finish("bert_base_encoder", INPUTS, [hidden])
    writer.pooler(x)
    pooled = ("pooler_output", TensorProto.FLOAT, ("batch", size.hidden))
    return writer.finish("bert_base", INPUTS, [hidden, pooled])


def minilm_l6(*, size: Size = MINILM_L6) -> Network:
    """MiniLM-L6 for sentences: ``sentence_embedding``, the mean of the real tokens' states at length 1.

    The parameters are those of the published ``all-MiniLM-L6-v2`` but for its pooler, which sentences do not use
    (22,565,376). Inputs as those of :func:`bert_base`.
    """
    writer = _Transformer(plain_normalisation=False, size=size)
    writer.sentence(writer.encoder())
    output = ("sentence_embedding", TensorProto.FLOAT, ("batch", size.hidden))
    return writer.finish("minilm_l6", INPUTS, [output])


class _Transformer(Writer):
    """A writer that knows BERT's modules."""

    def __init__(self, plain_normalisation: bool, size: Size) -> None:
        super().__init__()
        self._plain, self._size = plain_normalisation, size

    def encoder(self) -> str:
        """The embeddings and all layers."""
        x, mask = self.embeddings(), self.additive_mask()
        for layer in range(self._size.layers):
            x = self.layer(x, mask, f"encoder.layer.{layer}")
        return x

    def linear(self, x: str, module: str, inputs: int, outputs: int, *, final: str = "") -> str:
        """The product x · Wᵀ + b over the last axis."""
        weight = self.parameter(f"{module}.weight", (outputs, inputs), "linear", transposed=True)
        bias = self.parameter(f"{module}.bias", (outputs,), "bias")
        product = self.node("MatMul", module, [x, weight])
        return self.node("Add", f"{module}.add", [bias, product], final)

    def normalise(self, x: str, module: str) -> str:
        """Each token's features to mean 0 and variance 1, then scaled and shifted."""
        gamma = self.parameter(f"{module}.weight", (self._size.hidden,), "gamma")
        beta = self.parameter(f"{module}.bias", (self._size.hidden,), "beta")
        if not self._plain:
            return self.node("LayerNormalization", module, [x, gamma, beta], axis=-1, epsilon=EPSILON)
        mean = self.node("ReduceMean", f"{module}.mean", [x], axes=[-1], keepdims=1)
        centred = self.node("Sub", f"{module}.sub", [x, mean])
        square = self.node("Pow", f"{module}.pow", [centred, self.constant("two", 2.0)])
        variance = self.node("ReduceMean", f"{module}.variance", [square], axes=[-1], keepdims=1)
        safe = self.node("Add", f"{module}.epsilon", [variance, self.constant("epsilon", EPSILON)])
        deviation = self.node("Sqrt", f"{module}.sqrt", [safe])
        unit = self.node("Div", f"{module}.div", [centred, deviation])
        return self.node("Add", f"{module}.add", [self.node("Mul", f"{module}.mul", [unit, gamma]), beta])

    def embeddings(self) -> str:
        """Words, segments and positions of the tokens, summed and normalized."""
        module = "embeddings"
        words = self._rows(f"{module}.word_embeddings", WORDS, TOKENS)
        segments = self._rows(f"{module}.token_type_embeddings", TYPES, SEGMENTS)
        table = self.parameter(f"{module}.position_embeddings.weight", (POSITIONS, self._size.hidden), "embedding")
        shape = self.node("Shape", f"{module}.shape", [TOKENS], start=1, end=2)
        first, axis = self.constant("zero", [0]), self.constant("axis", [0])
        positions = self.node("Slice", f"{module}.position_embeddings", [table, first, shape, axis])
        total = self.node("Add", f"{module}.add_segments", [words, segments])
        total = self.node("Add", f"{module}.add_positions", [total, positions])
        return self.normalise(total, f"{module}.LayerNorm")

    def _rows(self, module: str, count: int, indices: str) -> str:
        table = self.parameter(f"{module}.weight", (count, self._size.hidden), "embedding")
        return self.node("Gather", module, [table, indices])

    def additive_mask(self) -> str:
        """What is added to attention scores, (batch, 1, 1, sequence): 0, or float32's lowest number where masked."""
        mask = self.node("Unsqueeze", "mask.unsqueeze", [MASK, self.constant("inner_axes", [1, 2])])
        mask = self.node("Cast", "mask.cast", [mask], to=TensorProto.FLOAT)
        absent = self.node("Sub", "mask.sub", [self.constant("one", 1.0), mask])
        return self.node("Mul", "mask.mul", [absent, self.constant("lowest", float(np.finfo(np.float32).min))])

    def layer(self, x: str, mask: str, module: str) -> str:
        """Self-attention and the two-layer perceptron, each added to its input and normalized."""
        attended = self.attention(x, mask, f"{module}.attention.self")
        output = f"{module}.attention.output"
        y = self.linear(attended, f"{output}.dense", self._size.hidden, self._size.hidden)
        y = self.normalise(self.node("Add", f"{output}.add", [y, x]), f"{output}.LayerNorm")
        inner = self.linear(y, f"{module}.intermediate.dense", self._size.hidden, self._size.inner)
        inner = self.gelu(inner, f"{module}.intermediate.gelu")
        z = self.linear(inner, f"{module}.output.dense", self._size.inner, self._size.hidden)
        return self.normalise(self.node("Add", f"{module}.output.add", [z, y]), f"{module}.output.LayerNorm")

    def attention(self, x: str, mask: str, module: str) -> str:
        """softmax(q kᵀ / √d + mask) v of each head, heads side by side again."""
        split = self.constant("heads", [0, 0, self._size.heads, self._size.hidden // self._size.heads])
        parts = {}
        for part, order in (("query", (0, 2, 1, 3)), ("key", (0, 2, 3, 1)), ("value", (0, 2, 1, 3))):
            y = self.linear(x, f"{module}.{part}", self._size.hidden, self._size.hidden)
            y = self.node("Reshape", f"{module}.{part}.split", [y, split])
            parts[part] = self.node("Transpose", f"{module}.{part}.transpose", [y], perm=order)
        scores = self.node("MatMul", f"{module}.scores", [parts["query"], parts["key"]])
        width = self.constant("root_of_width", float(np.sqrt(self._size.hidden // self._size.heads)))
        scores = self.node("Div", f"{module}.scale", [scores, width])
        scores = self.node("Add", f"{module}.mask", [scores, mask])
        weights = self.node("Softmax", f"{module}.softmax", [scores], axis=-1)
        context = self.node("MatMul", f"{module}.context", [weights, parts["value"]])
        context = self.node("Transpose", f"{module}.transpose", [context], perm=(0, 2, 1, 3))
        return self.node("Reshape", f"{module}.join", [context, self.constant("joined", [0, 0, self._size.hidden])])

    def gelu(self, x: str, name: str) -> str:
        """½ x (1 + erf(x / √2))."""
        scaled = self.node("Div", f"{name}.div", [x, self.constant("root_of_two", float(np.sqrt(2)))])
        shifted = self.node(
            "Add", f"{name}.add", [self.node("Erf", f"{name}.erf", [scaled]), self.constant("one", 1.0)]
        )
        gated = self.node("Mul", f"{name}.gate", [x, shifted])
        return self.node("Mul", f"{name}.half", [gated, self.constant("half", 0.5)])

    def pooler(self, x: str) -> None:
        """A tanh of a linear layer on the first token."""
        first = self.node("Gather", "pooler.first", [x, self.constant("first", 0)], axis=1)
        dense = self.linear(first, "pooler.dense", self._size.hidden, self._size.hidden)
        self.node("Tanh", "pooler.activation", [dense], "pooler_output")

    def sentence(self, x: str) -> None:
        """The mean over the tokens that are not masked, divided by its length."""
        tokens, features = self.constant("axis_of_tokens", [1]), self.constant("axis_of_features", [-1])
        wide = self.node("Unsqueeze", "mean.unsqueeze", [MASK, features])
        real = self.node("Cast", "mean.cast", [wide], to=TensorProto.FLOAT)
        kept = self.node("Mul", "mean.mul", [x, real])
        total = self.node("ReduceSum", "mean.total", [kept, tokens], keepdims=0)
        count = self.node("ReduceSum", "mean.count", [real, tokens], keepdims=0)
        count = self.node("Clip", "mean.some", [count, self.constant("least_count", 1e-9)])
        mean = self.node("Div", "mean.div", [total, count])
        length = self.node("ReduceL2", "length", [mean], axes=[-1], keepdims=1)
        length = self.node("Clip", "length.some", [length, self.constant("least_length", 1e-12)])
        self.node("Div", "normalise", [mean, length], "sentence_embedding")

    def answers(self, x: str) -> None:
        """Two scores a token: that the answer starts there, and that it ends there."""
        scores = self.linear(x, "qa_outputs", self._size.hidden, 2)
        for index, name in enumerate(("start_logits", "end_logits")):
            self.node("Gather", name, [scores, self.constant(f"answer{index}", index)], name, axis=-1)
