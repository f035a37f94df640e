"""Exact match and F1 of answers to SQuAD v1.1 questions, by the published rule.

Rajpurkar et al., "SQuAD: 100,000+ Questions for Machine Comprehension of Text", EMNLP 2016, section 6: answers
are compared without punctuation and articles; a question's score is the best over its reference answers.
"""

from __future__ import annotations

import gzip
import json
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = frozenset(string.punctuation)


@dataclass(frozen=True)
class Question:
    """A question about a paragraph, with every reference answer."""

    question: str
    context: str
    answers: tuple[str, ...]


@dataclass(frozen=True)
class Score:
    """Means over questions, in per cent.

    Attributes:
        exact_match: answers that agree with a reference after normalization.
        f1: overlap with the nearest reference, as a bag of words.
        questions: scored.
    """

    exact_match: float
    f1: float
    questions: int


def read_questions(path: Path) -> Iterator[Question]:
    """The questions of a SQuAD v1.1 file, JSON or gzipped JSON, in order."""
    content = path.read_bytes()
    if path.suffix == ".gz":
        content = gzip.decompress(content)
    for article in json.loads(content)["data"]:
        for paragraph in article["paragraphs"]:
            for entry in paragraph["qas"]:
                answers = tuple(answer["text"] for answer in entry["answers"])
                yield Question(entry["question"], paragraph["context"], answers)


def normalise(text: str) -> str:
    """Lower case, without punctuation, then without the articles a, an and the, words parted by one space.

    Example:
        >>> normalize("The  U.S.-based  Company's ")
        'usbased companys'
    """
    bare = "".join(c for c in text.lower() if c not in PUNCTUATION)
    return " ".join(ARTICLES.sub(" ", bare).split())


def exact_match(answer: str, reference: str) -> float:
    """1 where the normalized texts agree, else 0."""
    return float(normalise(answer) == normalise(reference))


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the normalized words, each as often as it occurs.

    Example:
        >>> round(f1("in October 1973", "October 1973."), 2)
        0.8
    """
    given, wanted = normalise(answer).split(), normalise(reference).split()
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted)) if common else 0.0


def best(measure: Callable[[str, str], float], answer: str, references: Sequence[str]) -> float:
    """The largest value of a measure over the references."""
    return max(measure(answer, reference) for reference in references)


def score(pairs: Iterable[tuple[Question, str]]) -> Score:
    """Score questions with the answers given to them.

    Raises:
        ValueError: there are none.
    """
    marks = [(best(exact_match, a, q.answers), best(f1, a, q.answers)) for q, a in pairs]
    if not marks:
        raise ValueError("there are no questions to score.")
    exact, overlap = (100 * sum(column) / len(marks) for column in zip(*marks, strict=True))
    return Score(exact, overlap, len(marks))


def first_sentence(context: str) -> str:
    """The paragraph up to its first full stop, question or exclamation mark that a space follows."""
    return re.split(r"(?<=[.!?])\s", context.strip(), maxsplit=1)[0]
