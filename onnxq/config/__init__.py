"""Options of a quantization: their validation, bits, budgets, and what targets take."""

from __future__ import annotations

from onnxq.config.options import FLOAT_BITS, UNITS, Config, make_config, parse_size, read_config

__all__ = ["FLOAT_BITS", "UNITS", "Config", "make_config", "parse_size", "read_config"]
