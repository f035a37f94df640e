"""Names of parameters in the state dicts that others publish, translated to those used here (torchvision's).

A convention is a function from a published name to ours; what it does not know it leaves as it is. BERT's names are
those of transformers, with or without the prefix of the class that holds the encoder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from functools import cache

from onnxq.models.mobilenet import STAGES, inverted_residuals

Convention = Callable[[str], str]


def torchvision(name: str) -> str:
    """The name itself; a wrapper for several devices puts ``module.`` before it."""
    return name.removeprefix("module.")


def timm_mobilenet(name: str) -> str:
    """MobileNet-V2 of timm (``mobilenetv2_100``)."""
    module, _, tensor = name.rpartition(".")
    return f"{_timm_mobilenet_modules().get(module, module)}.{tensor}"


@cache
def _timm_mobilenet_modules() -> dict[str, str]:
    last = 1 + sum(count for _, _, count, _ in STAGES)
    modules = {
        "conv_stem": "features.0.0",
        "bn1": "features.0.1",
        "conv_head": f"features.{last}.0",
        "bn2": f"features.{last}.1",
        "classifier": "classifier.1",
    }
    for block in inverted_residuals():
        place, ours = f"blocks.{block.stage}.{block.index}", f"{block.module}.conv"
        theirs = ["conv_dw", "bn1", "conv_pw", "bn2"]
        names = ["0.0", "0.1", "1", "2"]
        if block.expansion > 1:
            theirs = ["conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3"]
            names = ["0.0", "0.1", "1.0", "1.1", "2", "3"]
        modules |= {f"{place}.{t}": f"{ours}.{n}" for t, n in zip(theirs, names, strict=True)}
    return modules


def transformers_resnet(name: str) -> str:
    """ResNet of transformers (``ResNetForImageClassification``)."""
    name = re.sub(r"^resnet\.embedder\.embedder\.convolution\.", "conv1.", name)
    name = re.sub(r"^resnet\.embedder\.embedder\.normalization\.", "bn1.", name)
    name = re.sub(r"^classifier\.1\.", "fc.", name)
    found = re.match(r"resnet\.encoder\.stages\.(\d+)\.layers\.(\d+)\.(.*)", name)
    if not found:
        return name
    block, rest = f"layer{int(found[1]) + 1}.{found[2]}", found[3]
    rest = re.sub(r"^shortcut\.convolution\.", "downsample.0.", rest)
    rest = re.sub(r"^shortcut\.normalization\.", "downsample.1.", rest)
    rest = re.sub(r"^layer\.(\d+)\.convolution\.", lambda m: f"conv{int(m[1]) + 1}.", rest)
    rest = re.sub(r"^layer\.(\d+)\.normalization\.", lambda m: f"bn{int(m[1]) + 1}.", rest)
    return f"{block}.{rest}"


def transformers_bert(name: str) -> str:
    """BERT of transformers, old checkpoints included, whose layer normalizations say gamma and beta."""
    name = name.removeprefix("module.").removeprefix("bert.")
    return re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))


CONVENTIONS: tuple[Convention, ...] = (torchvision, timm_mobilenet, transformers_resnet, transformers_bert)


def translate(published: Iterable[str], wanted: Iterable[str]) -> dict[str, str]:
    """Published name of each wanted parameter, in the convention that knows most of them.

    Returns:
        Published names by ours; a parameter that is nowhere to be found is missing.

    Example:
        >>> translate(["conv_stem.weight", "epoch"], ["features.0.0.weight"])
        {'features.0.0.weight': 'conv_stem.weight'}
    """
    published, needed = list(published), set(wanted)
    found = [{ours: name for name in published if (ours := convention(name)) in needed} for convention in CONVENTIONS]
    return max(found, key=len)
