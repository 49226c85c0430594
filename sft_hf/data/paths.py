"""What paths say: a picture or a sound by the suffix, a split by the folder; and columns of paths in tables.

lists/train.csv with the row "pictures/1.jpg,rose"    with_absolute_paths -> "/data/lists/pictures/1.jpg"
{"audio": "/data/yes/1.flac"}                         as_encoded_audio -> {"audio": {"bytes": None, "path": "/data/yes/1.flac"}}
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

from datasets import Dataset, Image, IterableDataset, Value

from sft_hf.data.columns import (
    AUDIO_FLAG,
    AUDIO_NAMES,
    EXAMPLE_ID,
    IMAGE_FLAG,
    IMAGE_NAMES,
    LABEL_FLAG,
    MASK_NAMES,
    is_text,
)
from sft_hf.data.containment import Place, files_of, first_few
from sft_hf.data.encoded_audio import EncodedAudio
from sft_hf.errors import DataError

AnyDataset = Dataset | IterableDataset
IMAGE_SUFFIXES = frozenset(
    ".jpg .jpeg .jpe .jfif .png .bmp .gif .tif .tiff .webp .ppm .pgm .pbm .pnm .tga .jp2 .avif .heic .heif".split()
)
AUDIO_SUFFIXES = frozenset(
    ".wav .flac .mp3 .ogg .oga .opus .m4a .mp4 .aac .webm .mka .wma .amr .aif .aiff .aifc .au .caf .w64 .sph".split()
)
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
SPLITS = tuple(dict.fromkeys(SPLIT_FOLDERS.values()))
PATH_NAMES = frozenset((*IMAGE_NAMES, *MASK_NAMES, *AUDIO_NAMES))


def named(paths: Sequence[Path]) -> str:
    """The first of them, for a message."""
    return first_few([path.as_posix() for path in paths])


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


def as_encoded_images(dataset: AnyDataset, column: str, *, place: Place | None = None) -> AnyDataset:
    """The dataset with `column` as `{"bytes": bytes or None, "path": str or None}`; no picture is decoded.

    The column may be an Image, a path, bytes, or a struct of both; its files lie in `place`, or anywhere. Raises DataError for
    paths out of it, for paths of which a file is not there, and for URLs; of a stream the first row is looked at, and where its
    files lie is checked row by row as they come.
    """
    return _as_encoded(dataset, column, Image(decode=False), place, flags=f"{IMAGE_FLAG}, for masks {LABEL_FLAG},")


def as_encoded_audio(dataset: AnyDataset, column: str, *, place: Place | None = None) -> AnyDataset:
    """As `as_encoded_images`, of clips; datasets decodes none, so that torchcodec is not needed (pitfall 20)."""
    return _as_encoded(dataset, column, EncodedAudio(decode=False), place, flags=AUDIO_FLAG)


def _as_encoded(
    dataset: AnyDataset, column: str, feature: Image | EncodedAudio, place: Place | None, *, flags: str
) -> AnyDataset:
    if dataset.features is None:
        dataset = dataset._resolve_features()
    if is_text(dataset.features[column]):
        _check_files(dataset, column, place, flags)
        # Audio takes no long strings, which a csv reader gives.
        if isinstance(dataset, Dataset) and dataset.features[column] != Value("string"):
            dataset = dataset.cast_column(column, Value("string"))
    dataset = dataset.cast_column(column, feature)
    # Of a stream that was mapped before, a cast changes what is said of the rows, and not the rows.
    if isinstance(dataset, IterableDataset):
        return dataset.map(_AsFile(column, place), features=dataset.features)
    if place is not None:
        place.check(files_of(dataset, column), f"Column '{column}'")
    return dataset


def _first(dataset: AnyDataset, column: str) -> str:
    values = (row[column] for row in dataset.select_columns([column]))
    return next((value for value in values if value), "")


def _is_path(value: str) -> bool:
    return "://" not in value and Path(value.strip()).suffix.lower() in IMAGE_SUFFIXES | AUDIO_SUFFIXES


@dataclass(frozen=True)
class _AsFile:
    """A picklable function of a row. Raises DataError for a file that lies outside of `place`."""

    column: str
    place: Place | None

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        value = row[self.column]
        if isinstance(value, str):
            value = {"bytes": None, "path": value}
        elif isinstance(value, bytes):
            value = {"bytes": value, "path": None}
        if self.place is not None and value and value["bytes"] is None and value["path"]:
            self.place.check([(row.get(EXAMPLE_ID, 0), value["path"])], f"Column '{self.column}'")
        return {self.column: value}


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


def _check_files(dataset: AnyDataset, column: str, place: Place | None, flags: str) -> None:
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
        f"{flags} chooses another column."
    )
    urls = {row: value for row, value in values.items() if "://" in value}
    if urls:
        raise DataError(
            f"Column '{column}': {_rows(urls, values)} are URLs, which are not downloaded. Download the files and give "
            f"their paths. {advice}"
        )
    if place is not None:  # before anybody learns from the message which files there are elsewhere
        place.check(values.items(), f"Column '{column}'")
    missing = {row: value for row, value in values.items() if not os.path.isfile(value)}
    if missing:
        raise DataError(f"Column '{column}': {_rows(missing, values)} name no file that is there. {advice}")


def _rows(some: dict[int, str], values: dict[int, str]) -> str:
    return f"{len(some)} of {len(values)} values ({first_few([f'row {row}: {value}' for row, value in some.items()])})"


def short_name(path: str | None) -> str | None:
    """`cat/1.jpg` of `/home/me/pets/cat/1.jpg`, and of a file in an archive, `zip://cat/1.jpg::/home/me/pets.zip`."""
    return path and "/".join(PurePath(path.partition("::")[0]).parts[-2:])
