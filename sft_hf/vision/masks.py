"""Masks: from the file of a mask to class ids, and the one place where raw ids become the ids that are trained.

    mask = read_mask({"bytes": ..., "path": "masks/0083.png"})           # (height, width), ids as the file has them
    classes = resolve_mask_classes({0: "void", 1: "road", 2: "car"}, values={0: 90, 1: 700, 2: 210})
    classes.names            -> ("road", "car")
    classes.encode(mask)     -> (height, width), int16: road 0, car 1, void -100

Loss and metric read the encoded mask and nothing else, so neither can ignore what the other counts, and no id is
reduced twice (pitfall 13). A raw id is what the file holds, a train id an index of the model's outputs.

What a mask holds depends on --mask_colors:

    without a table, ids      L, 1 (0 and 1), I and I;16 (16 and 32 bits): the values; P: the indices of the palette,
                              whose colors are for people; RGB: the value of three equal channels
    with a table, colors     L, 1, P, RGB: each pixel's color is looked up exactly, grey 7 as [7, 7, 7]

Transparency (LA, PA, RGBA) is ignored in both. An EXIF orientation in the mask's own file is applied, as it is to pictures,
and that of its picture is not: a mask that was drawn on the upright picture is upright already, and where it is not,
`check_pair` sees swapped sizes.
"""

import io
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from datasets.utils.file_utils import xopen
from PIL import Image, ImageOps

from sft_hf.configuration import read_json_or_yaml
from sft_hf.errors import ArgumentError, DataError
from sft_hf.losses import IGNORE_INDEX

logger = logging.getLogger(__name__)

COLORS_FLAG = "--mask_colors"
NAMES_FLAG = "--class_names"
IGNORE_FLAG = "--ignore_label_ids"
REDUCE_FLAG = "--reduce_labels"

Color = tuple[int, int, int]

NUM_RAW_IDS = 65536  # of 16 bits
UNKNOWN = -1  # in the lookup table: a raw id that is neither a class nor ignored
USUAL_IGNORE_IDS = (255, 65535)  # the highest value of 8 and of 16 bits
USUAL = "the usual value of ignored pixels"
IGNORED_NAMES = {"void", "ignore", "ignored", "unlabeled", "unlabelled", "dont care"}
BACKGROUND_NAMES = IGNORED_NAMES | {"background", "null", "none"}
LOSSLESS = {"PNG", "TIFF", "BMP", "GIF", "PPM", "TGA"}
ID_MODES = {"1", "L", "LA", "P", "PA", "I", "I;16", "I;16L", "I;16B", "I;16N"}
COLOR_MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA"}


def read_mask(value: Any, *, colors: Mapping[Color, int] | None = None) -> np.ndarray:
    """Return the raw ids `(height, width)` of a mask, uint8, or int32 where 8 bits are too few.

    `value` is a row of a `datasets.Image(decode=False)` column, `{"bytes": ..., "path": ...}`, a PIL picture, or an array
    `(height, width)` or `(height, width, channels)`. `colors` maps colors to raw ids. What each kind of picture means
    stands at the top of this file.

    Raises DataError, with the file's name, for a file that cannot be read, a format with losses, several frames, a kind
    of picture that is no mask, a color without a table, or one that is not in it.
    """
    name = mask_name(value)
    pixels = value if isinstance(value, np.ndarray) else _pixels(_open(value, name), name, as_colors=bool(colors))
    has_channels = pixels.ndim == 3 and pixels.shape[2] in (1, 3, 4)
    if not (pixels.ndim == 2 or has_channels) or pixels.size == 0 or pixels.dtype.kind not in "bui":
        raise DataError(
            f"The mask {name} is an array of {pixels.dtype} of shape {pixels.shape}, expected whole numbers "
            "(height, width) or (height, width, channels) with 1, 3 or 4 channels."
        )
    if colors:
        return _look_up(pixels, colors, name)
    return _compact(_equal_channels(pixels, name) if has_channels else pixels)


def mask_name(value: Any) -> str:
    """The file's name of a mask, as far as its value tells it."""
    name = value.get("path") if isinstance(value, Mapping) else getattr(value, "filename", None)
    return str(name) if name else "(without a file name)"


def mask_histogram(value: Any, *, colors: Mapping[Color, int] | None = None) -> dict[int, int]:
    """The number of pixels of each raw id in one mask, see `read_mask`; over many masks they add up as Counters."""
    mask = read_mask(value, colors=colors)
    ids, counts = np.unique(mask, return_counts=True) if mask.dtype != np.uint8 else _count_bytes(mask)
    return dict(zip(ids.tolist(), counts.tolist(), strict=True))


def check_pair(image_size: tuple[int, int], mask_size: tuple[int, int], name: str) -> None:
    """Raise DataError unless a picture and its mask, called `name`, have one size; `(width, height)` in pixels."""
    if tuple(image_size) == tuple(mask_size):
        return
    hint = "scale neither: a mask that is off by a pixel teaches wrong borders"
    if tuple(image_size) == tuple(mask_size)[::-1]:
        hint = "one of them is turned: an EXIF orientation in the picture that was ignored when the mask was drawn"
    raise DataError(
        f"{name}: the picture has {image_size[0]} x {image_size[1]} pixels, its mask {mask_size[0]} x {mask_size[1]}. "
        f"Expected one size ({hint}). Mend or leave out the pair."
    )


def read_color_table(path: str | Path) -> tuple[dict[Color, int], tuple[str, ...]]:
    """Read --mask_colors, `{name: [r, g, b]}` in the order of the ids: color -> raw id, and the names in that order.

    Raises ArgumentError for a missing or unreadable file, and for what is no such table.
    """
    path, flag = Path(path), f"{COLORS_FLAG} {path}"
    if not path.is_file():
        raise ArgumentError(f"{flag}: expected an existing json or yaml file, {{name: [r, g, b]}} in id order.")
    content = read_json_or_yaml(path, flag=flag)
    if not isinstance(content, dict) or not content:
        raise ArgumentError(f"{flag}: expected {{name: [r, g, b]}} in id order, found {content!r:.80}.")
    colors: dict[Color, int] = {}
    for name, color in content.items():
        if not isinstance(name, str):
            raise ArgumentError(f"{flag}: the name {name!r} is no text. Quote it: yaml reads a bare no as False.")
        if not _is_color(color):
            raise ArgumentError(f"{flag}: {name}: expected [r, g, b], whole numbers from 0 to 255, found {color!r}.")
        if tuple(color) in colors:
            twin = list(content)[colors[tuple(color)]]
            raise ArgumentError(f"{flag}: {twin} and {name} both have the color {color}. Give each its own.")
        colors[tuple(color)] = len(colors)
    return colors, tuple(content)


@dataclass(frozen=True)
class MaskClasses:
    """The classes of masks: what is trained, and which raw id each class has in the files."""

    names: tuple[str, ...]  # in the order of the train ids
    raw_ids: tuple[int, ...]  # of each train id
    ignored_ids: tuple[int, ...] = ()  # raw ids that become -100
    lookup: np.ndarray = field(init=False, compare=False, repr=False)  # raw id -> train id, -100 or UNKNOWN

    def __post_init__(self):
        assert len(self.names) == len(self.raw_ids) <= np.iinfo(np.int16).max, "one name a class, and int16 for the ids"
        lookup = np.full(NUM_RAW_IDS, UNKNOWN, dtype=np.int16)
        lookup[list(self.ignored_ids)] = IGNORE_INDEX
        lookup[list(self.raw_ids)] = np.arange(len(self.raw_ids))
        object.__setattr__(self, "lookup", lookup)

    @property
    def num_labels(self) -> int:
        """The number of classes."""
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        """As a model's configuration wants it."""
        return dict(enumerate(self.names))

    @property
    def label2id(self) -> dict[str, int]:
        """As a model's configuration wants it."""
        return {name: index for index, name in enumerate(self.names)}

    @cached_property
    def _raw(self) -> np.ndarray:
        return np.array(self.raw_ids, dtype=np.uint8 if max(self.raw_ids) < 256 else np.uint16)

    def encode(self, mask: np.ndarray) -> np.ndarray:
        """Raw ids as `read_mask` gives them -> train ids, int16 of the same shape, IGNORE_INDEX where ignored.

        Raises DataError for a raw id that is neither a class nor ignored, and ValueError for what is encoded already.
        """
        if mask.dtype not in (np.uint8, np.int32):
            raise ValueError(f"a mask of {mask.dtype}: raw ids are uint8 or int32, train ids must not be encoded again")
        if mask.dtype == np.int32:
            _check_range({int(mask.min()), int(mask.max())}, files={})
        encoded = self.lookup[mask]
        if (encoded == UNKNOWN).any():
            ids, counts = np.unique(mask[encoded == UNKNOWN], return_counts=True)
            values = dict(zip(ids.tolist(), counts.tolist(), strict=True))
            raise _unnamed(values, mask.size, dict(zip(self.raw_ids, self.names, strict=True)), files={})
        return encoded

    def decode(self, train_ids: np.ndarray) -> np.ndarray:
        """Train ids -> the raw ids of the data's own files, uint8, or uint16 where 8 bits are too few.

        Raises ValueError for an id that is no class: an ignored pixel no longer knows its raw id.
        """
        if train_ids.size and not 0 <= train_ids.min() <= train_ids.max() < self.num_labels:
            raise ValueError(f"train ids are 0 to {self.num_labels - 1}, got {train_ids.min()} to {train_ids.max()}")
        return self._raw[train_ids]


def resolve_mask_classes(
    id2label: Mapping[int, str] | None,
    *,
    class_names: Sequence[str] | None = None,
    ignore_label_ids: Sequence[int] = (),
    reduce_labels: bool = False,
    values: Mapping[int, int],
    files: Mapping[int, str] | None = None,
) -> MaskClasses:
    """Decide which raw ids are classes and which are ignored, and check that against what the masks hold.

    `values` is the histogram of all masks, raw id -> pixels, and `files` names a file for each raw id. `class_names`, in the
    order of the raw ids from 0, go before `id2label`.

    Ignored are: the raw ids of `ignore_label_ids`; classes called void, ignore, ignored, unlabeled, unlabelled or don't
    care; 255 and 65535 where no class has that id; and 0 under `reduce_labels`. What is left keeps its order and gets the
    train ids 0, 1, 2 ... without gaps.

    Under `reduce_labels` names and raw ids meet in one of two ways. If the names begin at 1, or the name of 0 is one of an
    ignored class, background, null or none, then each name has its own raw id. If the masks hold the raw id after the last
    name (n names from 0, values up to n), the names leave the background out as the Hub's id2label of ADE20K does, and raw
    id r has name r - 1. Anything else can be read both ways and is refused.

    Raises DataError without class names, for names that are empty or there twice, for a value that is neither named nor
    ignored, and for fewer than two classes with pixels.
    """
    files = files or {}
    names = _given_names(id2label, class_names, values)
    if reduce_labels:
        names = _reduced(names, values, ignore_label_ids)
    reasons = _ignored(names, values, ignore_label_ids, reduce_labels)
    _check_range(values, files)
    unnamed = {raw_id: count for raw_id, count in values.items() if raw_id not in names and raw_id not in reasons}
    if unnamed:
        raise _unnamed(unnamed, sum(values.values()), names, files)
    raw_ids = tuple(sorted(set(names) - set(reasons)))
    classes = MaskClasses(tuple(names[raw_id] for raw_id in raw_ids), raw_ids, tuple(sorted(reasons)))
    _check_more_than_one_class(classes, values, reasons)
    _report(classes, names, values, reasons)
    return classes


def pixel_counts(values: Mapping[int, int], classes: MaskClasses) -> np.ndarray:
    """The pixels of each class, `(num_classes,)` int64, from a histogram of raw ids; ignored pixels are in none."""
    return np.array([values.get(raw_id, 0) for raw_id in classes.raw_ids], dtype=np.int64)


def _open(value: Any, name: str) -> Image.Image:
    """The picture of a mask, loaded, upright, and of a kind that keeps ids exactly."""
    try:
        picture = value if isinstance(value, Image.Image) else Image.open(io.BytesIO(_file_content(value or {})))
        _check_exact(picture, name)
        picture.load()
        return ImageOps.exif_transpose(picture)
    except (DataError, MemoryError):
        raise
    except Exception as error:  # of a dozen types, by format
        raise DataError(f"The mask {name} cannot be read: {error}") from error


def _file_content(value: Mapping[str, Any]) -> bytes:
    content, path = value.get("bytes"), value.get("path")
    if content is not None:
        return content
    if path is None:
        raise OSError("the row has neither bytes nor a path")
    # In a stream the path can lie in an archive or on the Hub.
    with xopen(path, "rb") as file:
        return file.read()


def _check_exact(picture: Image.Image, name: str) -> None:
    """Refuse what stands between the file's numbers and those that Pillow gives."""
    is_lossy_tiff = picture.format == "TIFF" and picture.info.get("compression") in ("jpeg", "tiff_jpeg", "webp")
    if picture.format not in (*LOSSLESS, None) or is_lossy_tiff:
        raise DataError(
            f"The mask {name} is a {picture.format} file, which keeps ids and colors only nearly: at borders it invents "
            f"classes. Expected a format without losses. Make PNG files of the masks, from their source where you can."
        )
    if getattr(picture, "n_frames", 1) > 1:
        raise DataError(f"The mask {name} has {picture.n_frames} frames, expected one. Save the right one as a PNG.")
    if picture.format == "PNG" and picture.tile:  # once loaded, it tells nothing of the file
        _check_depth(picture.tile[0].args, name)


def _check_depth(raw_mode: str, name: str) -> None:
    """Refuse a PNG whose numbers Pillow changes to fit 8 bits; `raw_mode` is the file's own, in Pillow's words."""
    mode, _, depth = raw_mode.partition(";")
    if mode == "L" and depth in ("2", "4"):
        raise DataError(
            f"The mask {name} is a grey PNG of {depth} bits, whose value 1 is read as {255 // (2 ** int(depth) - 1)} by "
            "most programs and as 1 by some. Save the masks with 8 bits, so that ids are what they are."
        )
    if mode in ("LA", "RGB", "RGBA") and depth == "16B":
        raise DataError(
            f"The mask {name} is a PNG of {mode} with 16 bits a channel, of which 8 would be lost. "
            "Expected colors of 8 bits, or ids in a grey PNG of 16 bits without transparency."
        )


def _pixels(picture: Image.Image, name: str, *, as_colors: bool) -> np.ndarray:
    """Ids `(height, width)`, or colors `(height, width, 3 or 4)`."""
    if picture.mode not in ID_MODES | COLOR_MODES:
        raise DataError(
            f"The mask {name} is of Pillow's mode {picture.mode}, expected one of "
            f"{', '.join(sorted(ID_MODES | COLOR_MODES))}. Save the masks as PNG files of ids or of colors."
        )
    if as_colors and picture.mode in COLOR_MODES:
        return np.asarray(picture.convert("RGB"))
    pixels = np.asarray(picture)
    return pixels[..., 0] if picture.mode in ("LA", "PA") else pixels


def _equal_channels(pixels: np.ndarray, name: str) -> np.ndarray:
    """The ids `(height, width)` of a picture in colors that is grey."""
    colors = pixels[..., :3]
    is_grey = (colors == colors[..., :1]).all(axis=2)
    if not is_grey.all():
        color = colors[~is_grey][0].tolist()
        raise DataError(
            f"The mask {name} holds colors such as {color}, and nothing says which class each is. "
            f"Give a table with {COLORS_FLAG} FILE, json or yaml, {{name: [r, g, b]}} in id order."
        )
    return colors[..., 0]


def _look_up(pixels: np.ndarray, colors: Mapping[Color, int], name: str) -> np.ndarray:
    """The raw ids `(height, width)` of colors, or of grey values."""
    if pixels.dtype != np.uint8:
        raise DataError(
            f"The mask {name} holds {pixels.dtype}, and {COLORS_FLAG} looks up colors of 8 bits. "
            f"Leave out {COLORS_FLAG} where masks are ids."
        )
    packed = _pack(_rgb(pixels))
    keys = _pack(np.array(list(colors), dtype=np.uint8))
    order = np.argsort(keys)
    positions = np.searchsorted(keys[order], packed).clip(max=len(keys) - 1)
    is_known = keys[order][positions] == packed
    if not is_known.all():
        raise _unknown_color(packed[~is_known], num_pixels=packed.size, num_colors=len(keys), name=name)
    ids = np.array(list(colors.values()), dtype=np.uint8 if max(colors.values()) < 256 else np.int32)
    return ids[order][positions]


def _unknown_color(packed: np.ndarray, *, num_pixels: int, num_colors: int, name: str) -> DataError:
    found, counts = np.unique(packed, return_counts=True)
    most = int(counts.argmax())
    color = [int(found[most]) >> shift & 255 for shift in (16, 8, 0)]
    others = f" (and {len(found) - 1} more colors)" if len(found) > 1 else ""
    return DataError(
        f"The mask {name} holds the color {color} in {counts[most]} of {num_pixels} pixels{others}, which is not among the "
        f"{num_colors} of {COLORS_FLAG}. Add it with the name of its class, or as void."
    )


def _rgb(pixels: np.ndarray) -> np.ndarray:
    """Grey values `(height, width)` or `(height, width, 1)` as the colors that they are."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return np.broadcast_to(pixels, (*pixels.shape[:2], 3)) if pixels.shape[2] == 1 else pixels


def _pack(colors: np.ndarray) -> np.ndarray:
    """Colors `(..., 3 or 4)` as one number each, without the transparency."""
    red, green, blue = (colors[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


def _compact(ids: np.ndarray) -> np.ndarray:
    """Booleans and bytes as uint8, wider numbers as int32, whose width the values do not change."""
    if ids.dtype.itemsize == 1 and ids.dtype.kind in "bu":
        return ids.astype(np.uint8, copy=False)
    return ids.astype(np.int32)


def _triple(color: np.ndarray) -> list[int]:
    return [int(channel) for channel in color[:3]]


def _is_color(color: Any) -> bool:
    if not isinstance(color, list) or len(color) != 3:
        return False
    return all(type(channel) is int and 0 <= channel <= 255 for channel in color)


def _count_bytes(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    counts = np.bincount(mask.ravel(), minlength=256)
    ids = np.flatnonzero(counts)
    return ids, counts[ids]


def _given_names(
    id2label: Mapping[int, str] | None, class_names: Sequence[str] | None, values: Mapping[int, int]
) -> dict[int, str]:
    """Raw id -> name, from the flag or the data."""
    if class_names:
        if id2label:
            logger.info("%s goes before the %d class names of the data", NAMES_FLAG, len(id2label))
        return _checked_names(dict(enumerate(class_names)), source=NAMES_FLAG)
    if id2label:
        return _checked_names(id2label, source="the class names of the data")
    raise DataError(
        f"The masks hold the values {_listed(sorted(values))}, and nothing names them. Give the names of all classes "
        f"with {NAMES_FLAG}, in id order from 0, or an id2label.json beside the data."
    )


def _checked_names(names: Mapping[int, str], *, source: str) -> dict[int, str]:
    if not 0 <= min(names) <= max(names) < NUM_RAW_IDS:
        raise DataError(
            f"{source}: the ids are {min(names)} to {max(names)}, expected ids from 0 to {NUM_RAW_IDS - 1}."
        )
    stripped = {raw_id: name.strip() for raw_id, name in names.items()}
    for raw_id, name in stripped.items():
        if not name:
            raise DataError(f"{source}: the name of id {raw_id} is empty. Name each class.")
        twins = [other for other in stripped if stripped[other] == name]
        # Several kinds of pixels can be void; of two classes with one name none could be told from the other.
        if len(twins) > 1 and not _is_ignored(name):
            raise DataError(f"{source}: the ids {_listed(twins)} are all named {name!r}. Give each class its own name.")
    return stripped


def _reduced(names: dict[int, str], values: Mapping[int, int], ignore_label_ids: Sequence[int]) -> dict[int, str]:
    """Raw id -> name where raw id 0 is no class, see `resolve_mask_classes`."""
    if 0 not in names or _normalised(names[0]) in BACKGROUND_NAMES:
        return names
    following = max(names) + 1
    if values.get(following) and following not in (*ignore_label_ids, *USUAL_IGNORE_IDS):
        return {raw_id + 1: name for raw_id, name in names.items()}
    raise DataError(
        f"{REDUCE_FLAG}: the first of {len(names)} class names is {names[0]!r}, and the masks hold the values "
        f"{_listed(sorted(values))}. That name can be the one of 0, which is to be ignored, or of 1. Give "
        f"{NAMES_FLAG} background,... with a name for 0 first, or {IGNORE_FLAG} 0 in place of {REDUCE_FLAG}."
    )


def _ignored(
    names: Mapping[int, str], values: Mapping[int, int], ignore_label_ids: Sequence[int], reduce_labels: bool
) -> dict[int, str]:
    """Raw id -> why it is ignored."""
    reasons = {raw_id: USUAL for raw_id in USUAL_IGNORE_IDS if raw_id not in names}
    reasons |= {raw_id: "by its name" for raw_id, name in names.items() if _is_ignored(name)}
    reasons |= {0: REDUCE_FLAG} if reduce_labels else {}
    if any(not 0 <= raw_id < NUM_RAW_IDS for raw_id in ignore_label_ids):
        raise ArgumentError(f"{IGNORE_FLAG} {_listed(ignore_label_ids)}: expected ids from 0 to {NUM_RAW_IDS - 1}.")
    without_use = set(ignore_label_ids) - set(names) - set(values) - set(USUAL_IGNORE_IDS)
    if without_use:
        logger.warning("%s: neither a class nor a pixel has the id %s", IGNORE_FLAG, _listed(sorted(without_use)))
    return reasons | dict.fromkeys(ignore_label_ids, IGNORE_FLAG)


def _is_ignored(name: str) -> bool:
    return _normalised(name) in IGNORED_NAMES


def _normalised(name: str) -> str:
    """Don't_Care -> dont care."""
    letters = name.casefold().replace("'", "").replace("\N{RIGHT SINGLE QUOTATION MARK}", "")
    return " ".join(letters.replace("_", " ").replace("-", " ").split())


def _check_range(values: Iterable[int], files: Mapping[int, str]) -> None:
    beyond = sorted(raw_id for raw_id in values if not 0 <= raw_id < NUM_RAW_IDS)
    if beyond:
        raise DataError(
            f"The masks hold the value {beyond[0]}{_in_file(beyond[0], files)}, expected ids from 0 to {NUM_RAW_IDS - 1}. "
            "Save the masks with small ids, and with 255 for pixels that do not count."
        )


def _unnamed(
    unnamed: Mapping[int, int], num_pixels: int, names: Mapping[int, str], files: Mapping[int, str]
) -> DataError:
    """The error for values without a class, which begins with the most frequent."""
    order = sorted(unnamed, key=lambda raw_id: (-unnamed[raw_id], raw_id))
    first, others = order[0], f" (others: {_listed(order[1:])})" if len(order) > 1 else ""
    classes = [f"{raw_id} {name}" for raw_id, name in sorted(names.items())]
    return DataError(
        f"The masks hold the value {first} in {unnamed[first]} pixels, {unnamed[first] / num_pixels:.1%} of all"
        f"{_in_file(first, files)}{others}, and no class has it. The classes are {_listed(classes)}. Name all classes "
        f"with {NAMES_FLAG}, in id order from 0, or leave these pixels out with {IGNORE_FLAG} "
        f"{' '.join(map(str, order[:10]))}; if the values are colors, give {COLORS_FLAG}."
    )


def _check_more_than_one_class(classes: MaskClasses, values: Mapping[int, int], reasons: Mapping[int, str]) -> None:
    found = [name for raw_id, name in zip(classes.raw_ids, classes.names, strict=True) if values.get(raw_id)]
    if len(found) > 1:
        return
    hint = "".join(
        f" {raw_id} was taken for {USUAL}, {_share(raw_id, values)}. If it is a class, as in masks of black and white, "
        f"give {COLORS_FLAG} a table {{background: [0, 0, 0], name: [255, 255, 255]}}."
        for raw_id in USUAL_IGNORE_IDS
        if values.get(raw_id) and reasons.get(raw_id) == USUAL
    )
    raise DataError(
        f"Of the {classes.num_labels} classes that are not ignored, the masks hold {_listed(found) or 'none'} alone "
        f"(values: {_listed(sorted(values))}); nothing can be learned from fewer than two.{hint} "
        f"See {NAMES_FLAG} and {IGNORE_FLAG}."
    )


def _report(
    classes: MaskClasses, names: Mapping[int, str], values: Mapping[int, int], reasons: Mapping[int, str]
) -> None:
    """Say what was decided without being asked for, and what is unusual."""
    for raw_id, reason in sorted(reasons.items()):
        if values.get(raw_id):
            # Where most pixels do not count, the value is more likely a class.
            is_doubtful = reason == USUAL and values[raw_id] > sum(values.values()) / 2
            what = f"{raw_id} ({names[raw_id]})" if raw_id in names else str(raw_id)
            logger.log(
                logging.WARNING if is_doubtful else logging.INFO,
                "mask value %s is ignored in loss and metrics, %s: %s", what, _share(raw_id, values), reason,
            )  # fmt: skip
    if reasons.get(0) == REDUCE_FLAG and not values.get(0):
        logger.warning(
            "%s ignores the mask value 0, but no pixel has it: do these masks have no background?", REDUCE_FLAG
        )
    missing = [name for raw_id, name in zip(classes.raw_ids, classes.names, strict=True) if not values.get(raw_id)]
    if missing:
        logger.info("%d of %d classes have no pixel: %s", len(missing), classes.num_labels, _listed(missing))


def _share(raw_id: int, values: Mapping[int, int]) -> str:
    return f"{values[raw_id] / sum(values.values()):.1%} of the pixels"


def _in_file(raw_id: int, files: Mapping[int, str]) -> str:
    return f" (in {files[raw_id]})" if raw_id in files else ""


def _listed(items: Sequence[Any], limit: int = 10) -> str:
    shown = ", ".join(str(item) for item in items[:limit])
    return shown if len(items) <= limit else f"{shown} ... ({len(items)} in all)"
