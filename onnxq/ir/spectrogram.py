"""Spectrogram front ends: what stands between a model's inputs and a logarithm, without any activation function.

The logarithm of a power spectrum tells values apart over ten decades and more, which no grid of one scale for a
tensor holds, at 16 bits either. The layers that make it, a Fourier or wavelet basis as a convolution and a matrix of
mel bands, hold few weights and little of a network's work: they are left in float.
"""

from __future__ import annotations

import onnx_graphsurgeon as gs

from onnxq.ir.layer import LAYER_OPS
from onnxq.ir.model import Model
from onnxq.ir.operators import Trait, operators_with

REASON = "part of a spectrogram: the logarithm behind it tells values apart that no grid does, left in float"

SIZES = operators_with(Trait.SIZES)
"""What depends on no value of the input, only on how long it is."""

WITHIN = operators_with(
    Trait.LAYER,
    Trait.SPECTRAL,
    Trait.REDUCES,
    Trait.MOVES,
    Trait.PICKS,
    Trait.PARTS,
    Trait.CONVERTS,
    Trait.PADS,
)
"""What a power spectrum is made with; a ReLU and its like make a network of what stands before a logarithm."""


def spectrogram(model: Model) -> Model:
    """The model with the layers of its spectrogram front ends left in float.

    Args:
        model: prepared.
    """
    behind: set[int] = set()
    for node in model.graph.nodes:
        if node.op == "Log":
            behind |= _front_end(node)
    names = [node.name for node in model.graph.nodes if id(node) in behind and node.op in LAYER_OPS]
    return model.leaving_in_float(dict.fromkeys(names, REASON)) if names else model


def _front_end(logarithm: gs.Node) -> set[int]:
    """All nodes before a logarithm, if nothing else is among them; otherwise none."""
    open_ones, found = [logarithm], set[int]()
    while open_ones:
        for tensor in open_ones.pop().inputs:
            for maker in tensor.inputs:
                if id(maker) in found or not _carries_numbers(maker):
                    continue
                if maker.op not in WITHIN:
                    return set()
                found.add(id(maker))
                open_ones.append(maker)
    return found


def _carries_numbers(node: gs.Node) -> bool:
    """Whether a node makes numbers of the input's values; sizes and comparisons are no part of a spectrum."""
    return node.op not in SIZES and not all(t.dtype is not None and t.dtype.kind in "iub" for t in node.outputs)
