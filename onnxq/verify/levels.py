"""Does a model work at every optimization level of onnxruntime, and does it give the same answers?"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.verify.fidelity import class_scores
from onnxq.verify.finite import is_numeric
from onnxq.verify.report import LevelCheck
from onnxq.verify.session import LEVELS, reason
from onnxq.verify.source import Feed, ModelLike, ModelSource

_Outputs = list[NDArray[Any]]

RESIDUE = 1e-6
"""Root mean square that float32 leaves of values of ordinary size which cancel."""


def check_levels(
    quantized: ModelLike, feeds: Iterable[Feed], *, classification: bool = False
) -> tuple[LevelCheck, ...]:
    """Load and run a model at each optimization level and compare with the unoptimized answers.

    A model that does not load or run is a finding, not an error. Differences are expected: kernels on
    integers round where the simulation does not, and on x86 processors without VNNI a product of
    uint8 activations and full-range int8 weights saturates. Judge by ``relative_rms``.

    Args:
        quantized: path or proto.
        feeds: a few batches, ``{input: array}``; all of them are held, with their outputs.
        classification: whether to report the agreement of largest values as well.

    Returns:
        One check a level, in the order of :data:`~onnxq.verify.session.LEVELS`.

    Raises:
        ModelError: the model cannot be read at all.
        CalibrationError: a feed does not hold the model's inputs.
    """
    source = ModelSource.open(quantized, "quantised")
    held = [source.fit(feed) for feed in feeds]
    return compare_levels(source, held, classification=classification)


def deviation_from(
    quantized: ModelLike, feeds: Sequence[Feed], expected: Sequence[Mapping[str, NDArray[Any]]]
) -> float:
    """How far unoptimized answers are from expected ones: :func:`deviation` of the worst output.

    Args:
        quantized: path or proto.
        feeds: batches, ``{input: array}``.
        expected: the outputs by name, one mapping a batch.
    """
    source = ModelSource.open(quantized, "quantised")
    found = _answers(source, LEVELS[0], [source.fit(feed) for feed in feeds])
    return max(
        (
            deviation([e[name] for e in expected], [f[i] for f in found])
            for i, name in enumerate(source.outputs)
            if name not in source.not_comparable
        ),
        default=0.0,
    )


def compare_levels(source: ModelSource, feeds: Sequence[Feed], *, classification: bool) -> tuple[LevelCheck, ...]:
    """:func:`check_levels` of an opened model and feeds known to fit it."""
    reference: list[_Outputs] | None = None
    checks = []
    for level in LEVELS:
        try:
            outputs = _answers(source, level, feeds)
        except Exception as error:  # whatever onnxruntime raises is the finding
            checks.append(LevelCheck(level, ok=False, error=f"{source.label} fails at level {level}: {reason(error)}"))
            continue
        if level == LEVELS[0]:
            reference = outputs
        if reference is None:
            checks.append(LevelCheck(level, ok=True))
        else:
            checks.append(_compare(source, level, reference, outputs, classification))
    return tuple(checks)


def _answers(source: ModelSource, level: str, feeds: Sequence[Feed]) -> list[_Outputs]:
    """Outputs for each feed; the session, a copy of the weights, goes before the next one starts."""
    session = source.start(level)
    return [session.run(list(source.outputs), feed) for feed in feeds]


def _compare(
    source: ModelSource, level: str, reference: list[_Outputs], outputs: list[_Outputs], classification: bool
) -> LevelCheck:
    largest = relative = relative_rms = 0.0
    rows = agreeing = 0
    for index, name in enumerate(source.outputs):
        if name in source.not_comparable or not all(
            is_numeric(a) for answers in (reference, outputs) for a in _of(answers, index)
        ):
            continue
        difference = magnitude = 0.0
        for expected, found in zip(
            (batch[index] for batch in reference), (batch[index] for batch in outputs), strict=True
        ):
            problem = _problem(expected, found)
            if problem is not None:
                return LevelCheck(
                    level, ok=False, error=f"output {name!r} of {source.label} at level {level} {problem}"
                )
            difference = max(difference, _largest(expected, minus=found))
            magnitude = max(magnitude, _largest(expected), _largest(found))
            scores = class_scores(expected) if classification else None
            if scores is not None:
                rows += scores[..., 0].size
                agreeing += int(np.count_nonzero(scores.argmax(-1) == found.reshape(scores.shape).argmax(-1)))
        largest = max(largest, difference)
        relative = max(relative, difference / magnitude if magnitude else 0.0)
        relative_rms = max(relative_rms, deviation([b[index] for b in reference], [b[index] for b in outputs]))
    agreement = 100.0 * agreeing / rows if rows else None
    return LevelCheck(
        level,
        ok=True,
        max_abs_diff=largest,
        relative_diff=relative,
        relative_rms=relative_rms,
        agreement=agreement,
    )


def _of(answers: list[_Outputs], index: int) -> list[Any]:
    """One output in all batches."""
    return [batch[index] for batch in answers]


def deviation(expected: Sequence[NDArray[Any]], found: Sequence[NDArray[Any]]) -> float:
    """Root mean square of the difference over that of what was expected, over finite values of all batches.

    Of integers it is the share that differs, and what is no tensor of numbers is not judged. 0 where nothing differs,
    and where both sides are no more than a residue of rounding, whose size says nothing: what is 0 by construction is
    that or 1e-11, as the kernel adds up. Infinite where something else differs and all that was expected is 0, and
    where shapes differ.
    """
    signal = noise = 0.0
    count = 0
    for a, b in zip(expected, found, strict=True):
        if not (is_numeric(a) and is_numeric(b)):
            continue
        if a.shape != b.shape:
            return math.inf
        if a.dtype.kind != "f":
            noise += float(np.count_nonzero(a != b)) ** 2 / max(a.size, 1)
            signal += a.size
            count += a.size
            continue
        exact, other = a.astype(np.float64), b.astype(np.float64)
        finite = np.isfinite(exact) & np.isfinite(other)
        signal += float(np.square(exact[finite]).sum())
        noise += float(np.square(exact[finite] - other[finite]).sum())
        count += int(finite.sum())
    if max(signal, noise) <= count * RESIDUE**2:
        return 0.0
    return math.sqrt(noise / signal) if signal else math.inf


def _problem(expected: NDArray[Any], found: NDArray[Any]) -> str | None:
    """What makes two answers incomparable, as the end of a sentence."""
    if expected.shape != found.shape:
        return f"has shape {found.shape}, but {expected.shape} at level {LEVELS[0]}"
    a, b = expected.astype(np.float64), found.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    broken = np.count_nonzero(~same & ~(np.isfinite(a) & np.isfinite(b)))
    return f"is NaN or infinite in {broken} places where level {LEVELS[0]} differs" if broken else None


def _largest(values: NDArray[Any], *, minus: NDArray[Any] | None = None) -> float:
    """Largest finite magnitude of the values or of a difference; 0 where there is none."""
    a = values.astype(np.float64)
    if minus is not None:
        b = minus.astype(np.float64)
        a = np.subtract(a, b, out=np.zeros_like(a), where=np.isfinite(a) & np.isfinite(b))
    a = a[np.isfinite(a)]
    return float(np.abs(a).max()) if a.size else 0.0
