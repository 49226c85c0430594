"""Folders of pictures or sounds as people have them: what is read, what is passed over, what is refused."""

import logging
from pathlib import Path

import pytest
from datasets import Audio, ClassLabel, Image
from PIL import Image as PillowImage

from sft_hf.data.encoded_audio import EncodedAudio
from sft_hf.data.folders import PICTURES, SOUNDS, find_media, read_folder
from sft_hf.data.paths import as_encoded_images
from sft_hf.errors import DataError


def write(folder: Path, *paths: str) -> Path:
    """Files under a folder; the pictures among them are of one pixel."""
    for path in paths:
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix.lower() in (".png", ".jpg", ".jpeg"):
            PillowImage.new("L", (1, 1)).save(file, format="PNG")
        else:
            file.write_text("x")
    return folder


def read(folder: Path):
    """The splits as relative paths, beside the label's name where there is one."""
    splits = read_folder(find_media(folder), flag="--dataset_name D")
    return {split: [shown(row, dataset.features, folder) for row in raw(dataset)] for split, dataset in splits.items()}


def raw(dataset):
    for name, feature in dataset.features.items():
        if isinstance(feature, Image):
            dataset = as_encoded_images(dataset, name)
    return dataset


def shown(row, features, folder):
    values = []
    for name, value in row.items():
        if isinstance(features[name], ClassLabel):
            values.append(value if value is None else features[name].int2str(value))
        elif isinstance(features[name], (Audio, Image)):
            assert value["bytes"] is None
            values.append(Path(value["path"]).relative_to(folder).as_posix())
    return tuple(values)


# Class folders


def test_class_folders_of_each_split(tmp_path):
    write(tmp_path, "train/cat/2.png", "train/cat/1.png", "train/dog/1.png", "val/cat/1.png", "test/bird/1.png")
    assert read(tmp_path) == {
        "train": [("train/cat/1.png", "cat"), ("train/cat/2.png", "cat"), ("train/dog/1.png", "dog")],
        "validation": [("val/cat/1.png", "cat")],
        "test": [("test/bird/1.png", "bird")],
    }


def test_class_folders_without_splits_are_all_for_training(tmp_path):
    write(tmp_path, "cat/1.png", "dog/1.png")
    assert read(tmp_path) == {"train": [("cat/1.png", "cat"), ("dog/1.png", "dog")]}


def test_pitfall_6_classes_that_are_numbers_are_in_the_order_of_numbers(tmp_path):
    write(tmp_path, "train/10/1.png", "train/2/1.png", "train/1/1.png")
    splits = read_folder(find_media(tmp_path), flag="--dataset_name D")
    assert splits["train"].features["label"] == ClassLabel(names=["1", "2", "10"])
    assert splits["train"]["label"][:] == [0, 2, 1]


def test_a_class_or_a_file_with_the_name_of_a_split_in_it_stays_where_it_is(tmp_path):
    """datasets' imagefolder would put the test tubes of train into test too, and 1_train.png of val into train."""
    write(tmp_path, "train/cat/1.png", "train/test_tube/1.png", "val/cat/1_train.png", "val/test_tube/2.png")
    splits = read(tmp_path)
    assert list(splits) == ["train", "validation"]
    assert [path for path, _ in splits["train"]] == ["train/cat/1.png", "train/test_tube/1.png"]
    assert [path for path, _ in splits["validation"]] == ["val/cat/1_train.png", "val/test_tube/2.png"]


def test_other_files_do_no_harm_however_many(tmp_path, caplog):
    junk = ("Thumbs.db", ".DS_Store", "._1.png", "1.txt", "2.txt", "3.txt")
    write(tmp_path, *(f"train/{name}/{file}" for name in ("cat", "dog") for file in ("1.png", *junk)))
    write(
        tmp_path,
        "preview.png",
        "README.md",
        "train/Thumbs.db",
        "__MACOSX/train/cat/1.png",
        ".cache/9.png",
        "classes.json",
    )
    with caplog.at_level(logging.INFO):
        assert read(tmp_path) == {"train": [("train/cat/1.png", "cat"), ("train/dog/1.png", "dog")]}
    assert "3 pictures, and 11 other files" in caplog.text
    assert "--dataset_name D: 1 pictures lie in no split and are not read" in caplog.text


def test_suffixes_of_any_case_are_pictures(tmp_path):
    """datasets' imagefolder passes over 1.Jpg without a word."""
    write(tmp_path, "train/cat/1.JPG", "train/cat/2.Jpg", "train/dog/3.jpeg", "TEST/cat/1.PNG")
    assert read(tmp_path) == {
        "train": [("train/cat/1.JPG", "cat"), ("train/cat/2.Jpg", "cat"), ("train/dog/3.jpeg", "dog")],
        "test": [("TEST/cat/1.PNG", "cat")],
    }


def test_a_class_folder_may_be_a_link(tmp_path):
    write(tmp_path / "elsewhere", "1.png")
    write(tmp_path / "pets", "train/cat/1.png")
    (tmp_path / "pets/train/dog").symlink_to(tmp_path / "elsewhere")
    assert read(tmp_path / "pets") == {"train": [("train/cat/1.png", "cat"), ("train/dog/1.png", "dog")]}


def test_pictures_in_no_class_folder_are_unlabelled(tmp_path):
    write(tmp_path, "train/cat/1.png", "train/dog/1.png", "test/1.png")
    assert read(tmp_path)["test"] == [("test/1.png", None)]
    write(tmp_path / "flat", "1.png")
    assert read_folder(find_media(tmp_path / "flat"), flag="")["train"].features == {"image": Image()}


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (
            ["train/images/cat/1.png", "train/images/dog/1.png"],
            "2 of 2 pictures do not lie as SPLIT/CLASS/FILE: train/images/cat/1.png, train/images/dog/1.png. Move them, or",
        ),
        (["pets/a/cat/1.png"], "1 of 1 pictures do not lie as CLASS/FILE or SPLIT/CLASS/FILE: pets/a/cat/1.png"),
        (["train/cat/1.png", "extra/cat/1.png"], "1 of 2 pictures .* SPLIT/CLASS/FILE: extra/cat/1.png"),
        (
            ["train/a/1.png", "val/a/1.png", "valid/a/1.png"],
            "val and valid are both validation. Keep one of them there",
        ),
        ([f"a/b/c/{number}.png" for number in range(9)], r"9 of 9 .*: a/b/c/0.png, (\S+, ){4}\.\.\.\. Move"),
    ],
)
def test_pictures_that_lie_elsewhere_are_an_error(tmp_path, paths, message):
    with pytest.raises(DataError, match=f"^--dataset_name D: .*{message}"):
        read(write(tmp_path, *paths))


@pytest.mark.parametrize(
    "paths",
    [
        ["train.csv", "test.csv"],
        ["train.csv", "test.csv", "figure.png"],
        ["data/train.parquet", "notes.txt"],
        ["train.csv", "train/1.wav", "test.csv", "dev.csv"],
        ["notes.txt"],
    ],
)
def test_other_folders_are_left_to_datasets(tmp_path, paths):
    assert find_media(write(tmp_path, *paths)) is None


def test_a_card_that_says_which_files_are_which_is_left_to_datasets(tmp_path):
    write(tmp_path, "a/cat/1.png")
    (tmp_path / "README.md").write_text("# Pets\n\nconfigs:\nnone\n")
    assert find_media(tmp_path) is not None
    (tmp_path / "README.md").write_text("---\nlicense: mit\nconfigs:\n- config_name: default\n---\n# Pets\n")
    assert find_media(tmp_path) is None


def test_metadata_is_found_beside_the_files(tmp_path):
    assert find_media(write(tmp_path, "train/1.png", "test/1.png")).metadata == []
    assert find_media(write(tmp_path, "train/metadata.csv")).metadata == [Path("train/metadata.csv")]


def test_pictures_and_masks_are_read_as_pairs(tmp_path):
    write(tmp_path, "images/1.png", "masks/1.png", "id2label.json", "images/.DS_Store", "labels/1.txt")
    assert read(tmp_path) == {"train": [("images/1.png", "masks/1.png")]}


# Sounds


def test_class_folders_of_sounds(tmp_path):
    write(tmp_path, "train/yes/1.wav", "train/no/1.FLAC", "train/no/2.mp3", "test/yes/1.opus", "cover.png", "LICENSE")
    media = find_media(tmp_path)
    assert media.medium is SOUNDS
    assert read(tmp_path) == {
        "train": [("train/no/1.FLAC", "no"), ("train/no/2.mp3", "no"), ("train/yes/1.wav", "yes")],
        "test": [("test/yes/1.opus", "yes")],
    }
    features = read_folder(media, flag="")["train"].features
    assert features == {"audio": EncodedAudio(decode=False), "label": ClassLabel(names=["no", "yes"])}


def test_what_is_said_of_pictures_holds_for_sounds(tmp_path, caplog):
    write(tmp_path, "train/10/1.wav", "train/2/1.wav", "1.wav")
    with caplog.at_level(logging.INFO):
        splits = read_folder(find_media(tmp_path), flag="--dataset_name D")
    assert splits["train"].features["label"] == ClassLabel(names=["2", "10"])
    assert "--dataset_name D: 1 sounds lie in no split and are not read" in caplog.text
    write(tmp_path, "train/2/deep/1.wav")
    with pytest.raises(
        DataError, match="^--dataset_name D: 1 of 3 sounds do not lie as SPLIT/CLASS/FILE: train/2/deep/1.wav"
    ):
        read(tmp_path)


@pytest.mark.parametrize(
    ("paths", "medium"),
    [
        (["cat/1.png", "dog/1.png", "dog/1.wav"], PICTURES),
        (["cat/1.png", "dog/1.wav", "dog/2.wav"], SOUNDS),
        (["cat/1.png", "dog/1.wav"], PICTURES),
        (["images/1.wav", "masks/1.wav"], SOUNDS),
    ],
)
def test_a_folder_is_of_what_there_is_more_of(tmp_path, paths, medium):
    assert find_media(write(tmp_path, *paths)).medium is medium


def test_sounds_are_never_paired_with_masks(tmp_path):
    write(tmp_path, "images/1.wav", "masks/1.wav")
    assert read(tmp_path) == {"train": [("images/1.wav", "images"), ("masks/1.wav", "masks")]}
