"""Folders of pictures and their masks, paired by name, and the names of the ids in masks.

streets/images/val/1.jpg, streets/masks/val/1.png       read_pairs -> {"validation": {"image": ..., "mask": ...}}
streets/id2label.json: {"0": "sky", "1": "road"}        read_id2label -> {0: "sky", 1: "road"}
"""

import json
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Image

from sft_hf.data.paths import SPLIT_FOLDERS, SPLITS, named
from sft_hf.errors import DataError

logger = logging.getLogger(__name__)

ID2LABEL_NAME = "id2label.json"
ROLE_FOLDERS = {
    **dict.fromkeys(("images", "image", "jpegimages"), "image"),
    **dict.fromkeys(("masks", "mask", "annotations", "labels", "segmentationclass"), "mask"),
}
MASK_ENDINGS = ("_mask", "-mask")


def are_paired(pictures: Sequence[Path]) -> bool:
    """Whether pictures lie in a folder for images, and others in one for masks."""
    return {place.role for place in map(_place, pictures) if place} == {"image", "mask"}


def read_pairs(folder: Path, pictures: Sequence[Path], *, flag: str) -> dict[str, Dataset]:
    """The splits of a folder as `image` and `mask`, by path.

    `SPLIT/images/FILE`, `images/SPLIT/FILE` and `images/FILE` are paired with the masks that lie and are called alike, but
    for the suffix and `_mask` or `-mask` at the name's end. Raises DataError for a missing partner, two files of one name,
    and two folders of one split or role.
    """
    places = [place for place in map(_place, pictures) if place]
    if len(places) < len(pictures):
        others = len(pictures) - len(places)
        logger.info("%s: %d pictures lie in no folder of images or masks and are not read", flag, others)
    splits = {}
    for split in SPLITS:
        images, masks = (
            [place for place in places if (place.split, place.role) == (split, role)] for role in ("image", "mask")
        )
        if images or masks:
            pairs = _pairs(images, masks, f"{flag}, {split}")
            columns = {
                "image": [str(folder / image) for image, _ in pairs],
                "mask": [str(folder / mask) for _, mask in pairs],
            }
            splits[split] = Dataset.from_dict(columns, features=Features(dict.fromkeys(columns, Image())))
    return splits


def read_id2label(path: Path, *, source: str) -> dict[int, str]:
    """The names of the ids in masks, from a file like `{"0": "background", "1": "road"}`.

    Raises DataError, which names the file as `source`, for anything else.
    """
    try:
        names = json.loads(path.read_text(encoding="utf-8-sig"), object_pairs_hook=_without_repetition)
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ValueError("expected an object of strings")
        return {int(key): name for key, name in names.items()}
    except ValueError as error:
        raise DataError(f'{source}: expected names by id, such as {{"0": "background"}}: {error}') from None


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    twice = [key for key, count in Counter(key for key, _ in pairs).items() if count > 1]
    if twice:
        raise ValueError(f"{', '.join(twice)} stands there twice")
    return dict(pairs)


@dataclass(frozen=True)
class _Place:
    """Where a picture of a paired folder lies: `val/images/a/1.jpg` is the validation image a/1 of val/images."""

    split: str
    role: str
    folder: str
    key: str
    path: Path


def _place(path: Path) -> _Place | None:
    """None for a picture that is in no folder of images or masks."""
    parts = [part.lower() for part in path.parts]
    if len(parts) > 2 and parts[0] in SPLIT_FOLDERS and parts[1] in ROLE_FOLDERS:
        split, role, depth = SPLIT_FOLDERS[parts[0]], ROLE_FOLDERS[parts[1]], 2
    elif len(parts) > 2 and parts[0] in ROLE_FOLDERS and parts[1] in SPLIT_FOLDERS:
        split, role, depth = SPLIT_FOLDERS[parts[1]], ROLE_FOLDERS[parts[0]], 2
    elif len(parts) > 1 and parts[0] in ROLE_FOLDERS:
        split, role, depth = "train", ROLE_FOLDERS[parts[0]], 1
    else:
        return None
    key = Path(*path.parts[depth:]).with_suffix("").as_posix()
    return _Place(split, role, Path(*path.parts[:depth]).as_posix(), key, path)


def _pairs(images: list[_Place], masks: list[_Place], where: str) -> list[tuple[Path, Path]]:
    image_paths = _by_key(images, {place.key: place.key for place in images}, where)
    mask_paths = _by_key(masks, {place.key: _image_key(place.key, image_paths) for place in masks}, where)
    alone = [path for key, path in image_paths.items() if key not in mask_paths]
    stray = [path for key, path in mask_paths.items() if key not in image_paths]
    problems = [f"{len(alone)} of {len(images)} pictures have no mask: {named(alone)}"] if alone else []
    problems += [f"{len(stray)} of {len(masks)} masks have no picture: {named(stray)}"] if stray else []
    if problems:
        raise DataError(
            f"{where}: {'; '.join(problems)}. A mask is called as its picture, or so with _mask at the end. Complete or "
            "remove them, or give the pairs as a --train_file with the columns image and mask."
        )
    return [(path, mask_paths[key]) for key, path in image_paths.items()]


def _by_key(places: list[_Place], keys: dict[str, str], where: str) -> dict[str, Path]:
    folders = sorted({place.folder for place in places})
    if len(folders) > 1:
        raise DataError(f"{where}: the {places[0].role}s lie in {' and in '.join(folders)}. Keep one of them there.")
    paths: dict[str, Path] = {}
    for place in places:
        first = paths.setdefault(keys[place.key], place.path)
        if first != place.path:
            raise DataError(f"{where}: {first} and {place.path} are the {place.role} of one name. Remove one of them.")
    return paths


def _image_key(mask_key: str, images: dict[str, Path]) -> str:
    if mask_key in images:
        return mask_key
    return next((mask_key.removesuffix(end) for end in MASK_ENDINGS if mask_key.endswith(end)), mask_key)
