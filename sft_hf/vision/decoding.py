"""From an encoded picture, of whatever format and depth, to an upright 8-bit RGB one.

    image = open_image({"bytes": b"\\xff\\xd8...", "path": "cat/1.jpg"})    # the header alone is read
    size_of(image)                                                         # (500, 375), upright
    to_rgb(image)                                                          # the pixels

Each kind of picture has a rule:

    grey, palette, LA, RGBA, CMYK, YCbCr, 1-bit   as `transformers.image_utils.load_image`, which every pipeline calls: turned upright
                                                  by EXIF, then Pillow's conversion, which drops transparency
    animated (gif, webp, apng)                    the first frame
    16-bit RGB                                    the high byte, as Pillow reads them
    16-bit grey                                   value / 257; load_image clips at 255, which makes nearly all of a picture white
    32-bit integers, floats                       the smallest of 0..1, 0..255 and 0..65535 that holds every value of the picture
                                                  becomes 0..255; outside of them its own smallest and largest value do
    truncated, damaged, empty, missing, over      `UnreadableImage`
    Pillow's 179 million pixels, PostScript

A pipeline that is given the file of a 16-bit grey or a 32-bit picture, instead of what `to_rgb` made of it, clips it.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from math import ceil
from pathlib import Path
from typing import Any

import numpy as np
from datasets.utils.file_utils import is_local_path, xopen
from PIL import Image, ImageOps, TiffImagePlugin
from PIL.ExifTags import Base as ExifTag

EncodedImage = dict[str, Any]  # {"bytes": bytes | None, "path": str | None}, what Image(decode=False) gives
PROGRAMS = ("EPS",)  # Pillow decodes PostScript by handing it to Ghostscript
NAME = "file name"  # the key in a picture's `info`
# The EXIF orientations that swap width and height, and those in which the upright picture begins at the right, or the lower, end of
# a side of the stored one.
LYING, FROM_RIGHT, FROM_BELOW = (5, 6, 7, 8), (2, 3, 6, 7), (3, 4, 7, 8)
RANGES = (1, 255, 65535)  # the largest values of pictures that do not declare one


class UnreadableImage(Exception):
    """A picture that cannot be decoded; says which file and why, without a full stop."""


def open_image(value: EncodedImage | Image.Image | np.ndarray) -> Image.Image:
    """Open a picture without decoding it.

    An array is `(height, width)` or `(height, width, channels)`. Raises UnreadableImage for what is missing, empty, no picture, a
    program, or larger than Pillow decodes.
    """
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, np.ndarray):
        with _reasons("an array"):
            return Image.fromarray(value)
    data, name = _encoded(value), _name(value)
    if not data:
        raise UnreadableImage(f"{name} is empty")
    try:
        with _reasons(name):
            image = Image.open(BytesIO(data))
    except UnreadableImage as error:
        if not isinstance(error.__cause__, Image.UnidentifiedImageError):
            raise
        raise UnreadableImage(f"{name} is no picture that Pillow reads: it begins with {data[:12]!r}") from None
    if image.format in PROGRAMS:
        raise UnreadableImage(f"{name} is {image.format}, a program, which is not run. Save what it draws as a PNG")
    image.info[NAME] = name
    return image


def size_of(image: Image.Image) -> tuple[int, int]:
    """Width and height of the upright picture; of PNG and TIFF, which may say how they lie behind the pixels, these are decoded."""
    with _reasons(image.info.get(NAME)):
        if isinstance(image, TiffImagePlugin.TiffImageFile):
            image.load()  # Pillow turns it upright
        return image.size[::-1] if _orientation(image) in LYING else image.size


def to_rgb(image: Image.Image, *, at_least: tuple[int, int] | None = None) -> Image.Image:
    """The upright 8-bit RGB picture; it can be the very one that was given.

    `at_least` (width, height; for training alone) lets a JPEG be decoded at 1/2, 1/4 or 1/8 as long as the result is as large as
    that. It changes the lazily opened picture: open it again for the whole. Raises UnreadableImage.
    """
    return _decode(image, at_least)[0]


def cropped(image: Image.Image, box: tuple[int, int, int, int], *, at_least: tuple[int, int]) -> Image.Image:
    """The part of the picture inside `box` (left, top, right, bottom; pixels of the upright picture), as 8-bit RGB.

    A JPEG is decoded at 1/2, 1/4 or 1/8 as long as the part stays as large as `at_least` (width, height), and `box` is then rounded
    to whole pixels of that. For training, as `to_rgb(at_least=...)`. Raises UnreadableImage.
    """
    (width, height), turned = size_of(image), _orientation(image)
    left, top, right, bottom = box
    needed = ceil(width * at_least[0] / (right - left)), ceil(height * at_least[1] / (bottom - top))
    decoded, factor = _decode(image, needed)
    left, right = _reduced(left, right, factor, decoded.width - width / factor if turned in FROM_RIGHT else 0)
    top, bottom = _reduced(top, bottom, factor, decoded.height - height / factor if turned in FROM_BELOW else 0)
    return decoded.crop((left, top, right, bottom))


def _reduced(start: int, end: int, factor: int, shift: float) -> tuple[int, int]:
    """A side of a box at reduced scale; `shift` is how far the codec, which rounds sides up, moved what is turned."""
    start = round(start / factor + shift)
    return start, max(round(end / factor + shift), start + 1)


def check_image(value: EncodedImage | Image.Image | np.ndarray) -> str | None:
    """The reason why a picture cannot be decoded, None where it can; JPEGs are read whole, but decoded at 1/8."""
    # An opened picture is the caller's, who may want it at its own size.
    at_least = None if isinstance(value, Image.Image) else (1, 1)
    try:
        to_rgb(open_image(value), at_least=at_least)
    except UnreadableImage as error:
        return str(error)
    return None


def in_memory(value: EncodedImage | None) -> EncodedImage:
    """The same with the file's bytes, for whoever reads them twice. Raises UnreadableImage where they cannot be had."""
    return {"bytes": _encoded(value), "path": (value or {}).get("path")}


def digest(value: EncodedImage | Image.Image | np.ndarray) -> str:
    """32 hexadecimal digits that are equal for equal files; of pictures in memory, for equal pixels."""
    if isinstance(value, np.ndarray):
        content = f"{value.dtype}{value.shape}".encode() + np.ascontiguousarray(value).tobytes()
    elif isinstance(value, Image.Image):
        content = f"{value.mode}{value.size}".encode() + value.tobytes()
    else:
        content = _encoded(value)
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def _name(value: EncodedImage) -> str:
    return value.get("path") or "the picture"


def _encoded(value: EncodedImage | None) -> bytes:
    """The file's bytes, also of one in an archive or on the Hub, as streams name them."""
    value = value or {}
    if value.get("bytes") is not None:
        return value["bytes"]
    path = value.get("path")
    if not path:
        raise UnreadableImage("there is no picture: neither bytes nor a path")
    try:
        if is_local_path(path):
            return Path(path).read_bytes()
        with xopen(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        raise UnreadableImage(f"{path} does not exist") from None
    except OSError as error:
        raise UnreadableImage(f"{path} cannot be read: {error}") from error


def _orientation(image: Image.Image) -> int:
    return image.getexif().get(ExifTag.Orientation, 1)


def _decode(image: Image.Image, at_least: tuple[int, int] | None) -> tuple[Image.Image, int]:
    """The picture and by which factor its sides are smaller than the file's."""
    with _reasons(image.info.get(NAME)):
        turned, width, factor = _orientation(image), image.width, 1
        if at_least is not None:
            drafted = image.draft(None, at_least[::-1] if turned in LYING else at_least)
            factor = 1 if drafted is None else round(width / drafted[1][2])
        image.load()
        # Both of these copy a picture that has nothing to be changed.
        upright = image if turned == 1 else ImageOps.exif_transpose(image)
        if upright.mode.startswith(("I", "F")):
            return _in_8_bits(upright).convert("RGB"), factor
        return upright if upright.mode == "RGB" else upright.convert("RGB"), factor


def _in_8_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    smallest, largest = (0, 65535) if image.mode.startswith("I;16") else _range(values)
    scaled = (values.astype(np.float64) - smallest) * 255 / (largest - smallest or 1)
    return Image.fromarray(np.rint(scaled).astype(np.uint8))


def _range(values: np.ndarray) -> tuple[float, float]:
    smallest, largest = float(values.min()), float(values.max())
    if not np.isfinite(largest - smallest):
        raise ValueError("its values are not all finite")
    if smallest >= 0 and largest <= RANGES[-1]:
        return 0, next(limit for limit in RANGES if largest <= limit)
    return smallest, largest


@contextmanager
def _reasons(name: str | None) -> Iterator[None]:
    """What Pillow raises on a damaged file becomes its reason: OSError, ValueError, SyntaxError, RuntimeError, by format."""
    try:
        yield
    except MemoryError:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableImage(f"{name or 'the picture'} is larger than Pillow decodes: {error}") from error
    except Exception as error:
        raise UnreadableImage(f"{name or 'the picture'} cannot be decoded: {error}") from error
