"""What runtimes take of a quantized model: one TOML file a target, each rule with its source.

A rule that no document states is left open, and the file says so. The files are read by
:func:`onnxq.config.targets.rules.read_target`; nothing else in the project knows a target by its name.
"""

from onnxq.config.targets.rules import TARGETS, LayerRule, Target, known_target, read_target

__all__ = ["TARGETS", "LayerRule", "Target", "known_target", "read_target"]
