"""From whatever the caller has to feeds of one size: the way in for calibration and evaluation data."""

from __future__ import annotations

import os
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

from onnxq.data.feed import Feed, Signature, Source
from onnxq.data.npy import NpyFile
from onnxq.data.npy_folder import NpyFolder
from onnxq.data.npz import NpzFile
from onnxq.data.objects import Array, Arrays, Batches, as_array, as_arrays
from onnxq.data.rebatch import full_batches, rebatch
from onnxq.data.validate import validated
from onnxq.errors import CalibrationError, ConfigError
from onnxq.ir.tensor import TensorInfo

Data: TypeAlias = str | os.PathLike[str] | NDArray[Any] | Mapping[str, Any] | Iterable[Any]
"""Everything that :func:`read_feeds` takes."""

SPECIFICATION = "preprocess.toml"


def read_feeds(
    data: Data,
    inputs: Sequence[TensorInfo],
    *,
    samples: int | None = None,
    batch: int,
    ignore: Container[str] = (),
) -> Iterator[Feed]:
    """The samples in their order, as feeds of ``batch`` samples each; only the last may be smaller.

    A few batches are in memory at a time, whatever the number of samples. Neither the values nor
    the feeds depend on how the source groups its samples, with one exception: where the shape of
    the samples changes (open axes), the feed ends early.

    Args:
        data: one of

            * the path of a ``.npz`` file, one array per input, first axis samples;
            * the path of a ``.npy`` file, for a model with a single input;
            * a folder of ``.npy`` files (:mod:`onnxq.data.npy_folder`);
            * a folder of images with a ``preprocess.toml`` in it, or the path of such a
              specification with the key ``folder`` (:mod:`onnxq.data.preprocess`);
            * an array, for a model with a single input, or a mapping ``{input: array}``;
            * an iterable of such arrays or mappings, each a batch of any size: a list, a generator,
              a data loader.

            Anything with ``__array__`` counts as an array.
        inputs: the inputs of the model. Where they fix their first axis, ``batch`` must be that
            number, and an incomplete last batch is dropped. Where they have no sample axis (a
            scalar input, different fixed first axes, or one fixed before an open axis beside an open
            one) every batch of an iterable, every file (or set of files) of a folder, and otherwise the
            whole source is one feed, passed on as it is, or several that are stacked
            (:mod:`onnxq.data.stacked`).
        samples: use the first so many (without a sample axis: feeds); the rest is not even looked
            at. ``None`` for all.
        batch: samples a feed.
        ignore: names that the source may hold beside the inputs, such as labels.

    Returns:
        An iterator of feeds whose arrays have the types of the inputs and stand in their order.
        Floats of another width, and integers whose values fit, are converted. An array is the
        receiver's own where the model has a sample axis, and may be the source's where it has none.

    Raises:
        ConfigError: ``samples`` or ``batch`` is out of range.
        CalibrationError: at once where ``data`` is nothing to read from; while iterating where a
            sample does not fit the model or is not finite, or where there are none.

    Example:
        >>> import numpy as np
        >>> image = TensorInfo("image", np.dtype("float32"), (None, 2))
        >>> [feed["image"].shape for feed in read_feeds(np.ones((5, 2)), [image], batch=3)]
        [(3, 2), (2, 2)]
    """
    signature = Signature(tuple(inputs), ignore)
    if samples is not None and samples < 1:
        raise ConfigError(f"samples is {samples} where at least 1 is needed: leave it out to use all")
    fixed = signature.fixed_batch
    if batch < 1 or (fixed is not None and batch != fixed):
        needed = "at least 1 is needed" if fixed is None else f"the model takes exactly {fixed} samples at a time"
        raise ConfigError(f"batch is {batch} where {needed}: set it to {fixed or 1}")
    if not signature.inputs:
        raise CalibrationError("the model has no inputs, so there is nothing to feed it with")
    return _feeds(open_source(data), signature, samples, batch)


def count_samples(data: Data, inputs: Sequence[TensorInfo] | None = None) -> int | None:
    """Number of samples where it costs little to know: from headers, file names and array lengths.

    Args:
        data: as for :func:`read_feeds`.
        inputs: the inputs of the model. They tell samples from batches in a folder of ``.npy``
            files, and inputs from labels elsewhere.

    Returns:
        The number, or ``None`` for iterables and where ``inputs`` would be needed.

    Raises:
        CalibrationError: ``data`` is nothing to read from.
    """
    return open_source(data).count(None if inputs is None else Signature(tuple(inputs)))


def open_source(data: Data) -> Source:
    """The source behind a path or an object; no sample is read yet.

    Raises:
        CalibrationError: there is no such file or folder, or nothing can be read from the object.
    """
    if isinstance(data, (str, os.PathLike)):
        return _source_at(Path(data))
    if hasattr(data, "__array__"):
        return Array(as_array(data, "the array given"))
    if isinstance(data, Mapping):
        return Arrays(as_arrays(data, "the mapping given"))
    if hasattr(data, "__iter__") or hasattr(data, "__getitem__"):
        return Batches(data)
    raise CalibrationError(
        f"samples cannot be read from an object of type {type(data).__name__}: "
        "give a path, an array, a mapping {input: array} or an iterable of batches"
    )


def _source_at(path: Path) -> Source:
    if not path.exists():
        raise CalibrationError(f"there is no file or folder {path}: give the path of the samples")
    suffix = path.suffix.lower()
    if path.is_dir() and not (path / SPECIFICATION).exists():
        return NpyFolder(path)
    if path.is_dir() or suffix == ".toml":
        # PIL loads only for those who have images.
        from onnxq.data.image_folder import ImageFolder

        return ImageFolder.described_by(path / SPECIFICATION if path.is_dir() else path)
    if suffix == ".npz":
        return NpzFile(path)
    if suffix == ".npy":
        return NpyFile(path)
    raise CalibrationError(
        f"{path} is no kind of file that samples are read from: give a .npz, a .npy or a .toml file, or a folder"
    )


def _feeds(source: Source, signature: Signature, samples: int | None, batch: int) -> Iterator[Feed]:
    pieces = source.pieces(signature, batch)
    first = next(pieces, None)
    if first is not None:
        signature = signature.settled({name: array.shape for name, array in first.arrays.items()})
        pieces = chain([first], pieces)
    feeds = validated(pieces, signature, batch, samples)
    if signature.has_sample_axis:
        feeds = rebatch(feeds, batch)
        if signature.fixed_batch is not None:
            feeds = full_batches(feeds, batch, source.name)
    empty = True
    for feed in feeds:
        empty = False
        yield feed
    if empty:
        raise CalibrationError(f"the calibration set is empty: {source.name} holds no samples")
