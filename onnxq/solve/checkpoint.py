"""Finished layers on disk, so that a run that was stopped goes on where it was.

Each layer's solution is one file, written whole or not at all. A folder belongs to one model, one
configuration and one calibration set: their fingerprint is kept beside the layers, and a resume with
another one is refused. Two runs of one fingerprint may share a folder: they write the same. Seconds are
not part of a solution's identity and are kept as they were.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.config import Config
from onnxq.data import Feed, content
from onnxq.errors import ConfigError, OutputError
from onnxq.ir.model import Model
from onnxq.ir.save import identity
from onnxq.ir.whole_file import replaced_whole
from onnxq.quant.solution import LayerSolution
from onnxq.quant.spec import Granularity, QuantParams, QuantSpec, activation_spec
from onnxq.version import VERSION

FINGERPRINT = "fingerprint"


class Checkpoint:
    """A folder of finished layers; None stands for no folder, and remembers nothing.

    Args:
        folder: where to keep them; made where it does not exist.
        fingerprint: of everything the solutions depend on.
        resume: use what is there; otherwise the folder must hold no layers yet.

    Raises:
        ConfigError: the folder holds another run's layers, or layers although no resume was asked for.
        OutputError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path | None, fingerprint: str, *, resume: bool) -> None:
        self._folder = folder
        if folder is None:
            return
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark = folder / FINGERPRINT
            ours = _claim(mark, fingerprint)
            found = mark.read_text()
            if not ours and not resume:
                raise ConfigError(
                    f"work directory {folder} holds an earlier run; resume it, or give another directory."
                )
            if found != fingerprint:
                raise ConfigError(
                    f"work directory {folder} belongs to a run with another model, configuration or calibration set; "
                    "give another directory."
                )
        except OSError as error:
            raise OutputError(f"work directory {folder} cannot be used: {error.strerror}.") from error

    def load(self, layer: str) -> LayerSolution | None:
        """The finished solution of a layer, if there is one that can be read."""
        packed = self._read(layer)
        try:
            return None if packed is None else _unpack(layer, packed)
        except (ValueError, KeyError):
            return None

    def save(self, solution: LayerSolution) -> None:
        """Keep a finished layer.

        Raises:
            OutputError: the disk is full.
        """
        self._write(solution.layer, _pack(solution))

    def load_block(self, layers: Sequence[str]) -> dict[str, LayerSolution] | None:
        """The solutions of layers that were finished together, by name, if they can be read."""
        packed = self._read("\n".join(layers))
        if packed is None:
            return None
        try:
            return {
                layer: _unpack(layer, {k.split("/")[1]: v for k, v in packed.items() if k.startswith(f"{i}/")})
                for i, layer in enumerate(layers)
            }
        except (ValueError, KeyError):
            return None

    def save_block(self, solutions: Mapping[str, LayerSolution]) -> None:
        """Keep layers that were finished together, all or none.

        Raises:
            OutputError: the disk is full.
        """
        packed = {f"{i}/{k}": v for i, s in enumerate(solutions.values()) for k, v in _pack(s).items()}
        self._write("\n".join(solutions), packed)

    def _read(self, name: str) -> dict[str, NDArray[Any]] | None:
        path = self._path(name)
        if path is None or not path.exists():
            return None
        try:
            with path.open("rb") as stream, np.load(stream) as file:
                return dict(file)
        except Exception:  # zipfile, zlib and numpy each have kinds of their own
            return None

    def _write(self, name: str, packed: Mapping[str, NDArray[Any]]) -> None:
        path = self._path(name)
        if path is None:
            return
        try:
            with replaced_whole(path) as draft, draft.open("wb") as file:
                np.savez(file, allow_pickle=False, **packed)
        except OSError as error:
            raise OutputError(f"work directory {self._folder} cannot take another layer: {error.strerror}.") from error

    def _path(self, name: str) -> Path | None:
        return None if self._folder is None else self._folder / f"{hashlib.sha256(name.encode()).hexdigest()[:24]}.npz"


def _draft(path: Path) -> Path:
    """A name beside a file that no other process and no other thread writes to."""
    return path.with_suffix(f".{uuid.uuid4().hex}.draft")


def _claim(mark: Path, fingerprint: str) -> bool:
    """Write a fingerprint whole where there is none yet; of runs that start together, one writes it."""
    draft = _draft(mark)
    draft.write_text(fingerprint)
    try:
        os.link(draft, mark)
    except FileExistsError:
        return False
    except OSError:  # a file system without links
        try:
            with mark.open("x") as file:
                file.write(fingerprint)
        except FileExistsError:
            return False
    finally:
        draft.unlink()
    return True


def fingerprint_of(model: Model, config: Config, feeds: Iterable[Feed], *further: object) -> str:
    """A digest of everything that solutions or measurements depend on.

    Args:
        model: as it is solved or measured.
        config: every option counts.
        feeds: the samples, by what they hold.
        further: whatever else counts, of plain types.
    """
    texts = (json.dumps(value, sort_keys=True, default=str) for value in (asdict(config), VERSION, *further))
    return fingerprint(chain(identity(model), (text.encode() for text in texts), content(feeds)))


def fingerprint(parts: Iterable[bytes]) -> str:
    """A digest of everything a run depends on."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)
    return digest.hexdigest()


def _pack(solution: LayerSolution) -> dict[str, NDArray[Any]]:
    grid, spec = solution.input, solution.weight.spec
    packed: dict[str, NDArray[Any]] = {
        "integers": solution.integers,
        "weight_scale": solution.weight.scale,
        "weight_spec": np.array([spec.bits, spec.narrow, spec.granularity is Granularity.PER_TENSOR]),
        "numbers": np.array([solution.loss_nearest, solution.loss, solution.seconds]),
        "status": np.array(solution.status),
        "int32_bias": np.array(solution.int32_bias),
    }
    if solution.bias is not None:
        packed["bias"] = solution.bias
    if grid is not None:
        packed["input_scale"] = grid.scale
        packed["input_grid"] = np.array([grid.spec.bits, grid.spec.symmetric, grid.zero_point])
    return packed


def _unpack(layer: str, packed: dict[str, NDArray[Any]]) -> LayerSolution:
    bits, narrow, one_scale = packed["weight_spec"].tolist()
    nearest, loss, seconds = packed["numbers"].tolist()
    granularity = Granularity.PER_TENSOR if one_scale else Granularity.PER_CHANNEL
    if packed["weight_scale"].ndim == 2:
        granularity = Granularity.PER_BLOCK
    grid = None
    if "input_grid" in packed:
        input_bits, symmetric, zero = packed["input_grid"].tolist()
        grid = QuantParams(activation_spec(input_bits, symmetric=bool(symmetric)), packed["input_scale"], zero)
    return LayerSolution(
        layer=layer,
        integers=packed["integers"],
        weight=QuantParams(QuantSpec(bits, True, granularity, bool(narrow)), packed["weight_scale"]),
        bias=packed.get("bias"),
        input=grid,
        loss_nearest=nearest,
        loss=loss,
        status=str(packed["status"]),
        seconds=seconds,
        int32_bias=bool(packed["int32_bias"]),
    )
