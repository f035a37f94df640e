"""Exact match and F1 on SQuAD v1.1 of an exported extractive question-answering model.

    python benchmarks/squad.py MODEL.onnx [QUANTISED.onnx …] --data dev-v1.1.json.gz --vocab vocab.txt
    ... [--tokenizer tokenizer.json] [--cased] [--limit 500] [--batch 8] [--length 384] [--stride 128] [--json]

Without models it scores the reference answers (100 and 100, or something is wrong) and the first sentence of
each paragraph. A model takes token numbers, and where it has such inputs the attention mask and the token types;
it gives start and end scores for every token. Paragraphs longer than the window are cut into windows that start
``stride`` tokens apart, and the best span of at most 30 tokens over all windows is the answer.

Needs the ``squad`` extra (tokenizers).
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from squad_score import Question, first_sentence, read_questions, score

LONGEST_QUESTION = 64
LONGEST_ANSWER = 30
ROLES = {
    "ids": ("input_ids", "input_ids:0", "unique_input_ids"),
    "mask": ("attention_mask", "input_mask", "input_mask:0"),
    "types": ("token_type_ids", "segment_ids", "segment_ids:0"),
}
"""Names under which exporters know a model's inputs."""


@dataclass(frozen=True)
class Window:
    """A question and a part of its paragraph, as tokens.

    Attributes:
        question: which one it belongs to.
        ids: with the special tokens.
        first: place of the paragraph's first token among them.
        spans: characters of the paragraph that each of its tokens stands for.
    """

    question: int
    ids: list[int]
    first: int
    spans: list[tuple[int, int]]


@dataclass(frozen=True)
class Span:
    """An answer and the sum of its start and end scores."""

    worth: float
    begin: int
    end: int


def windows(index: int, question: Question, tokenizer: Any, length: int, stride: int) -> Iterator[Window]:
    """The windows of a question, each with at most ``length`` tokens, special ones included."""
    asked = tokenizer.encode(question.question, add_special_tokens=False).ids[:LONGEST_QUESTION]
    told = tokenizer.encode(question.context, add_special_tokens=False)
    begin, separator = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    head = [begin, *asked, separator]
    room = length - len(head) - 1
    start = 0
    while True:
        part = slice(start, start + room)
        yield Window(index, [*head, *told.ids[part], separator], len(head), told.offsets[part])
        if start + room >= len(told.ids):
            return
        start += stride


def best_span(start: NDArray[np.float32], end: NDArray[np.float32], spans: Sequence[tuple[int, int]]) -> Span:
    """The span of largest summed score, start before end, over the paragraph's tokens (tokens,)."""
    worth = start[:, None] + end[None, :]
    apart = np.arange(len(start))[None, :] - np.arange(len(start))[:, None]
    worth = np.where((apart >= 0) & (apart < LONGEST_ANSWER), worth, -np.inf)
    first, last = np.unravel_index(int(worth.argmax()), worth.shape)
    return Span(float(worth[first, last]), spans[first][0], spans[last][1])


class Reader:
    """A question-answering model in onnxruntime."""

    def __init__(self, model: Path, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        self._session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
        given = {i.name: i.type for i in self._session.get_inputs()}
        self._inputs = {role: next((n for n in names if n in given), None) for role, names in ROLES.items()}
        unknown = given.keys() - set(self._inputs.values())
        if self._inputs["ids"] is None or unknown:
            raise SystemExit(f"{model} has inputs {sorted(given)}; only token numbers, a mask and types are known.")
        self._types = {name: np.int32 if kind == "tensor(int32)" else np.int64 for name, kind in given.items()}
        outputs = [o.name for o in self._session.get_outputs()]
        self._outputs = [next((n for n in outputs if side in n), outputs[i]) for i, side in enumerate(("start", "end"))]

    def spans(self, batch: Sequence[Window]) -> Iterator[tuple[int, Span]]:
        """The best span of each window, with its question."""
        longest = max(len(w.ids) for w in batch)
        arrays = {role: np.zeros((len(batch), longest), np.int64) for role in ROLES}
        for row, window in enumerate(batch):
            arrays["ids"][row, : len(window.ids)] = window.ids
            arrays["mask"][row, : len(window.ids)] = 1
            arrays["types"][row, window.first : len(window.ids)] = 1
        feed = {name: arrays[role].astype(self._types[name]) for role, name in self._inputs.items() if name}
        starts, ends = self._session.run(self._outputs, feed)
        for window, start, end in zip(batch, starts, ends, strict=True):
            part = slice(window.first, window.first + len(window.spans))
            yield window.question, best_span(start[part], end[part], window.spans)


def answers(reader: Reader, questions: Sequence[Question], found: Iterable[Window], batch: int) -> list[str]:
    """The model's answer to each question."""
    best: dict[int, Span] = {}
    waiting = iter(found)
    while part := list(islice(waiting, batch)):
        for index, span in reader.spans(part):
            if index not in best or span.worth > best[index].worth:
                best[index] = span
    return [q.context[best[i].begin : best[i].end] for i, q in enumerate(questions)]


def read_tokenizer(arguments: argparse.Namespace) -> Any:
    """The tokenizer from its own file or from a WordPiece vocabulary."""
    from tokenizers import BertWordPieceTokenizer, Tokenizer

    if arguments.tokenizer:
        return Tokenizer.from_file(str(arguments.tokenizer))
    if arguments.vocab:
        return BertWordPieceTokenizer(str(arguments.vocab), lowercase=not arguments.cased)
    raise SystemExit("give --vocab or --tokenizer: a model reads tokens.")


def main() -> None:
    """Score the models given, or the two answers that need none."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--vocab", type=Path)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--cased", action="store_true")
    parser.add_argument("--json", action="store_true")
    for name, default in (("limit", None), ("batch", 8), ("length", 384), ("stride", 128), ("threads", 0)):
        parser.add_argument(f"--{name}", type=int, default=default)
    given = parser.parse_args()
    questions = list(islice(read_questions(given.data), given.limit))
    replies = {
        "reference answers": [q.answers[0] for q in questions],
        "first sentence": [first_sentence(q.context) for q in questions],
    }
    if given.models:
        tokenizer = read_tokenizer(given)
        cut = [w for i, q in enumerate(questions) for w in windows(i, q, tokenizer, given.length, given.stride)]
        replies = {str(m): answers(Reader(m, given.threads), questions, cut, given.batch) for m in given.models}
    results = {name: asdict(score(zip(questions, texts, strict=True))) for name, texts in replies.items()}
    if given.json:
        print(json.dumps(results))
        return
    for name, found in results.items():
        print(f"{name}: exact match {found['exact_match']:.2f}, F1 {found['f1']:.2f} ({found['questions']} questions)")


if __name__ == "__main__":
    main()
