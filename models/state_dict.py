"""Weights from a state dict on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.errors import ModelError
from onnxq.models.naming import translate
from onnxq.models.network import Network

Array = NDArray[np.float32]
SHOWN = 5
"""Parameters that an error names."""


def read_state_dict(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a file by the names they have in it.

    Args:
        path: ``.safetensors`` (with the extra ``safetensors``), ``.npz``, or ``.pth``, ``.pt`` or ``.bin`` (with
            the extra ``torch``; only tensors are unpickled).

    Raises:
        ModelError: the file cannot be read, or what reads it is not installed.
    """
    readers = {".safetensors": _safetensors, ".npz": _npz, ".pth": _torch, ".pt": _torch, ".bin": _torch}
    reader = readers.get(path.suffix)
    if reader is None:
        raise ModelError(
            f"weights {path} have the ending {path.suffix!r}; give a file that ends in {', '.join(readers)}."
        )
    try:
        return reader(path)
    except ImportError as error:
        raise ModelError(
            f"weights {path} need the package {error.name}: run 'pip install {error.name}', or give another format."
        ) from error
    except Exception as error:  # whatever a foreign reader makes of a broken file
        raise ModelError(f"weights {path} cannot be read ({' '.join(str(error).split())[:200]}).") from error


def fit(network: Network, tensors: dict[str, NDArray[Any]]) -> dict[str, Array]:
    """A value for every parameter of a network, found under torchvision's, timm's or transformers' names.

    What else the tensors hold (counters, other heads) is not used.

    Args:
        network: whose parameters.
        tensors: of any floating-point type, by name.

    Returns:
        float32 by parameter name.

    Raises:
        ModelError: parameters are missing or have another shape; names them.
    """
    names = translate(tensors, [p.name for p in network.parameters])
    missing = [p.name for p in network.parameters if p.name not in names]
    if missing:
        raise ModelError(
            f"the weights lack {len(missing)} of the {len(network.parameters)} parameters of {network.name} "
            f"({_some(missing)}); give those of this architecture in torchvision's, timm's or transformers' names."
        )
    strange = [
        f"{names[p.name]} has shape {list(tensors[names[p.name]].shape)} instead of {list(p.shape)}"
        for p in network.parameters
        if tensors[names[p.name]].shape != p.shape
    ]
    if strange:
        raise ModelError(
            f"the weights do not fit {network.name}: {_some(strange)}; "
            "give those of this architecture and number of classes."
        )
    return {p.name: np.ascontiguousarray(tensors[names[p.name]], np.float32) for p in network.parameters}


def _some(items: list[str]) -> str:
    return ", ".join(items[:SHOWN]) + (f" and {len(items) - SHOWN} more" if len(items) > SHOWN else "")


def _safetensors(path: Path) -> dict[str, NDArray[Any]]:
    from safetensors.numpy import load_file

    return dict(load_file(path))


def _npz(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        return dict(arrays)


def _torch(path: Path) -> dict[str, NDArray[Any]]:
    import torch

    state = torch.load(path, map_location="cpu", weights_only=True)
    return {name: tensor.float().numpy() for name, tensor in state.items() if isinstance(tensor, torch.Tensor)}
