"""``python -m onnxq`` is the command ``onnxq``."""

from __future__ import annotations

from onnxq.cli import main

if __name__ == "__main__":
    main(prog_name="onnxq")
