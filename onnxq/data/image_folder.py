"""A folder of images as a source."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxq.data.feed import Piece, Signature
from onnxq.data.order import files_under
from onnxq.data.preprocess import Preprocess, prepare, read_preprocess
from onnxq.errors import CalibrationError

FORMATS = ("BMP", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What a file may hold, whatever it is called: for some other formats PIL starts programs on what it reads."""

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


@dataclass(frozen=True)
class ImageFolder:
    """Images in a folder and its sub-folders, prepared one by one, for a single-input model.

    Files that are no images by their suffix are passed over. The order is the natural one of the
    relative paths.

    Attributes:
        path: the folder.
        spec: how an image becomes a sample.
    """

    path: Path
    spec: Preprocess

    @classmethod
    def described_by(cls, file: Path) -> ImageFolder:
        """The folder that a specification names, relative to itself.

        Raises:
            CalibrationError: the specification is invalid, or its folder does not exist.
        """
        spec = read_preprocess(file)
        path = file.parent / spec.folder
        if not path.is_dir():
            raise CalibrationError(
                f"{file} names the folder {spec.folder!r}, but there is none at {path}: "
                "give 'folder' relative to the specification"
            )
        return cls(path, spec)

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    def pieces(self, signature: Signature, rows: int) -> Iterator[Piece]:
        """One image at a time; for a model without a sample axis, each as a feed of its own."""
        target = signature.only(self.name).name
        for file in self._files():
            sample = self._sample(file)
            yield Piece(str(file), {target: sample[np.newaxis] if signature.has_sample_axis else sample})

    def count(self, signature: Signature | None) -> int | None:
        """Number of image files."""
        return len(self._files())

    def _files(self) -> list[Path]:
        try:
            files = files_under(self.path, SUFFIXES)
        except OSError as error:
            raise CalibrationError(f"{self.path} cannot be listed ({error}): check its permissions") from error
        if not files:
            raise CalibrationError(
                f"the calibration set is empty: {self.path} holds no images ({', '.join(sorted(SUFFIXES))})"
            )
        return files

    def _sample(self, file: Path) -> NDArray[Any]:
        try:
            with Image.open(file, formats=FORMATS) as image:
                return prepare(image, self.spec)
        # A damaged file shows as whatever its decoder stumbles over.
        except (OSError, ValueError, SyntaxError, EOFError, struct.error, Image.DecompressionBombError) as error:
            raise CalibrationError(f"{file} cannot be used as an image ({error}): replace or remove it") from error
