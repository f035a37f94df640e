"""The command ``onnxq``: one verb a module, and no logic of its own."""

from __future__ import annotations

import click

from onnxq.cli.allocate import allocate
from onnxq.cli.demo import demo
from onnxq.cli.errors_and_exit import Shell
from onnxq.cli.inspect import inspect
from onnxq.cli.quantize import quantize
from onnxq.cli.sensitivity import sensitivity
from onnxq.cli.verify import verify
from onnxq.version import VERSION

__all__ = ["main"]


@click.group(
    cls=Shell,
    commands=[quantize, inspect, sensitivity, allocate, verify, demo],
    context_settings={"max_content_width": 110},
)
@click.version_option(VERSION, prog_name="onnxq")
def main() -> None:
    """Make an ONNX model small and fast: 8, 4 or fewer bits from a few unlabelled samples.

    The result is an ONNX model with QuantizeLinear and DequantizeLinear nodes, proven to run at every
    optimization level of onnxruntime.

    Exit codes: 0 done and verified; 1 done, but below what was asked for; 2 bad usage or bad input, one
    sentence on stderr and nothing written.
    """
