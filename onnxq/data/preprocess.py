"""How an image becomes a sample: the specification in a ``preprocess.toml``, and the deed.

A specification for a network trained with torchvision's usual ImageNet pipeline::

    resize = 256                        # shortest side; [height, width] to fix both
    crop = 224                          # centre; [height, width] for another than a square
    interpolation = "bilinear"
    color = "RGB"
    layout = "NCHW"
    scale = "1/255"                     # a number or a fraction
    mean = [0.485, 0.456, 0.406]        # after scaling
    std = [0.229, 0.224, 0.225]

The steps run in the order in which they stand here, and do what torchvision's ``Resize``,
``CenterCrop``, ``ToTensor`` and ``Normalize`` do to a PIL image. Like these they leave the
orientation in the EXIF data alone.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic.dataclasses import dataclass
from pydantic.fields import FieldInfo

from onnxq.errors import CalibrationError

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def _number(value: object) -> object:
    if not isinstance(value, str):
        return value
    above, _, below = value.partition("/")
    try:
        return float(above) / float(below or 1)
    except ZeroDivisionError as error:
        raise ValueError("division by zero") from error


def _one_or_more(value: object) -> object:
    return [value] if isinstance(value, (int, float)) else value


Side = Annotated[int, Field(gt=0, strict=True)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
PerChannel = Annotated[tuple[Finite, ...], BeforeValidator(_one_or_more), Field(min_length=1)]


@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Preprocess:
    """A validated specification. The description of each field also completes its error message."""

    folder: str = Field(default=".", description="the folder of images, relative to the specification")
    resize: Side | tuple[Side, Side] | None = Field(
        default=None, description="the shortest side, or [height, width], in pixels"
    )
    crop: Side | tuple[Side, Side] | None = Field(
        default=None, description="the side of a centred square, or [height, width], in pixels"
    )
    interpolation: Literal["nearest", "bilinear", "bicubic", "lanczos"] = Field(
        default="bilinear", description="'nearest', 'bilinear', 'bicubic' or 'lanczos'"
    )
    color: Literal["RGB", "BGR", "L"] = Field(default="RGB", description="'RGB', 'BGR' or 'L' (grey)")
    layout: Literal["NCHW", "NHWC"] = Field(default="NCHW", description="'NCHW' or 'NHWC'")
    scale: Annotated[Finite, BeforeValidator(_number)] = Field(
        default=1.0, gt=0, description='a positive factor for pixels of 0 to 255, such as "1/255"'
    )
    mean: PerChannel = Field(default=(0.0,), description="a number, or one per channel, taken off after scaling")
    std: PerChannel = Field(default=(1.0,), description="a number, or one per channel, to divide by at last; not 0")
    dtype: Literal["float32", "float16", "uint8"] = Field(
        default="float32", description="'float32', 'float16' or 'uint8'"
    )

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        channels = 1 if self.color == "L" else 3
        for key, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels):
                raise ValueError(f"{key} has {len(values)} numbers where {self.color} has {channels} channels")
        if 0 in self.std:
            raise ValueError("std holds 0, and nothing can be divided by it")
        if self.dtype == "uint8" and (self.scale, {*self.mean}, {*self.std}) != (1.0, {0.0}, {1.0}):
            raise ValueError("scale, mean and std have no place with dtype 'uint8', which keeps the pixels as they are")
        return self


def read_preprocess(path: Path) -> Preprocess:
    """The specification in a TOML file.

    Raises:
        CalibrationError: the file cannot be read, or a key is unknown or its value out of range.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CalibrationError(f"{path} cannot be read ({error.strerror}): check the path") from error
    except ValueError as error:  # both of tomllib and of text that is not UTF-8
        raise CalibrationError(f"{path} is not a TOML file ({error}): correct it") from error
    try:
        return Preprocess(**values)
    except ValidationError as error:
        # Each alternative of a union adds a problem of its own; in our words they are one.
        problems = "; ".join(dict.fromkeys(_told(problem, values) for problem in error.errors()))
        raise CalibrationError(f"{path} does not describe a preprocessing: {problems}") from error


def _told(problem: Any, values: Mapping[str, Any]) -> str:
    """One problem that pydantic found, in the words of this specification."""
    known = {field.name: field.default for field in fields(Preprocess)}
    expected = {key: default.description for key, default in known.items() if isinstance(default, FieldInfo)}
    if not problem["loc"]:
        return str(problem["ctx"]["error"])
    key = str(problem["loc"][0])
    if key not in expected:
        return f"key {key!r} is unknown (known are {', '.join(expected)})"
    return f"{key} is {values[key]!r} where it must be {expected[key]}"


def prepare(image: Image.Image, spec: Preprocess) -> NDArray[Any]:
    """One sample from one image.

    Args:
        image: of 8 bits a channel, any mode.
        spec: what to do.

    Returns:
        (C, H, W) or (H, W, C), after ``spec.layout``, of type ``spec.dtype``.

    Raises:
        ValueError: the image has more than 8 bits a channel, or is smaller than the crop.
    """
    pixels = np.asarray(_cropped(_resized(_coloured(image, spec), spec), spec))
    if spec.color == "L":
        pixels = pixels[:, :, np.newaxis]
    if spec.color == "BGR":
        pixels = pixels[:, :, ::-1]
    if spec.dtype == "uint8":
        sample: NDArray[Any] = pixels
    else:
        # In float32 whatever the type of the result, as the training pipelines do.
        mean, std = np.asarray(spec.mean, np.float32), np.asarray(spec.std, np.float32)
        sample = ((pixels.astype(np.float32) * np.float32(spec.scale) - mean) / std).astype(spec.dtype)
    return sample.transpose(2, 0, 1) if spec.layout == "NCHW" else sample


def _coloured(image: Image.Image, spec: Preprocess) -> Image.Image:
    if image.mode in ("I", "F") or image.mode.startswith("I;"):
        # PIL would clip these at 255 without a word.
        raise ValueError(f"its pixels have more than 8 bits (mode {image.mode})")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("L" if spec.color == "L" else "RGB")


def _resized(image: Image.Image, spec: Preprocess) -> Image.Image:
    if spec.resize is None:
        return image
    if isinstance(spec.resize, tuple):
        height, width = spec.resize
    elif image.height < image.width:
        height, width = spec.resize, spec.resize * image.width // image.height
    else:
        height, width = spec.resize * image.height // image.width, spec.resize
    return image.resize((width, height), _FILTERS[spec.interpolation])


def _cropped(image: Image.Image, spec: Preprocess) -> Image.Image:
    if spec.crop is None:
        return image
    height, width = spec.crop if isinstance(spec.crop, tuple) else (spec.crop, spec.crop)
    if height > image.height or width > image.width:
        raise ValueError(f"its {image.height}×{image.width} pixels are fewer than the crop of {height}×{width}")
    top, left = round((image.height - height) / 2), round((image.width - width) / 2)
    return image.crop((left, top, left + width, top + height))
