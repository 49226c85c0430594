"""Pictures in files: class folders, folders of pictures and masks, columns of paths.

    flowers/train/rose/1.jpg                              read_folder -> {"image": ..., "label": 0}
    streets/images/val/1.jpg, streets/masks/val/1.png     read_folder -> {"image": ..., "mask": ...}
    lists/train.csv with the row "pictures/1.jpg,rose"    with_absolute_paths -> "/data/lists/pictures/1.jpg"

datasets' own imagefolder takes a word anywhere in a path for the name of a split, so that `train/test_tube/1.jpg` is also a
test picture and a score is too good; it passes over `1.Jpg`, and reads no picture where as many text files lie beside
them. It reads the folders with a metadata file, in which the splits and files are said.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Image, IterableDataset

from sft_hf.data.columns import EXAMPLE_ID, IMAGE_FLAG, IMAGE_NAMES, LABEL_FLAG, MASK_NAMES, is_text
from sft_hf.data.labels import sorted_names
from sft_hf.errors import DataError

logger = logging.getLogger(__name__)

AnyDataset = Dataset | IterableDataset
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .tif .tiff .webp .ppm .pgm .pbm .pnm .tga .jp2 .avif .heic .heif".split()
)
AUDIO_SUFFIXES = frozenset(".wav .flac .mp3 .ogg .oga .opus .m4a .aac .aif .aiff .wma".split())
TABLE_SUFFIXES = frozenset(".csv .tsv .json .jsonl .ndjson .parquet .arrow".split())
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
ID2LABEL_NAME = "id2label.json"
SPLIT_FOLDERS = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
}
ROLE_FOLDERS = {
    **dict.fromkeys(("images", "image", "jpegimages"), "image"),
    **dict.fromkeys(("masks", "mask", "annotations", "labels", "segmentationclass"), "mask"),
}
MASK_ENDINGS = ("_mask", "-mask")
PATH_NAMES = frozenset(
    (
        *IMAGE_NAMES,
        *MASK_NAMES,
        "audio",
        "audio_path",
        "audio_file",
        "audio_file_name",
        "speech",
        "sound",
        "clip",
        "wav",
    )
)
NUM_NAMED = 5  # files that a message names


# Folders


@dataclass(frozen=True)
class PictureFolder:
    """A folder of pictures, and their paths in it, sorted."""

    folder: Path
    pictures: list[Path]
    has_metadata: bool

    @property
    def is_paired(self) -> bool:
        """Whether pictures lie in a folder for images, and others in one for masks."""
        return {place.role for place in map(_place, self.pictures) if place} == {"image", "mask"}


def find_pictures(folder: Path) -> PictureFolder | None:
    """What there is to read in a folder of pictures; None for one with more tables or sounds, or without pictures.

    Hidden files, and those that are none of the three, count for nothing.
    """
    folder = folder.absolute()
    files = sorted(_files(folder))
    pictures = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    has_metadata = any(file.name in METADATA_NAMES for file in files)
    sounds = [file for file in files if file.suffix.lower() in AUDIO_SUFFIXES]
    tables = [file for file in files if file.suffix.lower() in TABLE_SUFFIXES]
    tables = [file for file in tables if file.name not in (*METADATA_NAMES, ID2LABEL_NAME)]
    if not pictures or len(pictures) < max(len(tables), len(sounds)) or _declares_files(folder / "README.md"):
        return None
    if len(files) > len(pictures):
        logger.info("%s: %d pictures, and %d other files", folder, len(pictures), len(files) - len(pictures))
    return PictureFolder(folder, pictures, has_metadata)


def read_folder(pictures: PictureFolder, *, flag: str) -> dict[str, Dataset]:
    """The splits of a folder of pictures without metadata: `image` and `mask`, or `image` and `label`; by path.

    `SPLIT/CLASS/FILE` and `CLASS/FILE` give a ClassLabel over all splits, its names sorted (as numbers where all look
    like integers); a picture in no class folder is unlabelled. `SPLIT/images/FILE`, `images/SPLIT/FILE` and
    `images/FILE` are paired with the masks that lie and are called alike, but for the suffix and `_mask` or `-mask` at
    the name's end.

    Raises DataError for a missing partner, two files of one name, two folders of one split or role, and for pictures
    that lie elsewhere.
    """
    read = _read_pairs if pictures.is_paired else _read_classes
    return read(pictures, flag)


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


def _files(folder: Path) -> Iterable[Path]:
    """Relative paths of the files of a folder, without hidden ones and archives' leftovers such as __MACOSX."""
    for parent, names, files in os.walk(folder, followlinks=True):
        names[:] = [name for name in names if not name.startswith((".", "__"))]
        relative = Path(parent).relative_to(folder)
        yield from (relative / file for file in files if not file.startswith("."))


def _declares_files(card: Path) -> bool:
    """Whether a dataset card says which files are of which split: then datasets reads them."""
    text = card.read_text(encoding="utf-8", errors="replace") if card.is_file() else ""
    return text.startswith("---") and "\nconfigs:" in text.split("\n---")[0]


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


def _read_pairs(pictures: PictureFolder, flag: str) -> dict[str, Dataset]:
    places = [place for place in map(_place, pictures.pictures) if place]
    if len(places) < len(pictures.pictures):
        others = len(pictures.pictures) - len(places)
        logger.info("%s: %d pictures lie in no folder of images or masks and are not read", flag, others)
    splits = {}
    for split in dict.fromkeys(SPLIT_FOLDERS.values()):
        images, masks = (
            [place for place in places if (place.split, place.role) == (split, role)] for role in ("image", "mask")
        )
        if images or masks:
            pairs = _pairs(images, masks, f"{flag}, {split}")
            columns = {
                "image": [str(pictures.folder / image) for image, _ in pairs],
                "mask": [str(pictures.folder / mask) for _, mask in pairs],
            }
            splits[split] = Dataset.from_dict(columns, features=Features(dict.fromkeys(columns, Image())))
    return splits


def _pairs(images: list[_Place], masks: list[_Place], where: str) -> list[tuple[Path, Path]]:
    image_paths = _by_key(images, {place.key: place.key for place in images}, where)
    mask_paths = _by_key(masks, {place.key: _image_key(place.key, image_paths) for place in masks}, where)
    alone = [path for key, path in image_paths.items() if key not in mask_paths]
    stray = [path for key, path in mask_paths.items() if key not in image_paths]
    problems = [f"{len(alone)} of {len(images)} pictures have no mask: {_named(alone)}"] if alone else []
    problems += [f"{len(stray)} of {len(masks)} masks have no picture: {_named(stray)}"] if stray else []
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


def _read_classes(pictures: PictureFolder, flag: str) -> dict[str, Dataset]:
    has_splits = any(len(path.parts) > 1 and path.parts[0].lower() in SPLIT_FOLDERS for path in pictures.pictures)
    # A preview beside the folders of the splits is of none of them.
    paths = [path for path in pictures.pictures if len(path.parts) > 1 or not has_splits]
    if len(paths) < len(pictures.pictures):
        logger.info("%s: %d pictures lie in no split and are not read", flag, len(pictures.pictures) - len(paths))
    rows: dict[str, list[tuple[str, str | None]]] = {}
    folders: dict[str, str] = {}
    elsewhere = []
    for path in paths:
        first = path.parts[0]
        split, inside = (SPLIT_FOLDERS.get(first.lower()), path.parts[1:]) if has_splits else ("train", path.parts)
        if split is None or len(inside) > 2:
            elsewhere.append(path)
        elif has_splits and folders.setdefault(split, first) != first:
            raise DataError(f"{flag}: {folders[split]} and {first} are both {split}. Keep one of them there.")
        else:
            rows.setdefault(split, []).append((str(pictures.folder / path), inside[0] if len(inside) == 2 else None))
    if elsewhere:
        expected = "SPLIT/CLASS/FILE" if has_splits else "CLASS/FILE or SPLIT/CLASS/FILE"
        raise DataError(
            f"{flag}: {len(elsewhere)} of {len(paths)} pictures do not lie as {expected}: {_named(elsewhere)}. Move them, "
            f"or give the folder that holds the class folders."
        )
    return _classified(rows)


def _classified(rows: dict[str, list[tuple[str, str | None]]]) -> dict[str, Dataset]:
    names = sorted_names({label for split in rows.values() for _, label in split if label is not None})
    features = Features({"image": Image(), **({"label": ClassLabel(names=names)} if names else {})})
    return {
        split: Dataset.from_dict(
            {name: [row[index] for row in rows[split]] for index, name in enumerate(features)}, features=features
        )
        for split in dict.fromkeys(SPLIT_FOLDERS.values())
        if split in rows
    }


def _named(paths: Sequence[Path]) -> str:
    names = ", ".join(path.as_posix() for path in paths[:NUM_NAMED])
    return f"{names}, ..." if len(paths) > NUM_NAMED else names


# Columns


def path_columns(dataset: AnyDataset) -> list[str]:
    """The columns of a table that hold paths: strings under a usual name, the first of which is a picture's or a sound's."""
    candidates = [
        name for name, feature in (dataset.features or {}).items() if name.lower() in PATH_NAMES and is_text(feature)
    ]
    return [name for name in candidates if _is_path(_first(dataset, name))]


def with_absolute_paths(dataset: AnyDataset, columns: Sequence[str], folder: Path) -> AnyDataset:
    """Paths in `columns` that are relative to `folder` become absolute, `~` is expanded; URLs stay."""
    options: dict[str, Any] = {"batched": True, "features": dataset.features}
    if isinstance(dataset, Dataset):
        options["desc"] = "completing paths"
    return dataset.map(_CompletePaths(tuple(columns), folder.absolute()), **options)


def as_encoded_images(dataset: AnyDataset, column: str) -> AnyDataset:
    """The dataset with `column` as `{"bytes": bytes or None, "path": str or None}`; no picture is decoded.

    The column may be an Image, a path, bytes, or a struct of both. Raises DataError for paths of which a file is not
    there, and for URLs; of a stream the first row is looked at.
    """
    if dataset.features is None:
        dataset = dataset._resolve_features()
    if is_text(dataset.features[column]):
        _check_files(dataset, column)
    return dataset.cast_column(column, Image(decode=False))


def _first(dataset: AnyDataset, column: str) -> str:
    values = (row[column] for row in dataset.select_columns([column]))
    return next((value for value in values if value), "")


def _is_path(value: str) -> bool:
    return "://" not in value and Path(value.strip()).suffix.lower() in IMAGE_SUFFIXES | AUDIO_SUFFIXES


@dataclass(frozen=True)
class _CompletePaths:
    """A picklable function of a batch of rows."""

    columns: tuple[str, ...]
    folder: Path

    def __call__(self, batch: dict[str, list]) -> dict[str, list]:
        return {name: [self._complete(value) for value in batch[name]] for name in self.columns}

    def _complete(self, value: str | None) -> str | None:
        if not value or "://" in value:
            return value
        return os.path.normpath(self.folder / Path(value.strip()).expanduser())


def _check_files(dataset: AnyDataset, column: str) -> None:
    names = [column, *({EXAMPLE_ID} & set(dataset.column_names))]
    rows = dataset.select_columns(names)
    is_stream = isinstance(dataset, IterableDataset)
    values = {
        row.get(EXAMPLE_ID, number): row[column]
        for number, row in enumerate(islice(rows, 1) if is_stream else rows)
        if row[column]
    }
    advice = (
        "A relative path in a --train_file, --validation_file or --test_file begins at the folder of that file. "
        f"{IMAGE_FLAG}, for masks {LABEL_FLAG}, chooses another column."
    )
    urls = {row: value for row, value in values.items() if "://" in value}
    if urls:
        raise DataError(
            f"Column '{column}': {_rows(urls, values)} are URLs, which are not downloaded. Download the files and give "
            f"their paths. {advice}"
        )
    missing = {row: value for row, value in values.items() if not os.path.isfile(value)}
    if missing:
        raise DataError(f"Column '{column}': {_rows(missing, values)} name no file that is there. {advice}")


def _rows(some: dict[int, str], values: dict[int, str]) -> str:
    named = ", ".join(f"row {row}: {value}" for row, value in list(some.items())[:NUM_NAMED])
    return f"{len(some)} of {len(values)} values ({named}{', ...' if len(some) > NUM_NAMED else ''})"
