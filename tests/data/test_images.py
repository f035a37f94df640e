from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from onnxq.data import count_samples, read_feeds
from onnxq.data.preprocess import Preprocess, prepare
from onnxq.errors import CalibrationError
from onnxq.ir.tensor import TensorInfo

X = TensorInfo("x", np.dtype("float32"), (None, 3, None, None))


def picture(height: int = 6, width: int = 8, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def folder(path: Path, text: str = "", names: tuple[str, ...] = ("0.png",)) -> Path:
    (path / "preprocess.toml").write_text(text)
    for seed, name in enumerate(names):
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(seed=seed).save(path / name)
    return path


def only(path: Path, info: TensorInfo = X) -> np.ndarray:
    [feed] = read_feeds(path, [info], batch=100)
    return feed["x"]


def test_without_steps_the_pixels_come_as_they_are(tmp_path: Path) -> None:
    pixels = only(folder(tmp_path))
    assert pixels.dtype == np.float32
    assert np.array_equal(pixels[0], np.asarray(picture()).transpose(2, 0, 1))


def test_scale_mean_and_std_apply_per_channel_in_this_order(tmp_path: Path) -> None:
    spec = 'scale = "1/255"\nmean = [0.485, 0.456, 0.406]\nstd = [0.229, 0.224, 0.225]'
    want = (np.asarray(picture()).transpose(2, 0, 1) / 255 - np.reshape([0.485, 0.456, 0.406], (3, 1, 1))) / np.reshape(
        [0.229, 0.224, 0.225], (3, 1, 1)
    )
    # Values of up to 2.7 after three float32 roundings, against float64.
    assert np.abs(only(folder(tmp_path, spec))[0] - want).max() < 2e-6


def test_one_number_serves_all_channels(tmp_path: Path) -> None:
    pixels = only(folder(tmp_path, "mean = 127.5\nstd = 127.5"))
    assert np.allclose(pixels[0], np.asarray(picture()).transpose(2, 0, 1) / 127.5 - 1, rtol=0, atol=1e-6)


def test_bgr_reverses_the_channels(tmp_path: Path) -> None:
    assert np.array_equal(only(folder(tmp_path, 'color = "BGR"'))[0], np.asarray(picture()).transpose(2, 0, 1)[::-1])


def test_grey_has_one_channel(tmp_path: Path) -> None:
    grey = TensorInfo("x", np.dtype("float32"), (None, 1, 6, 8))
    assert np.array_equal(only(folder(tmp_path, 'color = "L"'), grey)[0, 0], np.asarray(picture().convert("L")))


def test_nhwc_and_uint8_keep_the_image(tmp_path: Path) -> None:
    info = TensorInfo("x", np.dtype("uint8"), (None, 6, 8, 3))
    pixels = only(folder(tmp_path, 'layout = "NHWC"\ndtype = "uint8"'), info)
    assert pixels.dtype == np.uint8 and np.array_equal(pixels[0], np.asarray(picture()))


@pytest.mark.parametrize(
    ("size", "want"), [((60, 80), (30, 40)), ((80, 60), (40, 30)), ((50, 50), (30, 30)), ((31, 77), (30, 74))]
)
def test_resize_fits_the_shortest_side(size: tuple[int, int], want: tuple[int, int]) -> None:
    assert prepare(picture(*size), Preprocess(resize=30)).shape == (3, *want)


def test_resize_takes_height_before_width() -> None:
    assert prepare(picture(), Preprocess(resize=(4, 20))).shape == (3, 4, 20)


def test_resize_uses_the_filter_asked_for() -> None:
    got = {
        name: prepare(picture(40, 40), Preprocess(resize=9, interpolation=name))
        for name in ("nearest", "bilinear", "bicubic", "lanczos")
    }
    filters = Image.Resampling
    for name, method in (
        ("nearest", filters.NEAREST),
        ("bilinear", filters.BILINEAR),
        ("bicubic", filters.BICUBIC),
        ("lanczos", filters.LANCZOS),
    ):
        assert np.array_equal(got[name], np.asarray(picture(40, 40).resize((9, 9), method)).transpose(2, 0, 1))


@pytest.mark.parametrize(
    ("crop", "rows", "columns"),
    [(4, slice(1, 5), slice(2, 6)), ((2, 8), slice(2, 4), slice(0, 8)), ((6, 5), slice(0, 6), slice(2, 7))],
)
def test_crop_takes_the_centre(crop: int | tuple[int, int], rows: slice, columns: slice) -> None:
    want = np.asarray(picture())[rows, columns].transpose(2, 0, 1)
    assert np.array_equal(prepare(picture(), Preprocess(crop=crop)), want)


@pytest.mark.parametrize("mode", ["L", "LA", "RGBA", "P", "1", "CMYK"])
def test_every_mode_of_8_bits_becomes_rgb(mode: str) -> None:
    assert prepare(picture().convert(mode), Preprocess()).shape == (3, 6, 8)


def test_a_palette_with_transparency_becomes_rgb_without_a_warning(tmp_path: Path) -> None:
    folder(tmp_path, names=())
    picture().convert("P").save(tmp_path / "0.png", transparency=bytes(range(256)))
    assert only(tmp_path).shape == (1, 3, 6, 8)


def test_more_than_8_bits_are_an_error_and_not_clipped(tmp_path: Path) -> None:
    folder(tmp_path, names=())
    Image.fromarray(np.full((6, 8), 1000, np.uint16)).save(tmp_path / "0.png")
    with pytest.raises(CalibrationError, match=r"0\.png cannot be used as an image \(its pixels have more than 8 bits"):
        only(tmp_path)


def test_images_are_found_in_sub_folders_in_natural_order(tmp_path: Path) -> None:
    names = ("b/2.png", "b/10.JPG", "a/1.png", "img9.bmp", "img10.png", ".hidden/0.png", "b/.0.png")
    path = folder(tmp_path, names=names)
    (tmp_path / "notes.txt").write_text("no image")
    want = [names.index(name) for name in ("a/1.png", "b/2.png", "b/10.JPG", "img9.bmp", "img10.png")]
    # JPEG does not keep the pixels, but stays closer to its own image than to any other.
    sent = np.stack([np.asarray(picture(seed=i)).transpose(2, 0, 1).astype(float) for i in range(len(names))])
    got = [int(np.argmin(np.abs(sent - one).mean((1, 2, 3)))) for one in only(path)]
    assert got == want
    assert count_samples(path) == 5


def test_a_specification_may_lie_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    folder(tmp_path / "images", "mean = 1")
    (tmp_path / "spec.toml").write_text('folder = "images"\nmean = 2')
    got = only(tmp_path / "spec.toml")
    assert np.array_equal(got[0], np.asarray(picture()).transpose(2, 0, 1) - np.float32(2))


def test_a_specification_of_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "spec.toml").write_text('folder = "images"')
    with pytest.raises(CalibrationError, match="names the folder 'images', but there is none at"):
        read_feeds(tmp_path / "spec.toml", [X], batch=1)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("colour = 'RGB'", r"key 'colour' is unknown \(known are folder, resize, crop,"),
        ("resize = 0", r"resize is 0 where it must be the shortest side, or \[height, width\]"),
        ("resize = 3.5", "resize is 3.5"),
        ("resize = true", "resize is True"),
        ("crop = [1, 2, 3]", r"must be the side of a centred square"),
        ("crop = [1, -2]", r"crop is \[1, -2\]"),
        ("interpolation = 'cubic'", "must be 'nearest', 'bilinear', 'bicubic' or 'lanczos'"),
        ("color = 'rgb'", "color is 'rgb' where it must be 'RGB', 'BGR' or 'L'"),
        ("layout = 'CHW'", "layout is 'CHW'"),
        ("dtype = 'int8'", "dtype is 'int8'"),
        ("scale = 0", "scale is 0 where"),
        ("scale = 'big'", "scale is 'big' where it must be a positive factor"),
        ("scale = '1/0'", "scale is '1/0'"),
        ("mean = nan", "mean is nan"),
        ("mean = 'low'", "mean is 'low'"),
        ("mean = []", r"mean is \[\]"),
        ("mean = [1, 2]", "mean has 2 numbers where RGB has 3 channels"),
        ("color = 'L'\nstd = [1, 2, 3]", "std has 3 numbers where L has 1 channel"),
        ("std = [1, 0, 1]", "std holds 0"),
        ("dtype = 'uint8'\nscale = 0.5", "scale, mean and std have no place with dtype 'uint8'"),
        ("resize = ", "is not a TOML file"),
    ],
)
def test_a_wrong_specification_is_told_in_one_sentence(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(CalibrationError, match=told) as caught:
        read_feeds(folder(tmp_path, text), [X], batch=1)
    assert "preprocess.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_all_problems_of_a_specification_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"resize is 0 .*; .*key 'colour' is unknown"):
        read_feeds(folder(tmp_path, "resize = 0\ncolour = 'RGB'"), [X], batch=1)


def test_a_specification_that_is_not_text_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "preprocess.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(CalibrationError, match="is not a TOML file"):
        read_feeds(tmp_path, [X], batch=1)


@pytest.mark.parametrize("content", [b"", b"no image at all", "half"])
def test_a_corrupt_image_is_named(tmp_path: Path, content: bytes | str) -> None:
    folder(tmp_path, names=("0.png", "1.png"))
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2] if isinstance(content, str) else content)
    with pytest.raises(CalibrationError, match=r"1\.png cannot be used as an image \(.+\): replace or remove it"):
        list(read_feeds(tmp_path, [X], batch=1))


def test_an_image_smaller_than_the_crop_is_named(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"0\.png cannot .*its 6×8 pixels are fewer than the crop of 7×7"):
        only(folder(tmp_path, "crop = 7"))


def test_an_image_of_a_wrong_size_is_named(tmp_path: Path) -> None:
    info = TensorInfo("x", np.dtype("float32"), (1, 3, 224, 224))
    with pytest.raises(CalibrationError, match=r"0\.png has x float32 \[1, 3, 6, 8\] where .* \[\?, 3, 224, 224\]"):
        list(read_feeds(folder(tmp_path), [info], batch=1))


def test_a_folder_without_images_is_an_empty_set(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match=r"the calibration set is empty: .* holds no images"):
        list(read_feeds(folder(tmp_path, names=()), [X], batch=1))


def test_images_need_a_model_with_one_input(tmp_path: Path) -> None:
    other = TensorInfo("y", np.dtype("float32"), (None, 1))
    with pytest.raises(CalibrationError, match="which of the model's 2 inputs"):
        list(read_feeds(folder(tmp_path), [X, other], batch=1))


def test_images_past_the_limit_are_not_opened(tmp_path: Path) -> None:
    folder(tmp_path, names=("0.png", "1.png"))
    (tmp_path / "1.png").write_bytes(b"broken")
    assert len(list(read_feeds(tmp_path, [X], batch=4, samples=1))) == 1
