"""Folders of pictures or sounds as people have them: which kind it is, class folders, and who reads the others.

    flowers/train/rose/1.jpg                              read_folder -> {"train": {"image": ..., "label": 0}}
    commands/yes/1.wav                                    read_folder -> {"train": {"audio": ..., "label": 0}}
    streets/images/val/1.jpg, streets/masks/val/1.png     read_folder -> {"validation": {"image": ..., "mask": ...}}

datasets' own imagefolder takes a word anywhere in a path for the name of a split, so that `train/test_tube/1.jpg` is also a
test picture and a score is too good; it passes over `1.Jpg`, and reads no picture where as many text files lie beside
them. It reads the folders of pictures with a metadata file, in which the splits and files are said. Its audiofolder is the
same for sounds, and reads none without torchcodec (pitfall 20).
"""

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from datasets import ClassLabel, Dataset, Features, Image

from sft_hf.data.encoded_audio import EncodedAudio
from sft_hf.data.labels import sorted_names
from sft_hf.data.metadata_folders import METADATA_NAMES
from sft_hf.data.paired_folders import ID2LABEL_NAME, are_paired, read_pairs
from sft_hf.data.paths import (
    AUDIO_SUFFIXES,
    IMAGE_SUFFIXES,
    SPLIT_FOLDERS,
    SPLITS,
    named,
)
from sft_hf.errors import DataError

logger = logging.getLogger(__name__)

TABLE_SUFFIXES = frozenset(".csv .tsv .json .jsonl .ndjson .parquet .arrow".split())


@dataclass(frozen=True)
class Medium:
    """What a folder is full of."""

    column: str
    plural: str
    feature: Image | EncodedAudio


PICTURES = Medium("image", "pictures", Image())
SOUNDS = Medium("audio", "sounds", EncodedAudio(decode=False))


@dataclass(frozen=True)
class MediaFolder:
    """A folder of pictures or sounds; their paths in it, and those of its metadata files, sorted."""

    folder: Path
    medium: Medium
    files: list[Path]
    metadata: list[Path]


def find_media(folder: Path) -> MediaFolder | None:
    """What there is to read in a folder with pictures or sounds, whichever are more; None where there are more tables, or none.

    Hidden files, and those that are none of the three, count for nothing.
    """
    folder = folder.absolute()
    files = sorted(_files(folder))
    pictures = [file for file in files if file.suffix.lower() in IMAGE_SUFFIXES]
    sounds = [file for file in files if file.suffix.lower() in AUDIO_SUFFIXES]
    metadata = [file for file in files if file.name in METADATA_NAMES]
    tables = [file for file in files if file.suffix.lower() in TABLE_SUFFIXES]
    tables = [file for file in tables if file.name not in (*METADATA_NAMES, ID2LABEL_NAME)]
    medium, media = (PICTURES, pictures) if len(pictures) >= len(sounds) else (SOUNDS, sounds)
    if not media or len(media) < len(tables) or _declares_files(folder / "README.md"):
        return None
    if len(files) > len(media):
        logger.info("%s: %d %s, and %d other files", folder, len(media), medium.plural, len(files) - len(media))
    return MediaFolder(folder, medium, media, metadata)


def read_folder(media: MediaFolder, *, flag: str) -> dict[str, Dataset]:
    """The splits of a folder without metadata: `image` and `mask`, or `image` or `audio` and `label`; by path.

    `SPLIT/CLASS/FILE` and `CLASS/FILE` give a ClassLabel over all splits, its names sorted (as numbers where all look
    like integers); a file in no class folder is unlabelled. Pictures and masks are paired by `read_pairs`.

    Raises DataError for files that lie elsewhere, and for two folders of one split.
    """
    if media.medium is PICTURES and are_paired(media.files):
        return read_pairs(media.folder, media.files, flag=flag)
    return _read_classes(media, flag)


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


def _read_classes(media: MediaFolder, flag: str) -> dict[str, Dataset]:
    plural = media.medium.plural
    has_splits = any(len(path.parts) > 1 and path.parts[0].lower() in SPLIT_FOLDERS for path in media.files)
    # A preview beside the folders of the splits is of none of them.
    paths = [path for path in media.files if len(path.parts) > 1 or not has_splits]
    if len(paths) < len(media.files):
        logger.info("%s: %d %s lie in no split and are not read", flag, len(media.files) - len(paths), plural)
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
            rows.setdefault(split, []).append((str(media.folder / path), inside[0] if len(inside) == 2 else None))
    if elsewhere:
        expected = "SPLIT/CLASS/FILE" if has_splits else "CLASS/FILE or SPLIT/CLASS/FILE"
        raise DataError(
            f"{flag}: {len(elsewhere)} of {len(paths)} {plural} do not lie as {expected}: {named(elsewhere)}. Move them, "
            f"or give the folder that holds the class folders."
        )
    return _classified(rows, media.medium)


def _classified(rows: dict[str, list[tuple[str, str | None]]], medium: Medium) -> dict[str, Dataset]:
    names = sorted_names({label for split in rows.values() for _, label in split if label is not None})
    features = Features({medium.column: medium.feature, **({"label": ClassLabel(names=names)} if names else {})})
    return {
        split: Dataset.from_dict(
            {name: [row[index] for row in rows[split]] for index, name in enumerate(features)}, features=features
        )
        for split in SPLITS
        if split in rows
    }
