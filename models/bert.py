"""BERT-Base (uncased) as transformers publishes it, in the plain operators that torch's exporters write.

J. Devlin, M.-W. Chang, K. Lee, K. Toutanova, *BERT: Pre-training of Deep Bidirectional Transformers for Language
Understanding*, NAACL 2019, section 3: 12 layers, 768 hidden units, 12 heads.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from onnx import TensorProto

from onnxq.models.network import Axis, Network, Writer

Head = Literal["pooler", "question_answering", "none"]

LAYERS, HIDDEN, HEADS, INNER = 12, 768, 12, 3072
WORDS, POSITIONS, TYPES = 30522, 512, 2
EPSILON = 1e-12
"""Added to the variance of a layer normalisation, as BERT was trained."""

TOKENS, MASK, SEGMENTS = "input_ids", "attention_mask", "token_type_ids"


def bert_base(head: Head = "pooler", *, plain_normalisation: bool = False) -> Network:
    """BERT-Base, uncased.

    Args:
        head: ``pooler`` gives ``last_hidden_state`` and ``pooler_output`` (BertModel, 109,482,240 parameters);
            ``none`` leaves the pooler out (108,891,648); ``question_answering`` gives ``start_logits`` and
            ``end_logits`` instead (BertForQuestionAnswering, 108,893,186).
        plain_normalisation: write each layer normalisation as nine elementwise operators and means, as exporters
            do below operator set 17, instead of one LayerNormalization.

    Returns:
        A network with inputs ``input_ids``, ``attention_mask`` and ``token_type_ids``, (batch, sequence), int64.
    """
    writer = _Transformer(plain_normalisation)
    x = writer.embeddings()
    mask = writer.additive_mask()
    for layer in range(LAYERS):
        x = writer.layer(x, mask, f"encoder.layer.{layer}")
    hidden: tuple[str, int, tuple[Axis, ...]] = ("last_hidden_state", TensorProto.FLOAT, ("batch", "sequence", HIDDEN))
    inputs = [(name, TensorProto.INT64, ("batch", "sequence")) for name in (TOKENS, MASK, SEGMENTS)]
    if head == "question_answering":
        writer.answers(x)
        spans = [(n, TensorProto.FLOAT, ("batch", "sequence")) for n in ("start_logits", "end_logits")]
        return writer.finish("bert_base_qa", inputs, spans)
    writer.node("Identity", hidden[0], [x], hidden[0])
    if head == "none":
        return writer.finish("bert_base_encoder", inputs, [hidden])
    writer.pooler(x)
    return writer.finish("bert_base", inputs, [hidden, ("pooler_output", TensorProto.FLOAT, ("batch", HIDDEN))])


class _Transformer(Writer):
    """A writer that knows BERT's modules."""

    def __init__(self, plain_normalisation: bool) -> None:
        super().__init__()
        self._plain = plain_normalisation

    def linear(self, x: str, module: str, inputs: int, outputs: int, *, final: str = "") -> str:
        """The product x · Wᵀ + b over the last axis."""
        weight = self.parameter(f"{module}.weight", (outputs, inputs), "linear", transposed=True)
        bias = self.parameter(f"{module}.bias", (outputs,), "bias")
        product = self.node("MatMul", module, [x, weight])
        return self.node("Add", f"{module}.add", [bias, product], final)

    def normalise(self, x: str, module: str) -> str:
        """Each token's features to mean 0 and variance 1, then scaled and shifted."""
        gamma = self.parameter(f"{module}.weight", (HIDDEN,), "gamma")
        beta = self.parameter(f"{module}.bias", (HIDDEN,), "beta")
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
        """Words, segments and positions of the tokens, summed and normalised."""
        module = "embeddings"
        words = self._rows(f"{module}.word_embeddings", WORDS, TOKENS)
        segments = self._rows(f"{module}.token_type_embeddings", TYPES, SEGMENTS)
        table = self.parameter(f"{module}.position_embeddings.weight", (POSITIONS, HIDDEN), "embedding")
        shape = self.node("Shape", f"{module}.shape", [TOKENS], start=1, end=2)
        first, axis = self.constant("zero", [0]), self.constant("axis", [0])
        positions = self.node("Slice", f"{module}.position_embeddings", [table, first, shape, axis])
        total = self.node("Add", f"{module}.add_segments", [words, segments])
        total = self.node("Add", f"{module}.add_positions", [total, positions])
        return self.normalise(total, f"{module}.LayerNorm")

    def _rows(self, module: str, count: int, indices: str) -> str:
        table = self.parameter(f"{module}.weight", (count, HIDDEN), "embedding")
        return self.node("Gather", module, [table, indices])

    def additive_mask(self) -> str:
        """What is added to attention scores, (batch, 1, 1, sequence): 0, or float32's lowest number where masked."""
        mask = self.node("Unsqueeze", "mask.unsqueeze", [MASK, self.constant("inner_axes", [1, 2])])
        mask = self.node("Cast", "mask.cast", [mask], to=TensorProto.FLOAT)
        absent = self.node("Sub", "mask.sub", [self.constant("one", 1.0), mask])
        return self.node("Mul", "mask.mul", [absent, self.constant("lowest", float(np.finfo(np.float32).min))])

    def layer(self, x: str, mask: str, module: str) -> str:
        """Self-attention and the two-layer perceptron, each added to its input and normalised."""
        attended = self.attention(x, mask, f"{module}.attention.self")
        output = f"{module}.attention.output"
        y = self.linear(attended, f"{output}.dense", HIDDEN, HIDDEN)
        y = self.normalise(self.node("Add", f"{output}.add", [y, x]), f"{output}.LayerNorm")
        inner = self.linear(y, f"{module}.intermediate.dense", HIDDEN, INNER)
        inner = self.gelu(inner, f"{module}.intermediate.gelu")
        z = self.linear(inner, f"{module}.output.dense", INNER, HIDDEN)
        return self.normalise(self.node("Add", f"{module}.output.add", [z, y]), f"{module}.output.LayerNorm")

    def attention(self, x: str, mask: str, module: str) -> str:
        """softmax(q kᵀ / √d + mask) v of each head, heads side by side again."""
        split = self.constant("heads", [0, 0, HEADS, HIDDEN // HEADS])
        parts = {}
        for part, order in (("query", (0, 2, 1, 3)), ("key", (0, 2, 3, 1)), ("value", (0, 2, 1, 3))):
            y = self.linear(x, f"{module}.{part}", HIDDEN, HIDDEN)
            y = self.node("Reshape", f"{module}.{part}.split", [y, split])
            parts[part] = self.node("Transpose", f"{module}.{part}.transpose", [y], perm=order)
        scores = self.node("MatMul", f"{module}.scores", [parts["query"], parts["key"]])
        width = self.constant("root_of_width", float(np.sqrt(HIDDEN // HEADS)))
        scores = self.node("Div", f"{module}.scale", [scores, width])
        scores = self.node("Add", f"{module}.mask", [scores, mask])
        weights = self.node("Softmax", f"{module}.softmax", [scores], axis=-1)
        context = self.node("MatMul", f"{module}.context", [weights, parts["value"]])
        context = self.node("Transpose", f"{module}.transpose", [context], perm=(0, 2, 1, 3))
        return self.node("Reshape", f"{module}.join", [context, self.constant("joined", [0, 0, HIDDEN])])

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
        dense = self.linear(first, "pooler.dense", HIDDEN, HIDDEN)
        self.node("Tanh", "pooler.activation", [dense], "pooler_output")

    def answers(self, x: str) -> None:
        """Two scores a token: that the answer starts there, and that it ends there."""
        scores = self.linear(x, "qa_outputs", HIDDEN, 2)
        for index, name in enumerate(("start_logits", "end_logits")):
            self.node("Gather", name, [scores, self.constant(f"answer{index}", index)], name, axis=-1)
