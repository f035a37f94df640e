"""What holds for every test."""

from __future__ import annotations

from hypothesis import settings

# No test depends on the machine's speed, and the same examples are tried everywhere.
settings.register_profile("onnxq", deadline=None, derandomize=True)
settings.load_profile("onnxq")
