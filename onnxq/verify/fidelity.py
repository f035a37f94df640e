"""How close the outputs of two models are: sums over a stream of batches, in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.verify.finite import Finiteness
from onnxq.verify.report import OutputFidelity
from onnxq.verify.samples import SampleMeter, decibels


class OutputMeter:
    """Accumulates the fidelity of one output; of a sample it holds two numbers, whatever the output's size.

    Args:
        name: of the output.
        classification: whether to judge float outputs of rank 2 and more as class scores.
    """

    def __init__(self, name: str, *, classification: bool) -> None:
        self.name = name
        self._classification = classification
        self._samples = SampleMeter()
        self._signal = self._power = self._noise = self._dot = 0.0
        self._values = self._equal = self._not_finite = 0
        self._finiteness = Finiteness()
        self._left_out: str | None = None
        self._divergence = 0.0
        self._rows = self._agreeing = 0
        self._labelled = self._hits_fp32 = self._hits_quantized = 0

    def add(
        self, fp32: NDArray[Any], quantized: NDArray[Any], labels: NDArray[Any] | None = None, *, samples: int
    ) -> None:
        """Take in the answers of both models to one batch.

        Args:
            fp32: the float model's output, any shape and numeric dtype.
            quantized: the quantized model's, same shape.
            labels: of the batch's samples, first axis samples; only used where there is one a row.
            samples: in the batch.
        """
        exact, found = fp32.astype(np.float64), quantized.astype(np.float64)
        self._add_values(exact.ravel(), found.ravel())
        self._samples.add(exact, found, samples)
        scores = class_scores(fp32) if self._classification else None
        if scores is not None:
            self._add_rows(scores, quantized.reshape(scores.shape).astype(np.float64), labels)

    def leave_out(self, reason: str) -> None:
        """Say why the output is not compared, from now on."""
        self._left_out = reason

    def judge_finiteness(self, fp32: Any, quantized: Any) -> None:
        """Count NaN and infinities of answers of any kind and shape."""
        self._finiteness = self._finiteness.plus(fp32, quantized)

    def result(self) -> OutputFidelity:
        """The fidelity over everything taken in."""
        judged = self._values > 0 and self._not_finite == 0 and self._left_out is None
        return OutputFidelity(
            name=self.name,
            sqnr_db=decibels(self._signal, self._noise) if judged else None,
            cosine=_cosine(self._dot, self._signal, self._power) if judged else None,
            equal=_percent(self._equal, self._values) if self._left_out is None else None,
            not_finite=self._not_finite,
            broken=self._finiteness.broken if self._finiteness.fault else 0,
            left_out=self._left_out,
            kl=self._divergence / self._rows if judged and self._rows else None,
            top1_agreement=_percent(self._agreeing, self._rows),
            top1_fp32=_percent(self._hits_fp32, self._labelled),
            top1_quantized=_percent(self._hits_quantized, self._labelled),
            sqnr_db_median=self._samples.median,
            sqnr_db_worst=self._samples.worst,
            worst_sample=self._samples.worst_sample,
        )

    def _add_values(self, a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
        same = (a == b) | (np.isnan(a) & np.isnan(b))
        finite = np.isfinite(a) & np.isfinite(b)
        self._values += a.size
        self._equal += int(np.count_nonzero(same))
        self._not_finite += int(np.count_nonzero(~finite & ~same))
        if not finite.all():
            a, b = a[finite], b[finite]
        error = a - b
        self._signal += float(a @ a)
        self._power += float(b @ b)
        self._noise += float(error @ error)
        self._dot += float(a @ b)

    def _add_rows(self, p: NDArray[np.float64], q: NDArray[np.float64], labels: NDArray[Any] | None) -> None:
        best_p, best_q = p.argmax(-1), q.argmax(-1)
        self._rows += best_p.size
        self._agreeing += int(np.count_nonzero(best_p == best_q))
        self._divergence += float(softmax_divergence(p, q).sum())
        if labels is not None and labels.size == best_p.size:
            truth = labels.reshape(best_p.shape)
            self._labelled += truth.size
            self._hits_fp32 += int(np.count_nonzero(best_p == truth))
            self._hits_quantized += int(np.count_nonzero(best_q == truth))


def class_scores(output: NDArray[Any]) -> NDArray[np.float64] | None:
    """An output as class scores along its last axis, or None where it cannot be such.

    Trailing axes of size 1 are dropped, so (N, C, 1, 1) counts as (N, C). Integers, vectors, single
    scores and empty outputs are no class scores.

    Args:
        output: any shape and dtype.
    """
    if not np.issubdtype(output.dtype, np.floating) or output.ndim < 2 or output.size == 0:
        return None
    shape = list(output.shape)
    while len(shape) > 2 and shape[-1] == 1:
        shape.pop()
    return output.reshape(shape).astype(np.float64) if shape[-1] > 1 else None


def softmax_divergence(p: NDArray[np.float64], q: NDArray[np.float64]) -> NDArray[np.float64]:
    """Kullback-Leibler divergence Σ softmax(p)·(log softmax(p) − log softmax(q)) along the last axis.

    Args:
        p: scores of the reference, (…, C), float64.
        q: scores of the approximation, same shape.

    Returns:
        (…), nats, at least 0; NaN where a row is not finite.
    """
    log_p, log_q = _log_softmax(p), _log_softmax(q)
    share = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        terms = np.where(share > 0, share * (log_p - log_q), np.where(np.isnan(share), np.nan, 0.0))
    # Equal distributions may sum to −1e-17; the divergence itself is never negative.
    divergence: NDArray[np.float64] = np.maximum(terms.sum(-1), 0.0)
    return divergence


def _log_softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(invalid="ignore"):
        shifted = scores - scores.max(-1, keepdims=True)
        result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    return result


def _cosine(dot: float, signal: float, power: float) -> float | None:
    norm = math.sqrt(signal) * math.sqrt(power)
    return min(1.0, max(-1.0, dot / norm)) if norm > 0.0 else None


def _percent(count: int, total: int) -> float | None:
    return 100.0 * count / total if total else None
