"""The question-answering benchmark: the published normalization, exact match and F1, windows and spans."""

from __future__ import annotations

import gzip
import importlib.util
import json
import string
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def loaded(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, BENCHMARKS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


score = loaded("squad_score")
squad = loaded("squad")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("The Oil Crisis!", "oil crisis"),
        ("an  apple\ta day", "apple day"),
        ("theatre, another", "theatre another"),  # articles are words, not syllables
        ("U.S.-based", "usbased"),  # punctuation goes before words are told apart
        ("A", ""),
        ("the 'a' team", "team"),
        ("“quoted”", "“quoted”"),  # the rule knows ASCII punctuation alone
        ("", ""),
    ],
)
def test_normalisation_follows_the_published_rule(text: str, wanted: str) -> None:
    assert score.normalise(text) == wanted


@given(st.text(max_size=40))
def test_normalised_text_has_single_spaces_and_no_punctuation(text: str) -> None:
    result = score.normalise(text)
    assert result == " ".join(result.split())
    assert not set(result) & set(string.punctuation)
    assert not set(result.split()) & {"a", "an", "the"}


def test_f1_counts_each_word_as_often_as_it_occurs() -> None:
    assert score.f1("new york new york", "new york") == pytest.approx(2 * 0.5 * 1 / 1.5)
    assert score.f1("paris", "london") == 0
    assert score.f1("The Paris.", "paris") == 1


def test_the_nearest_reference_counts() -> None:
    question = score.Question("When?", "In October 1973.", ("October 1973", "October", "1973"))
    result = score.score([(question, "october"), (question, "in 1973")])
    assert result.exact_match == 50
    assert result.f1 == pytest.approx(100 * (1 + 2 * 1 / 3) / 2)  # "in 1973" shares one word of 2 with "1973"


def test_reference_answers_score_100(tmp_path: Path) -> None:
    content = {"data": [{"paragraphs": [{"context": "A b. C d.", "qas": [{"question": "q", "answers": [
        {"text": "b"}, {"text": "C d"}]}]}]}]}  # fmt: skip
    path = tmp_path / "dev.json.gz"
    path.write_bytes(gzip.compress(json.dumps(content).encode()))
    questions = list(score.read_questions(path))
    assert [score.score([(questions[0], a)]).exact_match for a in questions[0].answers] == [100, 100]
    assert score.score([(questions[0], score.first_sentence(questions[0].context))]).f1 == 100


def test_no_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="no questions"):
        score.score([])


class Words:
    """A tokenizer of words parted by spaces."""

    def token_to_id(self, token: str) -> int:
        return {"[CLS]": 1, "[SEP]": 2}[token]

    def encode(self, text: str, add_special_tokens: bool) -> SimpleNamespace:
        assert not add_special_tokens
        spans, at = [], 0
        for word in text.split(" "):
            spans.append((at, at + len(word)))
            at += len(word) + 1
        return SimpleNamespace(ids=[100 + i for i in range(len(spans))], offsets=spans)


@pytest.mark.parametrize("words", [1, 4, 5, 6, 13])
def test_windows_cover_every_word_and_keep_to_their_length(words: int) -> None:
    question = score.Question("who is", " ".join("abcdefghijklmnop"[:words]), ("a",))
    found = list(squad.windows(0, question, Words(), length=10, stride=3))  # [CLS] who is [SEP] leave room for 5
    assert all(len(w.ids) <= 10 and w.ids[0] == 1 and w.ids[-1] == 2 for w in found)
    seen = {span for window in found for span in window.spans}
    assert len(seen) == words
    assert len(found) == max(1, -(-(words - 5) // 3) + 1)
    assert all(len(w.ids) == w.first + len(w.spans) + 1 for w in found)


def test_the_best_span_agrees_with_trying_all() -> None:
    rng = np.random.default_rng(0)
    start, end = rng.normal(size=(2, 50)).astype(np.float32)
    spans = [(i, i + 1) for i in range(50)]
    pairs = [(i, j) for i in range(50) for j in range(i, min(i + squad.LONGEST_ANSWER, 50))]
    i, j = max(pairs, key=lambda p: start[p[0]] + end[p[1]])
    best = squad.best_span(start, end, spans)
    assert (best.begin, best.end) == (i, j + 1)
    assert best.worth == pytest.approx(float(start[i] + end[j]))


def test_a_model_that_points_at_the_answer_is_read_right(tmp_path: Path) -> None:
    import onnx
    from onnx import parser

    # Scores are 1 where the token number is 102, the third word of a text: the question's own are masked by type.
    model = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17]> g (int64[b, t] input_ids, int64[b, t] token_type_ids)'
        " => (float[b, t] start_logits, float[b, t] end_logits) {"
        " wanted = Constant<value = int64 {102}>() same = Equal(input_ids, wanted) number = Cast<to = 1>(same)"
        " kind = Cast<to = 1>(token_type_ids) start_logits = Mul(number, kind) end_logits = Identity(start_logits) }"
    )
    onnx.save(model, tmp_path / "qa.onnx")
    questions = [score.Question("which of them", "one two three four", ("three",)) for _ in range(3)]
    cut = [w for i, q in enumerate(questions) for w in squad.windows(i, q, Words(), 384, 128)]
    assert squad.answers(squad.Reader(tmp_path / "qa.onnx", 1), questions, cut, 2) == ["three"] * 3
