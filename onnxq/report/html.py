"""A quantization's report as one HTML page that needs nothing beside it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import jinja2

from onnxq.report import wording


def render(values: Mapping[str, object]) -> str:
    """The page.

    Args:
        values: what the template asks for by name; text in it may hold anything, it is escaped.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("onnxq.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("run.html").render(values, words=wording, finite=math.isfinite)
    return page + "\n"
