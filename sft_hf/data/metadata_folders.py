"""Folders of sounds with a metadata file, which says of each file what is in it.

    calls/train/metadata.csv with the row "1.flac,yes please,anna" under "file_name,text,speaker"
    -> {"train": {"audio": "/data/calls/train/1.flac", "text": "yes please", "speaker": "anna"}}

The layouts are those of datasets' audiofolder, which needs torchcodec even to list the files (pitfall 20).
"""

import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from datasets import Dataset

from sft_hf.data.columns import describe_feature, is_text
from sft_hf.data.containment import first_few, place_of_folder
from sft_hf.data.paths import SPLIT_FOLDERS, SPLITS, as_encoded_audio, named
from sft_hf.errors import DataError

logger = logging.getLogger(__name__)

METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"


def read_metadata(
    folder: Path,
    sounds: Sequence[Path],
    metadata: Sequence[Path],
    *,
    read_tables: Callable[[list[str]], Dataset],
    flag: str,
) -> dict[str, Dataset]:
    """The splits of a folder: `audio` by path, from `file_name`, and the other columns of the metadata files.

    `sounds` and `metadata` are relative to `folder`; `read_tables` reads files as one table, in which file names are absolute
    paths. A metadata file below a folder of a split is of that split; of one that is not, the file names say it
    (`train/1.flac`), and where they do not either, all is for training. Raises DataError for a table without `file_name`,
    a row without a file or with one outside of the folder, a file with two rows, and two folders or metadata files of one
    split; warns of files without a row.
    """
    splits: dict[str, Dataset] = {}
    for split, tables in _tables_by_split(metadata, flag).items():
        table = read_tables([str(folder / path) for path in tables])
        where = f"{flag}, {named(tables)}"
        _check_columns(table, where)
        paths = table[FILE_NAME][:]
        place_of_folder(folder, name=flag).check(((row, path) for row, path in enumerate(paths) if path), where)
        _check_files(paths, folder, where)
        parts = {split: table} if split else _split_by_folder(table, folder, where)
        both = splits.keys() & parts.keys()
        if both:
            raise DataError(
                f"{where}: another metadata file is of {' and '.join(sorted(both))} too. Keep one of them there."
            )
        splits |= parts
    _check_repetition([path for table in splits.values() for path in table[FILE_NAME]], folder, flag)
    _warn_of_others(sounds, {path for table in splits.values() for path in table[FILE_NAME]}, folder, flag)
    return {split: _with_audio(splits[split]) for split in SPLITS if split in splits}


def _tables_by_split(metadata: Sequence[Path], flag: str) -> dict[str | None, list[Path]]:
    """Metadata files by the split in whose folder they are, None for those in no such folder."""
    tables: dict[str | None, list[Path]] = {}
    folders: dict[str, str] = {}
    for path in metadata:
        first = path.parts[0]
        split = SPLIT_FOLDERS.get(first.lower()) if len(path.parts) > 1 else None
        if split and folders.setdefault(split, first) != first:
            raise DataError(f"{flag}: {folders[split]} and {first} are both {split}. Keep one of them there.")
        tables.setdefault(split, []).append(path)
    return tables


def _check_columns(table: Dataset, where: str) -> None:
    if FILE_NAME not in table.column_names:
        raise DataError(
            f"{where}: there is no column {FILE_NAME}, which says of which file a row is; there are "
            f"{', '.join(table.column_names)}. Rename the one with the paths."
        )
    if not is_text(table.features[FILE_NAME]):
        kind = describe_feature(table.features[FILE_NAME])
        raise DataError(f"{where}: {FILE_NAME} holds {kind}; expected paths that begin at the metadata file's folder.")
    if "audio" in table.column_names:
        raise DataError(f"{where}: a column audio is made of {FILE_NAME}, and there is one already. Rename it.")


def _check_files(paths: list[str | None], folder: Path, where: str) -> None:
    missing = {row: path for row, path in enumerate(paths) if not path or not os.path.isfile(path)}
    if missing:
        rows = first_few(
            [f"row {row}: {_relative(path, folder) if path else 'empty'}" for row, path in missing.items()]
        )
        raise DataError(
            f"{where}: {len(missing)} of {len(paths)} rows name no file that is there ({rows}). A {FILE_NAME} begins at the metadata file's folder. Complete the "
            "folder, or remove the rows."
        )


def _split_by_folder(table: Dataset, folder: Path, where: str) -> dict[str, Dataset]:
    names = [_relative(path, folder) for path in table[FILE_NAME]]
    of_row = [SPLIT_FOLDERS.get(name.parts[0].lower()) if len(name.parts) > 1 else None for name in names]
    if not any(of_row):
        return {"train": table}
    elsewhere = [name for name, split in zip(names, of_row, strict=True) if not split]
    if elsewhere:
        raise DataError(
            f"{where}: {len(elsewhere)} of {len(names)} rows are of a file in no folder of a split, and others are of one: "
            f"{named(elsewhere)}. Move the files, or remove the rows."
        )
    return {
        split: table.select([row for row, other in enumerate(of_row) if other == split])
        for split in dict.fromkeys(of_row)
    }


def _check_repetition(paths: list[str], folder: Path, flag: str) -> None:
    twice = [_relative(path, folder) for path, count in Counter(paths).items() if count > 1]
    if twice:
        raise DataError(
            f"{flag}: {len(twice)} of {len(set(paths))} files have more than one row: {named(twice)}. Keep one row of each."
        )


def _warn_of_others(sounds: Sequence[Path], paths: set[str], folder: Path, flag: str) -> None:
    others = [path for path in sounds if os.path.normpath(folder / path) not in paths]
    if others:
        logger.warning(
            "%s: %d of %d sounds have no row in a metadata file and are not read: %s",
            flag, len(others), len(sounds), named(others),
        )  # fmt: skip


def _with_audio(table: Dataset) -> Dataset:
    others = [name for name in table.column_names if name != FILE_NAME]
    table = table.rename_column(FILE_NAME, "audio").select_columns(["audio", *others])
    return as_encoded_audio(table, "audio")


def _relative(path: str, folder: Path) -> Path:
    return Path(os.path.relpath(path, folder))
