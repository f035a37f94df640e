"""A quantisation's report as one HTML page that needs nothing beside it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import jinja2

from onnxq.report import wording
from onnxq.report.unseen import tell_unseen

if TYPE_CHECKING:
    from onnxq.report.run import RunReport


def render(report: RunReport, *, title: str) -> str:
    """The page.

    Args:
        report: of a quantisation.
        title: of the page; names in it and in the report may hold anything, they are escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("onnxq.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    losses = [layer.loss for layer in report.layers if math.isfinite(layer.loss)]
    page = environment.get_template("run.html").render(
        report=report,
        unseen=tell_unseen(report),
        title=title,
        words=wording,
        largest=max(losses, default=0.0) or 1.0,
        finite=math.isfinite,
    )
    return page + "\n"
