"""The one door that every sample passes: names, shapes, types and finite values."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxq.data.feed import Feed, Piece, Signature
from onnxq.data.stacked import complete_feeds
from onnxq.errors import CalibrationError
from onnxq.ir.tensor import TensorInfo


def validated(pieces: Iterable[Piece], signature: Signature, rows: int, limit: int | None = None) -> Iterator[Feed]:
    """Feeds that fit the model, in the order of the samples.

    Large pieces are cut before they are converted, so that a big array is never copied whole. The
    samples past ``limit`` are neither looked at nor asked of the source.

    Args:
        pieces: what a source gave.
        signature: what the model takes.
        rows: greatest number of samples in a feed. Without a sample axis every piece becomes one feed.
        limit: greatest number of samples altogether; ``None`` for all.

    Yields:
        Arrays of the inputs' types, in the order of the inputs. They may share memory with the source.

    Raises:
        CalibrationError: a piece does not fit, or a value is not finite.
    """
    done = 0
    if not signature.has_sample_axis:
        pieces = (feed for piece in pieces for feed in complete_feeds(piece, signature))
    for piece in pieces:
        check({name: facts(name, array) for name, array in piece.arrays.items()}, signature, piece.origin)
        arrays = {info.name: piece.arrays[info.name] for info in signature.inputs}
        if signature.has_sample_axis:
            length = len(arrays[signature.inputs[0].name])
            wanted = length if limit is None else min(length, limit - done)
            for start in range(0, wanted, rows):
                stop = min(start + rows, wanted)
                cut = {name: array[start:stop] for name, array in arrays.items()}
                yield _converted(cut, signature, piece.origin, done + start)
            done += wanted
        else:
            lifted = {name: array[np.newaxis] for name, array in arrays.items()}
            yield {name: array[0] for name, array in _converted(lifted, signature, piece.origin, done).items()}
            done += 1
        if done == limit:
            return


def facts(name: str, array: NDArray[Any]) -> TensorInfo:
    """Name, type and shape of an array."""
    return TensorInfo(name, array.dtype, array.shape)


def check(found: Mapping[str, TensorInfo], signature: Signature, origin: str) -> None:
    """Compare what is there with what the model takes, before any value is read.

    Args:
        found: what the source holds, by name.
        signature: what the model takes. The first axis of an input counts samples, whatever number
            the model fixes for it; without a sample axis shapes must match in full.
        origin: the source, as the subject of the message.

    Raises:
        CalibrationError: a name is missing or unknown, a shape or type does not fit, or the inputs
            hold different numbers of samples.
    """
    check_names(found, signature, origin)
    for info in signature.inputs:
        _check_shape(found[info.name], info, signature, origin)
        _check_dtype(found[info.name], info, origin)
    if signature.has_sample_axis:
        lengths = {info.name: (found[info.name].shape or (None,))[0] for info in signature.inputs}
        if len(set(lengths.values())) > 1:
            listed = ", ".join(f"{length} of {name!r}" for name, length in lengths.items())
            raise CalibrationError(
                f"{origin} has {listed}: the first axis counts samples and must be equally long for every input"
            )


def check_names(found: Collection[str], signature: Signature, origin: str) -> None:
    """Compare the names that are there with the model's inputs.

    Raises:
        CalibrationError: an input is missing, or a name is neither an input nor ignored.
    """
    wanted = [info.name for info in signature.inputs]
    missing = [name for name in wanted if name not in found]
    unknown = [name for name in found if name not in wanted and name not in signature.ignored]
    if not missing and not unknown:
        return
    expected = ", ".join(info.describe() for info in signature.inputs)
    if len(missing) == len(unknown) == 1:
        advice = f"rename {unknown[0]!r} to {missing[0]!r} if that is what it holds"
    elif missing:
        advice = "give one array per input, by its name in the model"
    else:
        advice = "leave out what is no input, or have it passed over (--ignore, in Python ignore=)"
    problems = ([f"lacks {_quoted(missing)}"] if missing else []) + (
        [f"holds {_quoted(unknown)}, which the model does not know"] if unknown else []
    )
    raise CalibrationError(f"{origin} {' and '.join(problems)} (inputs of the model: {expected}): {advice}")


def _check_shape(found: TensorInfo, wanted: TensorInfo, signature: Signature, origin: str) -> None:
    shape = found.shape or ()
    if wanted.shape is None:
        expected: tuple[int | None, ...] = shape or ((None,) if signature.has_sample_axis else ())
    elif signature.has_sample_axis:
        expected = (None, *wanted.shape[1:])
    else:
        expected = wanted.shape
    if _fits(shape, expected):
        return
    shown = TensorInfo(wanted.name, wanted.dtype, expected)
    if signature.has_sample_axis and _fits(shape, expected[1:]):
        advice = "add a first axis that counts the samples"
    elif len(shape) == 4 and _fits((shape[0], shape[3], shape[1], shape[2]), expected):
        advice = "the channels seem to come last, so transpose with (0, 3, 1, 2)"
    elif len(shape) == 4 and _fits((shape[0], shape[2], shape[3], shape[1]), expected):
        advice = "the channels seem to come first, so transpose with (0, 2, 3, 1)"
    elif not signature.has_sample_axis:
        advice = "give one sample in that shape, or all with one more axis in front of every input that counts them"
    else:
        advice = "bring the samples into that shape first"
    raise CalibrationError(f"{origin} has {found.describe()} where the model takes {shown.describe()}: {advice}")


def _fits(shape: tuple[int | None, ...], expected: tuple[int | None, ...]) -> bool:
    return len(shape) == len(expected) and all(e is None or s == e for s, e in zip(shape, expected, strict=True))


def _check_dtype(found: TensorInfo, wanted: TensorInfo, origin: str) -> None:
    have, need = found.dtype, wanted.dtype
    if have == need or (_is_float(have) and _is_float(need)) or (have.kind in "iub" and need.kind in "iu"):
        return
    if have.kind in "iub" and _is_float(need):
        advice = "scale and normalise the values as in training (a preprocess.toml does it for a folder of images)"
    elif _is_float(have) and need.kind in "iu":
        advice = f"cast with astype({need.name!r}) if the values are whole numbers"
    else:
        advice = f"convert the values to {need.name}"
    raise CalibrationError(f"{origin} has {found.describe()} where the model takes {wanted.describe()}: {advice}")


def _is_float(dtype: np.dtype[Any]) -> bool:
    # numpy does not count bfloat16 among its floating types.
    return dtype.kind == "f" or dtype.name == "bfloat16"


def _converted(arrays: Feed, signature: Signature, origin: str, first: int) -> Feed:
    """The arrays in the types of the inputs; ``first`` is the number of their first sample."""
    return {info.name: _convert(arrays[info.name], info, origin, first) for info in signature.inputs}


def _convert(array: NDArray[Any], info: TensorInfo, origin: str, first: int) -> NDArray[Any]:
    if _is_float(info.dtype):
        with np.errstate(over="ignore", invalid="ignore"):
            result = array.astype(info.dtype, copy=False)
        wrong = ~np.isfinite(result)
        advice = "repair that sample or leave it out"
    elif info.dtype.kind in "iu" and array.dtype.kind in "iu":
        limits = np.iinfo(info.dtype.name)
        result = array.astype(info.dtype, copy=False)
        wrong = (array < limits.min) | (array > limits.max)
        advice = f"give values within {info.dtype.name}"
    else:
        return array.astype(info.dtype, copy=False)
    if wrong.any():
        where = np.unravel_index(int(np.argmax(wrong)), wrong.shape)
        value = array[where]
        # A finite value can only be wrong because the input's type cannot hold it.
        what = str(value) if not np.isfinite(value) else f"{value}, too large for {info.dtype.name}"
        raise CalibrationError(
            f"{origin} holds {what}, in input {info.name!r}, sample {first + int(where[0])} (counted from 0): {advice}"
        )
    return result


def _quoted(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names)
