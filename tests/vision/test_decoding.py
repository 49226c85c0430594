"""Each kind of picture has its rule; 8-bit ones are, pixel by pixel, what transformers.pipeline would see."""

import os
import warnings
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image
from transformers.image_utils import load_image

from sft_hf.vision.decoding import UnreadableImage, check_image, cropped, digest, open_image, size_of, to_rgb

ORIENTATION = 0x0112
DEEP_VALUES = [[0, 1, 257, 12850, 65278, 65535]]


def picture(width: int = 40, height: int = 24) -> Image.Image:
    """Smooth colours, different in every corner."""
    corners = np.array([[[250, 20, 30], [20, 240, 40]], [[30, 40, 230], [200, 190, 20]]], dtype=np.uint8)
    return Image.fromarray(corners).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, file_format: str, **options) -> dict:
    """What an Image(decode=False) column holds."""
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return {"bytes": buffer.getvalue(), "path": f"a.{file_format.lower()}"}


def with_orientation(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def by_transformers(value: dict) -> np.ndarray:
    return np.asarray(load_image(Image.open(BytesIO(value["bytes"]))))


def pixels(value) -> np.ndarray:
    image = to_rgb(open_image(value))
    assert image.mode == "RGB"
    return np.asarray(image)


# ---- as transformers' load_image ----


def transparent() -> Image.Image:
    image = picture().convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(image.size))
    return image


def palette(transparency: int | bytes | None) -> dict:
    image = picture().quantize(16)
    return encoded(image, "PNG", **({} if transparency is None else {"transparency": transparency}))


EIGHT_BIT = {
    "RGB PNG": lambda: encoded(picture(), "PNG"),
    "RGB JPEG": lambda: encoded(picture(), "JPEG"),
    "RGB WebP": lambda: encoded(picture(), "WEBP"),
    "RGB BMP": lambda: encoded(picture(), "BMP"),
    "RGB TIFF": lambda: encoded(picture(), "TIFF", compression="tiff_lzw"),
    "grey JPEG": lambda: encoded(picture().convert("L"), "JPEG"),
    "grey PNG": lambda: encoded(picture().convert("L"), "PNG"),
    "1-bit PNG": lambda: encoded(picture().convert("1"), "PNG"),
    "grey with transparency": lambda: encoded(picture().convert("LA"), "PNG"),
    "RGBA PNG": lambda: encoded(transparent(), "PNG"),
    "RGBA WebP": lambda: encoded(transparent(), "WEBP"),
    "palette": lambda: palette(None),
    "palette, one transparent colour": lambda: palette(3),
    "palette, half transparent colours": lambda: palette(bytes(range(0, 256, 16))),
    "CMYK JPEG": lambda: encoded(picture().convert("CMYK"), "JPEG"),
    "CMYK TIFF": lambda: encoded(picture().convert("CMYK"), "TIFF"),
    "YCbCr TIFF": lambda: encoded(picture().convert("YCbCr"), "TIFF"),
}


@pytest.mark.parametrize("kind", EIGHT_BIT)
@pytest.mark.filterwarnings("ignore:Palette images with Transparency")
def test_8_bit_pictures_are_what_the_pipeline_sees(kind):
    value = EIGHT_BIT[kind]()
    np.testing.assert_array_equal(pixels(value), by_transformers(value))
    assert size_of(open_image(value)) == (40, 24)
    assert check_image(value) is None


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_pictures_are_turned_upright(file_format, orientation):
    value = encoded(picture(), file_format, exif=with_orientation(orientation))
    np.testing.assert_array_equal(pixels(value), by_transformers(value))
    image = open_image(value)
    upright = (24, 40) if orientation >= 5 else (40, 24)
    assert size_of(image) == upright
    assert to_rgb(image).size == upright
    assert size_of(image) == upright, "decoding does not change the answer"


@pytest.mark.parametrize("file_format", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(file_format):
    first, second = Image.new("RGB", (8, 8), (255, 0, 0)), Image.new("RGB", (8, 8), (0, 0, 255))
    value = encoded(first, file_format, save_all=True, append_images=[second], duration=100)
    assert open_image(value).n_frames == 2
    np.testing.assert_array_equal(pixels(value), by_transformers(value))
    assert pixels(value)[0, 0, 0] > 250 > 5 > pixels(value)[0, 0, 2]


def test_only_the_header_is_read_for_the_size(monkeypatch):
    value = encoded(picture(), "JPEG")
    monkeypatch.setattr("PIL.JpegImagePlugin.JpegImageFile.load", lambda self: pytest.fail("decoded"))
    assert size_of(open_image(value)) == (40, 24)


# ---- more than 8 bits: load_image clips, to_rgb does not ----


@pytest.mark.parametrize("dtype", ["<u2", ">u2"])
@pytest.mark.parametrize("file_format", ["PNG", "TIFF", None])
def test_16_bit_grey_is_divided_by_257(file_format, dtype):
    image = Image.fromarray(np.array(DEEP_VALUES, dtype=dtype))
    value = image if file_format is None else encoded(image, file_format)
    assert pixels(value)[0].tolist() == [[grey] * 3 for grey in (0, 0, 1, 50, 254, 255)]
    if file_format:
        assert by_transformers(value)[0, :, 0].tolist() == [0, 1, 255, 255, 255, 255], "load_image clips"
    dark = Image.fromarray(np.array([[0, 200]], dtype=dtype))
    assert pixels(dark)[0, :, 0].tolist() == [0, 1], "16 bits are what the picture declares"


@pytest.mark.parametrize(
    ("dtype", "values", "grey"),
    [
        ("float32", [0, 0.5, 1], [0, 128, 255]),
        ("float32", [0.25, 0.5, 0.75], [64, 128, 191]),
        ("float32", [0, 100.4, 200.6], [0, 100, 201]),
        ("float32", [0, 257, 65535], [0, 1, 255]),
        ("float32", [-1, 0, 1], [0, 128, 255]),
        ("float32", [-5, -5, -5], [0, 0, 0]),
        ("int32", [0, 0, 1], [0, 0, 255]),
        ("int32", [0, 100, 200], [0, 100, 200]),
        ("int32", [0, 257, 65535], [0, 1, 255]),
        ("int32", [0, 50_000, 100_000], [0, 128, 255]),
        ("int32", [-100, 0, 100], [0, 128, 255]),
    ],
)
def test_values_without_a_declared_range_use_the_smallest_usual_one(dtype, values, grey):
    """0..1, 0..255, 0..65535, and the picture's own where it leaves them."""
    value = encoded(Image.fromarray(np.array([values], dtype=dtype)), "TIFF")
    assert pixels(value)[0, :, 0].tolist() == grey
    assert check_image(value) is None


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_cannot_be_scaled(bad):
    value = encoded(Image.fromarray(np.array([[0.0, bad]], dtype=np.float32)), "TIFF")
    assert check_image(value) == "a.tiff cannot be decoded: its values are not all finite"


def test_deep_pictures_are_turned_upright_too():
    image = Image.fromarray(np.array(DEEP_VALUES, dtype=np.uint16))
    value = encoded(image, "PNG", exif=with_orientation(3))
    assert pixels(value)[0, :, 0].tolist() == [255, 254, 50, 1, 0, 0]


# ---- where pictures come from ----


def test_bytes_paths_archives_arrays_and_pictures(tmp_path):
    image, value = picture(), encoded(picture(), "PNG")
    (tmp_path / "a.png").write_bytes(value["bytes"])
    with ZipFile(tmp_path / "all.zip", "w") as archive:
        archive.write(tmp_path / "a.png", "cat/a.png")
    for source in (
        value,
        {"bytes": value["bytes"], "path": None},
        {"bytes": None, "path": str(tmp_path / "a.png")},
        {"bytes": None, "path": f"zip://cat/a.png::{tmp_path}/all.zip"},
        image,
        np.asarray(image),
    ):
        np.testing.assert_array_equal(pixels(source), np.asarray(image))
    assert pixels(np.array([[0, 65535]], dtype=np.uint16))[0, :, 0].tolist() == [0, 255]
    assert pixels(np.array([[True, False]]))[0, :, 0].tolist() == [255, 0]


def test_equal_files_have_equal_digests(tmp_path):
    value = encoded(picture(), "PNG")
    (tmp_path / "b.png").write_bytes(value["bytes"])
    assert digest(value) == digest({"bytes": None, "path": str(tmp_path / "b.png")})
    assert len(digest(value)) == 32
    others = [
        encoded(picture(), "BMP"),
        picture(),
        picture().convert("L"),
        np.asarray(picture()),
        np.asarray(picture()).transpose(1, 0, 2),
        np.asarray(picture()).reshape(40, 24, 3),
    ]
    assert len({digest(other) for other in (value, *others)}) == 7
    assert digest(picture()) == digest(picture())


# ---- reduced scale ----


@pytest.mark.parametrize(
    ("at_least", "size"),
    [
        ((50, 30), (50, 38)),
        ((51, 30), (100, 75)),
        ((50, 39), (100, 75)),
        ((200, 150), (200, 150)),
        ((201, 150), (400, 300)),
        ((900, 900), (400, 300)),
        ((1, 1), (50, 38)),
    ],
)
def test_a_jpeg_is_decoded_as_small_as_allowed(at_least, size):
    assert to_rgb(open_image(encoded(picture(400, 300), "JPEG")), at_least=at_least).size == size
    assert to_rgb(open_image(encoded(picture(400, 300), "PNG")), at_least=at_least).size == (400, 300)


def test_at_least_means_the_upright_picture():
    value = encoded(picture(400, 300), "JPEG", exif=with_orientation(6))
    assert to_rgb(open_image(value), at_least=(150, 200)).size == (150, 200)
    assert to_rgb(open_image(value), at_least=(200, 150)).size == (300, 400)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("side", [400, 403])
def test_a_crop_shows_the_same_at_every_scale(side, orientation):
    """Red and green tell where a pixel lies. 403 / 8 is no whole number: the codec rounds it up, at an end that EXIF may turn."""
    ramps = [np.linspace(0, 255, number) for number in (side, 300)]
    colours = np.stack([*np.meshgrid(*ramps), np.zeros((300, side))], axis=-1).round().astype(np.uint8)
    value = encoded(Image.fromarray(colours), "JPEG", quality=95, subsampling=0, exif=with_orientation(orientation))
    box = (63, 81, 263, 245)
    whole = np.asarray(to_rgb(open_image(value)).crop(box)).mean(axis=(0, 1))
    for at_least, factor in (((200, 164), 1), ((99, 80), 2), ((49, 40), 4), ((9, 9), 8)):
        part = cropped(open_image(value), box, at_least=at_least)
        assert abs(part.width - 200 / factor) <= 1
        assert abs(part.height - 164 / factor) <= 1
        moved = np.abs(np.asarray(part).mean(axis=(0, 1)) - whole) * (side / 255, 300 / 255, 1)
        assert moved.max() <= factor / 2 + 0.5, "no more than half a reduced pixel"


def test_a_crop_of_one_pixel_stays_one():
    value = encoded(picture(400, 300), "JPEG")
    assert cropped(open_image(value), (399, 299, 400, 300), at_least=(1, 1)).size == (1, 1)
    assert cropped(open_image(value), (0, 0, 400, 1), at_least=(10, 1)).size == (400, 1)


def test_checking_leaves_an_opened_picture_at_its_size():
    image = open_image(encoded(picture(400, 300), "JPEG"))
    assert check_image(image) is None
    assert to_rgb(image).size == (400, 300)


# ---- what cannot be read ----


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_truncated_file_is_not_half_a_picture(file_format):
    value = encoded(picture(400, 300), file_format)
    value["bytes"] = value["bytes"][: len(value["bytes"]) * 3 // 5]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reason = check_image(value)
    assert reason.startswith(f"a.{file_format.lower()} ")
    assert not reason.endswith(".")
    if file_format in ("JPEG", "BMP"):
        assert "cannot be decoded: image file is truncated (" in reason


def test_the_reason_names_the_file_when_it_is_decoded_too():
    value = encoded(picture(400, 300), "JPEG")
    image = open_image({**value, "bytes": value["bytes"][:2000]})
    assert size_of(image) == (400, 300)
    with pytest.raises(UnreadableImage, match=r"^a.jpeg cannot be decoded: image file is truncated \(\d+ bytes"):
        to_rgb(image)
    with pytest.raises(UnreadableImage, match="^a.jpeg cannot be decoded"):
        cropped(open_image({**value, "bytes": value["bytes"][:2000]}), (0, 0, 100, 100), at_least=(100, 100))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"bytes": b"", "path": "cat/1.jpg"}, "cat/1.jpg is empty"),
        ({"bytes": b"", "path": None}, "the picture is empty"),
        (
            {"bytes": b"<html><body>404", "path": "cat/1.jpg"},
            "cat/1.jpg is no picture that Pillow reads: it begins with b'<html><body>'",
        ),
        ({"bytes": None, "path": None}, "there is no picture: neither bytes nor a path"),
        (None, "there is no picture: neither bytes nor a path"),
        ({"bytes": None, "path": "nowhere/1.jpg"}, "nowhere/1.jpg does not exist"),
        (np.zeros((2, 2), dtype=np.complex64), "an array cannot be decoded: Cannot handle this data type"),
        (Image.new("La", (2, 2)), "the picture cannot be decoded: conversion from La to L not supported"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_reasons(value, reason):
    assert check_image(value).startswith(reason)


def test_a_folder_is_no_file(tmp_path):
    Path(tmp_path / "x.jpg").mkdir()
    assert "x.jpg cannot be read: " in check_image({"bytes": None, "path": str(tmp_path / "x.jpg")})


def test_a_decompression_bomb_is_a_reason(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 400)
    reason = check_image(encoded(picture(), "PNG"))
    assert reason.startswith("a.png is larger than Pillow decodes: Image size (960 pixels) exceeds limit of 800 pixels")
    with pytest.raises(UnreadableImage, match="larger than Pillow decodes"):
        open_image(encoded(picture(), "PNG"))


def test_postscript_is_a_program_and_is_not_run(tmp_path, monkeypatch):
    """Pillow hands it to Ghostscript, whatever the file is called; here that is a program that leaves a mark."""
    ghostscript = tmp_path / "gs"
    ghostscript.write_text(f"#!/bin/sh\ntouch {tmp_path}/it-ran\n")
    ghostscript.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)  # Pillow looks for it once
    value = {**encoded(picture(), "EPS"), "path": "cat/1.jpg"}
    reason = "cat/1.jpg is EPS, a program, which is not run. Save what it draws as a PNG"
    assert check_image(value) == reason
    with pytest.raises(UnreadableImage, match=reason):
        open_image(value)
    assert not (tmp_path / "it-ran").exists()


def test_running_out_of_memory_is_not_the_picture_s_fault(monkeypatch):
    value = encoded(picture(), "PNG")

    def fail(self):
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(MemoryError):
        check_image(value)
