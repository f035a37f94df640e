"""What a network does to samples that it was not made from, in a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from onnxq.report.wording import printable
from onnxq.validation.quality import OutputQuality


class _Judged(Protocol):
    @property
    def unseen(self) -> Sequence[OutputQuality]: ...
    @property
    def judged(self) -> int: ...
    @property
    def judged_by(self) -> str: ...
    @property
    def samples(self) -> int: ...
    @property
    def adapted(self) -> int: ...
    @property
    def simulated_sqnr_db(self) -> Mapping[str, float | None]: ...


def tell_unseen(report: _Judged) -> str:
    """What the network does to samples that it was not made from.

    Args:
        report: of a quantization.
    """
    if report.judged_by == "nothing" and report.adapted:
        return "not known: one sample that it was adapted to tells nothing of others; give more"
    if report.judged_by == "nothing":
        return "not known: one sample tells nothing of others; give more"
    told = []
    for q in report.unseen:
        if q.sqnr_db is None:
            told.append(f"{printable(q.output)} exact")
            continue
        sure = "" if q.error_db is None else f" ± {q.error_db:.1f}"
        each = "" if q.median_db is None else f" (median sample {q.median_db:.1f}, worst {q.worst_db:.1f})"
        open_still = "" if q.known else ", which is too few samples to know"
        told.append(f"{printable(q.output)} {q.sqnr_db:.1f}{sure} dB{each}{open_still}")
    judged = {q.output for q in report.unseen}
    told += [f"{printable(name)} as noted" for name in report.simulated_sqnr_db if name not in judged]
    kept = f"{report.judged:,} of {report.samples:,} samples, which were not fitted"
    if report.adapted:
        kept = f"{report.judged:,} of {report.adapted:,} samples that it was adapted to, which were not fitted"
    elif report.judged_by == "cross-fitting":
        kept = f"{report.judged:,} samples, each by a network that was not made from it"
    return f"{', '.join(told) or 'no output to measure'}: {kept}"
