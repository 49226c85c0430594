"""Pictures for people: an image, its true mask and its predicted one side by side, and masks that keep their ids.

    overlay_sheet(image, truth, prediction, names=("background", "cat")).save("reports/overlays/0083.png")
    write_palette_png(prediction, "predictions/0083.png", num_classes=2)

A class has one color wherever it is drawn: its id alone decides.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sft_hf.losses import IGNORE_INDEX

Color = tuple[int, int, int]

# Okabe and Ito 2008, https://jfly.uni-koeln.de/color/, without its black, which would only darken a picture.
COLOR_BLIND_SAFE: tuple[Color, ...] = (
    (86, 180, 233), (230, 159, 0), (0, 158, 115), (204, 121, 167), (213, 94, 0), (240, 228, 66), (0, 114, 178),
)  # fmt: skip
GOLDEN_ANGLE = 137.50776  # degrees, so that no two of the hues after one another are near
NUM_CANDIDATES = 24  # for each further color, of which the one farthest from all before is taken

MAX_PANEL = (480, 640)  # width, height; larger pictures are scaled down
SMALL_PANEL = 240  # a smaller picture is enlarged, by a whole number
OPACITY = 0.55  # of a mask over its picture
COLORFULNESS = 0.35  # of the picture below a mask, or its own colors would pass for a class
DARKEST = 70  # what black becomes below a mask
HATCHING = 8  # pixels from line to line where pixels do not count
MARGIN, FONT_SIZE, SWATCH = 12, 15, 14
BACKGROUND, INK = (255, 255, 255), (30, 30, 30)
UNCOUNTED = "does not count"


@cache  # 0.2 s for 256 classes, and one call a picture
def palette(num_classes: int) -> tuple[Color, ...]:
    """A color for each class id, all different; that of an id is the same for any number of classes.

    The first are safe for color-blind people; each further one is the best of some hues at steps of the golden angle
    (Mitchell 1991, Spectrally Optimal Sampling for Distribution Ray Tracing: the best candidate).
    """
    colors = np.array(COLOR_BLIND_SAFE, dtype=np.float64)
    for number in range(len(colors), num_classes):
        candidates = _candidates(number)
        farthest = _distances(candidates, colors).min(axis=1).argmax()
        colors = np.vstack([colors, candidates[farthest]])
    return tuple((int(red), int(green), int(blue)) for red, green, blue in colors[:num_classes])


def write_palette_png(ids: np.ndarray, path: str | Path, *, num_classes: int) -> None:
    """Write ids `(height, width)` as a PNG whose values are the ids and whose palette is for people.

    Up to 256 classes it has 8 bits and the colors of `palette`, above 16 bits of grey. Raises ValueError for an id that is
    no class.
    """
    if ids.size and not 0 <= ids.min() <= ids.max() < num_classes <= 65536:
        raise ValueError(f"ids are 0 to {min(num_classes, 65536) - 1}, got {ids.min()} to {ids.max()}")
    picture = Image.fromarray(ids.astype(np.uint8 if num_classes <= 256 else np.uint16))
    if num_classes <= 256:
        picture.putpalette([channel for color in palette(num_classes) for channel in color])
    picture.save(path)


def overlay_sheet(
    image: Image.Image, truth: np.ndarray | None, prediction: np.ndarray, *, names: Sequence[str]
) -> Image.Image:
    """Draw an image, the true mask over it (unless None) and the predicted one, with a legend of the classes in them.

    Masks are `(height, width)` of class ids, in the size of the image; pixels of the truth that do not count are -100, and
    hatched. The legend goes from the largest class to the smallest. Raises ValueError for a mask of another size.
    """
    masks = {"truth": truth, "prediction": prediction} if truth is not None else {"prediction": prediction}
    for caption, mask in masks.items():
        if mask.shape != image.size[::-1]:
            raise ValueError(f"{caption}: {mask.shape} (height, width) over an image of {image.size[::-1]}")
    size = _panel_size(image.size)
    resample = Image.Resampling.LANCZOS if size[0] < image.size[0] else Image.Resampling.NEAREST
    scaled = image.convert("RGB").resize(size, resample)
    colors = palette(len(names))
    panels = {"image": scaled} | {
        caption: _blend(scaled, _resize_mask(mask, size), colors) for caption, mask in masks.items()
    }
    return _assemble(panels, _legend_entries(list(masks.values()), names, colors))


def _candidates(number: int) -> np.ndarray:
    """Red, green and blue `(candidates, 3)` for the color of one class; neither grey nor dark, which are not a class."""
    steps = number * NUM_CANDIDATES + np.arange(NUM_CANDIDATES)
    hue, saturation, value = (
        steps * GOLDEN_ANGLE / 60 % 6,
        0.4 + 0.6 * (steps * 2**0.5 % 1),
        0.5 + 0.5 * (steps * 3**0.5 % 1),
    )
    # From HSV, where hue counts the six edges of the color cube: Smith 1978, Color Gamut Transform Pairs.
    places = (np.array([5, 3, 1]) + hue[:, None]) % 6
    falls = np.minimum(places, 4 - places).clip(0, 1)
    return np.rint(255 * value[:, None] * (1 - saturation[:, None] * falls))


def _distances(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """How different colors look `(first, second)`: Euclid's distance, weighted by https://www.compuphase.com/cmetric.htm."""
    red = (first[:, None, 0] + second[None, :, 0]) / 2
    weights = np.stack([2 + red / 256, np.full_like(red, 4), 2 + (255 - red) / 256], axis=-1)
    return np.sqrt((weights * (first[:, None] - second[None]) ** 2).sum(axis=-1))


def _panel_size(size: tuple[int, int]) -> tuple[int, int]:
    width, height = size
    if max(width, height) < SMALL_PANEL:
        factor = SMALL_PANEL // max(width, height)
        return width * factor, height * factor
    factor = min(1.0, MAX_PANEL[0] / width, MAX_PANEL[1] / height)
    return max(1, round(width * factor)), max(1, round(height * factor))


def _resize_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    resized = Image.fromarray(mask.astype(np.int32)).resize(size, Image.Resampling.NEAREST)
    return np.asarray(resized)


def _blend(picture: Image.Image, mask: np.ndarray, colors: Sequence[Color]) -> Image.Image:
    """The mask over the picture, with a line around each region."""
    is_counted = mask != IGNORE_INDEX
    layer = np.array(colors, dtype=np.float32)[np.where(is_counted, mask, 0)]
    layer[~is_counted] = _hatching(mask.shape)[~is_counted]
    pixels = np.asarray(picture, dtype=np.float32)
    grey = pixels @ np.array([0.299, 0.587, 0.114], dtype=np.float32)
    below = COLORFULNESS * pixels + (1 - COLORFULNESS) * grey[..., None]
    # Darkness below would darken the class's color until it is no longer the legend's.
    blended = OPACITY * layer + (1 - OPACITY) * (DARKEST + below * (1 - DARKEST / 255))
    blended[_borders(mask)] *= 0.45
    return Image.fromarray(np.rint(blended).clip(0, 255).astype(np.uint8))


def _hatching(shape: tuple[int, int]) -> np.ndarray:
    """Grey values `(height, width, 1)` of diagonal lines."""
    rows, columns = np.indices(shape)
    return np.where((rows + columns) % HATCHING < HATCHING // 3, 60.0, 205.0)[..., None]


def _borders(mask: np.ndarray) -> np.ndarray:
    """The pixels `(height, width)` whose right or lower neighbour is of another class."""
    borders = np.zeros(mask.shape, dtype=bool)
    borders[:, :-1] |= mask[:, :-1] != mask[:, 1:]
    borders[:-1] |= mask[:-1] != mask[1:]
    return borders


@dataclass(frozen=True)
class _Entry:
    """A line of the legend."""

    name: str
    color: Color | None  # None: hatched


def _legend_entries(masks: Sequence[np.ndarray], names: Sequence[str], colors: Sequence[Color]) -> list[_Entry]:
    ids, areas = np.unique(np.concatenate([mask.ravel() for mask in masks]), return_counts=True)
    by_area = ids[np.argsort(-areas, kind="stable")].tolist()
    entries = [_Entry(" ".join(names[index].split()), colors[index]) for index in by_area if index != IGNORE_INDEX]
    return entries + ([_Entry(UNCOUNTED, None)] if IGNORE_INDEX in by_area else [])


def _assemble(panels: dict[str, Image.Image], entries: Sequence[_Entry]) -> Image.Image:
    font = ImageFont.load_default(size=FONT_SIZE)
    width, height = next(iter(panels.values())).size
    pitch = max(width, SMALL_PANEL // 2) + MARGIN
    line = FONT_SIZE + MARGIN // 2
    sheet_width = MARGIN + len(panels) * pitch
    rows = _wrap(entries, font, sheet_width - 2 * MARGIN)
    top = MARGIN + line
    sheet = Image.new("RGB", (sheet_width, top + height + MARGIN + len(rows) * line + MARGIN // 2), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, (caption, panel) in enumerate(panels.items()):
        left = MARGIN + number * pitch
        draw.text((left, MARGIN), caption, fill=INK, font=font)
        sheet.paste(panel, (left, top))
    for number, row in enumerate(rows):
        _draw_row(sheet, row, font, top=top + height + MARGIN + number * line)
    return sheet


def _wrap(entries: Sequence[_Entry], font: ImageFont.FreeTypeFont, width: int) -> list[list[_Entry]]:
    """The legend in rows of at most `width` pixels; a name that is too long for one is cut."""
    rows: list[list[_Entry]] = []
    left = width + 1
    for entry in entries:
        entry = _Entry(_cut(entry.name, font, width - SWATCH - MARGIN), entry.color)
        if left + _entry_width(entry, font) - MARGIN > width:
            rows.append([])
            left = 0
        rows[-1].append(entry)
        left += _entry_width(entry, font)
    return rows


def _cut(name: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    if font.getlength(name) <= width:
        return name
    return next(
        name[:end] + "..." for end in range(len(name) - 1, -1, -1) if font.getlength(name[:end] + "...") <= width
    )


def _entry_width(entry: _Entry, font: ImageFont.FreeTypeFont) -> int:
    return SWATCH + MARGIN // 2 + round(font.getlength(entry.name)) + MARGIN


def _draw_row(sheet: Image.Image, row: Sequence[_Entry], font: ImageFont.FreeTypeFont, *, top: int) -> None:
    draw = ImageDraw.Draw(sheet)
    left = MARGIN
    for entry in row:
        sheet.paste(_swatch(entry.color), (left, top))
        draw.rectangle((left, top, left + SWATCH - 1, top + SWATCH - 1), outline=INK)
        draw.text((left + SWATCH + MARGIN // 2, top + SWATCH // 2), entry.name, fill=INK, font=font, anchor="lm")
        left += _entry_width(entry, font)


def _swatch(color: Color | None) -> Image.Image:
    if color is not None:
        return Image.new("RGB", (SWATCH, SWATCH), color)
    return Image.fromarray(_hatching((SWATCH, SWATCH))[..., 0].astype(np.uint8))
