"""A folder of .npy files as a source.

For a single-input model the files lie in the folder itself::

    calib/0.npy  calib/1.npy  …  calib/10.npy

For several inputs, and for one if that is handier, each input has a sub-folder of its name, and the
files of one name in all of them belong together::

    calib/input_ids/0.npy        calib/input_ids/1.npy
    calib/attention_mask/0.npy   calib/attention_mask/1.npy

Files are read in natural order (9 before 10). A file whose array has one axis less than the input
holds one sample; one with as many axes holds a batch of any size. Where the rank of the input is
unknown the array counts as a batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnxq.data.feed import Piece, Signature
from onnxq.data.npy import npy_header, read_npy
from onnxq.data.order import files_in
from onnxq.errors import CalibrationError
from onnxq.ir.tensor import TensorInfo

SUFFIXES = frozenset({".npy"})


@dataclass(frozen=True)
class NpyFolder:
    """A folder of .npy files, laid out as described at the top of this module."""

    path: Path

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def pieces(self, signature: Signature, rows: int) -> Iterator[Piece]:
        """A piece for each sample that is a file (or a set of files of one name), several for a batch."""
        columns = self._columns(signature)
        for files in zip(*columns.values(), strict=True):
            shapes = [npy_header(file).shape for file in files]
            infos = list(zip(signature.inputs, shapes, strict=True))
            alone = [signature.has_sample_axis and _is_sample(len(shape), info) for info, shape in infos]
            in_step = signature.has_sample_axis and not any(alone) and all(shapes)
            in_step = in_step and len({shape[:1] for shape in shapes}) == 1 and shapes[0][0] > 0
            walks = [read_npy(file, rows if in_step else None) for file in files]
            for arrays in zip(*walks, strict=True):
                lifted = [a[np.newaxis] if one else a for a, one in zip(arrays, alone, strict=True)]
                yield Piece(self._origin(files), dict(zip([i.name for i in signature.inputs], lifted, strict=True)))

    def count(self, signature: Signature | None) -> int | None:
        """Samples in all files, from the headers; ``None`` without a signature to tell samples from batches."""
        if signature is None:
            return None
        info = signature.inputs[0]
        files = self._columns(signature)[info.name]
        if not signature.has_sample_axis:
            return len(files)
        shapes = [npy_header(file).shape for file in files]
        return sum(1 if _is_sample(len(shape), info) or not shape else shape[0] for shape in shapes)

    def _columns(self, signature: Signature) -> Mapping[str, list[Path]]:
        """The files of each input, in the order of the inputs; equal positions belong together."""
        try:
            flat = files_in(self.path, SUFFIXES)
            folders = {entry.name: entry for entry in self.path.iterdir() if entry.is_dir() and entry.name[0] != "."}
            named = {name: files_in(folder, SUFFIXES) for name, folder in folders.items()}
        except OSError as error:
            raise CalibrationError(f"{self.path} cannot be listed ({error}): check its permissions") from error
        named = {name: files for name, files in named.items() if files and name not in signature.ignored}
        if flat and named:
            raise CalibrationError(
                f"{self.path} holds .npy files both directly and in sub-folders ({', '.join(sorted(named))}): "
                "keep one of the two"
            )
        if not flat and not named:
            raise CalibrationError(
                f"the calibration set is empty: {self.path} holds no .npy files, "
                "and images would need a preprocess.toml beside them"
            )
        if flat:
            return {signature.only(self.name).name: flat}
        self._check_names(named, signature)
        return {info.name: named[info.name] for info in signature.inputs}

    def _check_names(self, named: Mapping[str, list[Path]], signature: Signature) -> None:
        expected = {info.name for info in signature.inputs}
        if named.keys() != expected:
            raise CalibrationError(
                f"{self.path} has .npy files in sub-folders {_listed(named)} where the model has the inputs "
                f"{_listed(expected)}: keep one sub-folder per input, with its exact name"
            )
        first = signature.inputs[0].name
        names = {file.name for file in named[first]}
        for other, files in named.items():
            odd = names.symmetric_difference(file.name for file in files)
            if odd:
                raise CalibrationError(
                    f"{self.path} has {min(odd)} in only one of the sub-folders {first!r} and {other!r}: "
                    "give every input a file of each name"
                )

    def _origin(self, files: tuple[Path, ...]) -> str:
        return str(files[0]) if len(files) == 1 else str(self.path / "*" / files[0].name)


def _is_sample(rank: int, info: TensorInfo) -> bool:
    """Whether an array of that rank is one sample of the input, without the sample axis."""
    return info.shape is not None and rank == len(info.shape) - 1


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in sorted(names))
