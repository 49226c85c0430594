"""Folders of sounds with metadata: which layouts are read, and which mistakes in them are named."""

import logging
import os
from pathlib import Path

import datasets
import pytest

from sft_hf.data.encoded_audio import EncodedAudio
from sft_hf.data.metadata_folders import read_metadata
from sft_hf.errors import DataError


def write(folder: Path, files: dict[str, str]) -> Path:
    """Files with their contents, and of each name that a table begins a line with a sound, but for those with a ?."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content.replace("?", ""))
        for line in content.splitlines()[1:]:
            sound = path.parent / line.split(",")[0]
            if "?" not in line and sound.suffix:
                sound.parent.mkdir(parents=True, exist_ok=True)
                sound.touch()
    return folder


def read_tables(paths: list[str]) -> datasets.Dataset:
    """As the sources read them, of csv files alone: one table, with absolute paths."""
    tables = []
    for path in paths:
        table = datasets.Dataset.from_csv(path, keep_in_memory=True)
        if "file_name" in table.column_names and table.features["file_name"].dtype.endswith("string"):
            folder = Path(path).parent
            names = [name and os.path.normpath(folder / name) for name in table["file_name"]]
            table = table.remove_columns("file_name").add_column("file_name", names)
        tables.append(table)
    return datasets.concatenate_datasets(tables)


def read(folder: Path):
    files = sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    metadata = [path for path in files if path.name == "metadata.csv"]
    sounds = [path for path in files if path.suffix != ".csv"]
    return read_metadata(folder, sounds, metadata, read_tables=read_tables, flag="--dataset_name D")


def shown(folder: Path) -> dict[str, list[tuple[str, ...]]]:
    """The splits, with relative paths."""
    splits = {}
    for split, dataset in read(folder).items():
        assert next(iter(dataset.features)) == "audio"
        assert dataset.features["audio"] == EncodedAudio(decode=False)
        rows = [(Path(row.pop("audio")["path"]).relative_to(folder).as_posix(), *row.values()) for row in dataset]
        splits[split] = rows
    return splits


# What is read


@pytest.mark.parametrize(
    ("files", "splits"),
    [
        (
            {"train/metadata.csv": "file_name,text,speaker\n1.wav,yes,ann\n2.wav,no,bob\n", "Val/metadata.csv": "file_name,text,speaker\n1.wav,go,cat\n"},
            {"train": [("train/1.wav", "yes", "ann"), ("train/2.wav", "no", "bob")], "validation": [("Val/1.wav", "go", "cat")]},
        ),
        (
            {"metadata.csv": "file_name,label\ntest/1.wav,no\ntrain/clips/1.wav,yes\ntrain/2.wav,no\n"},
            {"train": [("train/clips/1.wav", "yes"), ("train/2.wav", "no")], "test": [("test/1.wav", "no")]},
        ),
        (
            {"metadata.csv": "file_name,text\n1.wav,yes\nclips/2.wav,no\n"},
            {"train": [("1.wav", "yes"), ("clips/2.wav", "no")]},
        ),
        (
            {"english/metadata.csv": "file_name,text\n1.wav,yes\n", "french/metadata.csv": "file_name,text\n1.wav,oui\n"},
            {"train": [("english/1.wav", "yes"), ("french/1.wav", "oui")]},
        ),
        (
            {"train/a/metadata.csv": "file_name,text\n1.wav,yes\n", "train/b/metadata.csv": "file_name,text\n1.wav,no\n"},
            {"train": [("train/a/1.wav", "yes"), ("train/b/1.wav", "no")]},
        ),
        (
            {"train/metadata.csv": "file_name,text\n1.wav,yes\n", "metadata.csv": "file_name,text\ntest/1.wav,no\n"},
            {"train": [("train/1.wav", "yes")], "test": [("test/1.wav", "no")]},
        ),
        (
            {"train/metadata.csv": "text,file_name\nyes,../clips/1.wav?\n", "clips/metadata.txt": "file_name\n1.wav"},
            {"train": [("clips/1.wav", "yes")]},
        ),
    ],
    ids=["by split", "at the top with splits", "at the top", "in other folders", "below a split", "both", "elsewhere"],
)  # fmt: skip
def test_layouts(tmp_path, files, splits):
    folder = write(tmp_path, files)
    (folder / "clips/metadata.txt").unlink(missing_ok=True)
    assert shown(folder) == splits
    assert list(shown(folder)) == [split for split in ("train", "validation", "test") if split in splits]


def test_sounds_without_a_row_are_warned_of(tmp_path, caplog):
    folder = write(tmp_path, {"train/metadata.csv": "file_name,text\n1.wav,yes\n"})
    for number in range(2, 9):
        (folder / f"train/{number}.wav").touch()
    with caplog.at_level(logging.WARNING):
        assert shown(folder) == {"train": [("train/1.wav", "yes")]}
    assert caplog.messages == [
        "--dataset_name D: 7 of 8 sounds have no row in a metadata file and are not read: train/2.wav, train/3.wav, "
        "train/4.wav, train/5.wav, train/6.wav, ..."
    ]


def test_nothing_is_said_where_every_sound_has_a_row(tmp_path, caplog):
    write(tmp_path, {"train/metadata.csv": "file_name,text\n1.wav,yes\na/2.wav,no\n"})
    with caplog.at_level(logging.INFO):
        read(tmp_path)
    assert caplog.messages == []


# What is refused


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"train/metadata.csv": "file,text\n1.wav,yes\n"},
            "D, train/metadata.csv: there is no column file_name, which says of which file a row is; there are file, text. "
            "Rename the one with the paths.",
        ),
        (
            {"metadata.csv": "file_name,text\n1,yes\n"},
            "D, metadata.csv: file_name holds int64; expected paths that begin at the metadata file's folder.",
        ),
        (
            {"metadata.csv": "file_name,audio\n1.wav,2.wav\n"},
            "D, metadata.csv: a column audio is made of file_name, and there is one already. Rename it.",
        ),
        (
            {"test/metadata.csv": "file_name,text\n1.wav,yes\n2.wav,no?\n,go\n"},
            "D, test/metadata.csv: 2 of 3 rows name no file that is there (row 1: test/2.wav, row 2: empty). A file_name begins "
            "at the metadata file's folder. Complete the folder, or remove the rows.",
        ),
        (
            {"metadata.csv": "file_name,text\n" + "".join(f"{number}.wav,no?\n" for number in range(9))},
            "D, metadata.csv: 9 of 9 rows name no file that is there (row 0: 0.wav, row 1: 1.wav, row 2: 2.wav, row 3: 3.wav, "
            "row 4: 4.wav, ...). A file_name begins",
        ),
        (
            {"train/metadata.csv": "file_name,text\n1.wav,yes\n2.wav,no\n1.wav,no\n"},
            "D: 1 of 2 files have more than one row: train/1.wav. Keep one row of each.",
        ),
        (
            {"train/metadata.csv": "file_name,text\n1.wav,yes\n", "test/metadata.csv": "file_name,text\n../train/1.wav,yes\n"},
            "D: 1 of 1 files have more than one row: train/1.wav. Keep one row of each.",
        ),
        (
            {"val/metadata.csv": "file_name,text\n1.wav,yes\n", "valid/metadata.csv": "file_name,text\n1.wav,yes\n"},
            "D: val and valid are both validation. Keep one of them there.",
        ),
        (
            {"metadata.csv": "file_name,text\ntrain/1.wav,yes\n", "train/metadata.csv": "file_name,text\n2.wav,yes\n"},
            "D, train/metadata.csv: another metadata file is of train too. Keep one of them there.",
        ),
        (
            {"metadata.csv": "file_name,text\ntrain/1.wav,yes\n2.wav,no\nextra/3.wav,go\n"},
            "D, metadata.csv: 2 of 3 rows are of a file in no folder of a split, and others are of one: 2.wav, extra/3.wav. "
            "Move the files, or remove the rows.",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_named(tmp_path, files, message):
    with pytest.raises(DataError) as error:
        read(write(tmp_path, files))
    assert str(error.value).startswith(f"--dataset_name {message}")
