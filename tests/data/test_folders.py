"""Folders of pictures as people have them, and columns of paths: what is read, what is passed over, what is refused."""

import logging
from pathlib import Path

import pytest
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value
from PIL import Image as PillowImage

from sft_hf.data.folders import (
    as_encoded_images,
    find_pictures,
    path_columns,
    read_folder,
    read_id2label,
    with_absolute_paths,
)
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
    splits = read_folder(find_pictures(folder), flag="--dataset_name D")
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
        else:
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
    splits = read_folder(find_pictures(tmp_path), flag="--dataset_name D")
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
    assert read_folder(find_pictures(tmp_path / "flat"), flag="")["train"].features == {"image": Image()}


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
        ["train/cat/1.wav", "train/dog/1.wav", "cover.png"],
    ],
)
def test_other_folders_are_left_to_datasets(tmp_path, paths):
    assert find_pictures(write(tmp_path, *paths)) is None


def test_a_card_that_says_which_files_are_which_is_left_to_datasets(tmp_path):
    write(tmp_path, "a/cat/1.png")
    (tmp_path / "README.md").write_text("# Pets\n\nconfigs:\nnone\n")
    assert find_pictures(tmp_path) is not None
    (tmp_path / "README.md").write_text("---\nlicense: mit\nconfigs:\n- config_name: default\n---\n# Pets\n")
    assert find_pictures(tmp_path) is None


def test_metadata_is_left_to_imagefolder(tmp_path):
    assert not find_pictures(write(tmp_path, "train/images/1.png", "train/masks/1.png")).has_metadata
    assert find_pictures(write(tmp_path, "train/metadata.csv")).has_metadata


# Pictures and masks


@pytest.mark.parametrize(
    ("paths", "splits"),
    [
        (["images/2.jpg", "images/10.jpg", "masks/2.png", "masks/10.png"], "train"),
        (["train/images/1.jpg", "train/masks/1.png", "val/images/1.jpg", "val/masks/1.png"], "train validation"),
        (["images/train/1.jpg", "masks/train/1.png", "images/test/1.jpg", "masks/test/1.png"], "train test"),
        (
            [f"{folder}/{split}/1.png" for folder in ("images", "annotations") for split in ("training", "validation")],
            "train validation",
        ),
        (["JPEGImages/1.jpg", "SegmentationClass/1.png"], "train"),
        (["image/1.png", "mask/1_mask.png"], "train"),
        (["Images/a/1.png", "Labels/a/1-mask.png"], "train"),
    ],
)
def test_pictures_and_masks_are_paired_by_name(tmp_path, paths, splits):
    found = read(write(tmp_path, *paths, "id2label.json", "Thumbs.db", "images/.DS_Store"))
    assert list(found) == splits.split()
    pairs = [pair for rows in found.values() for pair in rows]
    assert sorted(path for pair in pairs for path in pair) == sorted(paths)
    for image, mask in pairs:
        assert Path(mask).stem in (Path(image).stem, f"{Path(image).stem}_mask", f"{Path(image).stem}-mask")
        assert Path(image).parts[0].lower() in ("images", "image", "jpegimages", "train", "val")
    assert all(rows == sorted(rows) for rows in found.values())


def test_a_pair_is_two_pictures(tmp_path):
    write(tmp_path, "images/1.png", "masks/1.png")
    dataset = read_folder(find_pictures(tmp_path), flag="")["train"]
    assert dataset.features == {"image": Image(), "mask": Image()}
    assert dataset[0]["mask"].size == (1, 1)


def test_a_picture_may_itself_end_in_mask(tmp_path):
    write(tmp_path, "images/a.png", "images/a_mask.png", "masks/a_mask.png", "masks/a-mask.png")
    assert read(tmp_path)["train"] == [
        ("images/a.png", "masks/a-mask.png"),
        ("images/a_mask.png", "masks/a_mask.png"),
    ]


def test_folders_of_other_things_beside_them_do_no_harm(tmp_path, caplog):
    """Labels of another task, and pictures that are neither: the folders that count are those with pictures in them."""
    write(tmp_path, "images/1.png", "masks/1.png", "labels/1.txt", "overlays/1.png", "cover.png")
    with caplog.at_level(logging.INFO):
        assert read(tmp_path) == {"train": [("images/1.png", "masks/1.png")]}
    assert "--dataset_name D: 2 pictures lie in no folder of images or masks and are not read" in caplog.text


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (
            [f"images/{number}.png" for number in range(8)] + ["masks/7.png", "masks/9.png"],
            r"D, train: 7 of 8 pictures have no mask: images/0.png, images/1.png, images/2.png, images/3.png, "
            r"images/4.png, \.\.\.; 1 of 2 masks have no picture: masks/9.png\. A mask is called as its picture",
        ),
        (
            ["images/train/1.png", "masks/train/1.png", "images/test/1.png"],
            "D, test: 1 of 1 pictures have no mask: images/test/1.png",
        ),
        (
            ["images/1.png", "masks/1.png", "labels/1.png"],
            "D, train: the masks lie in labels and in masks. Keep one of them there",
        ),
        (
            ["images/1.png", "images/1.jpg", "masks/1.png"],
            "D, train: images/1.jpg and images/1.png are the image of one name. Remove one",
        ),
        (
            ["images/1.png", "masks/1.png", "masks/1_mask.png"],
            "D, train: masks/1.png and masks/1_mask.png are the mask of one name",
        ),
    ],
)
def test_a_picture_without_its_mask_is_an_error(tmp_path, paths, message):
    with pytest.raises(DataError, match=f"^--dataset_name {message}"):
        read(write(tmp_path, *paths))


# Names of ids


def test_names_of_ids(tmp_path):
    path = tmp_path / "id2label.json"
    path.write_text('\ufeff{"1": "road", "0": "sky", "255": "void"}', encoding="utf-8")
    assert read_id2label(path, source="") == {1: "road", 0: "sky", 255: "void"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"0": "sky"', "Expecting ',' delimiter"),
        ('["sky"]', "expected an object of strings"),
        ('{"0": 1}', "expected an object of strings"),
        ('{"sky": "0"}', "invalid literal for int"),
        ('{"0": "sky", "0": "road"}', "0 stands there twice"),
    ],
)
def test_other_content_is_an_error_with_the_file(tmp_path, content, message):
    path = tmp_path / "id2label.json"
    path.write_text(content)
    with pytest.raises(DataError, match=rf'^the file: expected names by id, such as {{"0": "background"}}: {message}'):
        read_id2label(path, source="the file")


# Columns of paths


def table(**columns) -> Dataset:
    return Dataset.from_dict(columns)


@pytest.mark.parametrize("stream", [False, True])
def test_columns_of_paths_are_known_by_name_and_by_the_first_path(stream):
    dataset = table(
        image=[None, "", "a.PNG"], Mask=["m.tif"] * 3, path=["a.wav"] * 3, text=["a.png"] * 3, file=["notes.txt"] * 3,
        label=["cat"] * 3, file_name=[None] * 3, img=["https://example.com/1.jpg"] * 3, filename=[1, 2, 3],
    )  # fmt: skip
    dataset = dataset.cast_column("file_name", Value("string"))
    assert path_columns(dataset.to_iterable_dataset() if stream else dataset) == ["image", "Mask", "path"]


@pytest.mark.parametrize("stream", [False, True])
def test_paths_become_absolute(tmp_path, monkeypatch, stream):
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    paths = ["a/1.png", "../b/2.png", "/data/3.png", "~/4.png", None, "", "https://example.com/5.png", " 6.png "]
    dataset = table(image=paths, mask=["m.png"] * 8, text=["a/1.png"] * 8)
    dataset = with_absolute_paths(
        dataset.to_iterable_dataset() if stream else dataset, ["image", "mask"], tmp_path / "t"
    )
    rows = list(dataset)
    folder = f"{tmp_path}/t"
    assert [row["image"] for row in rows] == [
        f"{folder}/a/1.png", f"{tmp_path}/b/2.png", "/data/3.png", f"{tmp_path}/me/4.png", None, "",
        "https://example.com/5.png", f"{folder}/6.png",
    ]  # fmt: skip
    assert rows[0]["mask"] == f"{folder}/m.png"
    assert rows[0]["text"] == "a/1.png"
    assert list(dataset.features) == ["image", "mask", "text"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("kind", ["picture", "path", "large path", "bytes", "large bytes", "struct"])
def test_any_column_of_pictures_becomes_an_encoded_one(tmp_path, kind, stream):
    write(tmp_path, "1.png")
    path, data = str(tmp_path / "1.png"), (tmp_path / "1.png").read_bytes()
    value, feature, expected = {
        "picture": (path, Image(mode="RGB"), {"bytes": None, "path": path}),
        "path": (path, Value("string"), {"bytes": None, "path": path}),
        "large path": (path, Value("large_string"), {"bytes": None, "path": path}),
        "bytes": (data, Value("binary"), {"bytes": data, "path": None}),
        "large bytes": (data, Value("large_binary"), {"bytes": data, "path": None}),
        "struct": (
            {"path": "1.png", "bytes": data},
            {"path": Value("string"), "bytes": Value("binary")},
            {"bytes": data, "path": "1.png"},
        ),
    }[kind]
    features = Features({"image": feature, "label": Value("int64")})
    dataset = Dataset.from_dict({"image": [value, None], "label": [3, 4]}, features=features)
    encoded = as_encoded_images(dataset.to_iterable_dataset() if stream else dataset, "image")
    assert isinstance(encoded, IterableDataset) == stream
    assert encoded.features == {"image": Image(decode=False), "label": Value("int64")}
    assert list(encoded) == [{"image": expected, "label": 3}, {"image": None, "label": 4}]


def test_nothing_is_decoded():
    dataset = Dataset.from_dict({"image": [b"no picture"]})
    assert as_encoded_images(dataset, "image")[0]["image"]["bytes"] == b"no picture"


ADVICE = (
    "A relative path in a --train_file, --validation_file or --test_file begins at the folder of that file. "
    "--image_column_name, for masks --label_column_name, chooses another column."
)


def test_files_that_are_not_there_are_counted_with_their_rows(tmp_path):
    write(tmp_path, "1.png")
    paths = [str(tmp_path / "1.png"), "/no/2.png", None, "/no/3.png"]
    with pytest.raises(DataError) as error:
        as_encoded_images(table(image=paths, example_id=[10, 11, 12, 13]), "image")
    assert str(error.value) == (
        "Column 'image': 2 of 3 values (row 11: /no/2.png, row 13: /no/3.png) name no file that is there. " + ADVICE
    )
    with pytest.raises(DataError, match=r"9 of 9 values \(row 0: n0.png, .*row 4: n4.png, \.\.\.\) name no file"):
        as_encoded_images(table(mask=[f"n{number}.png" for number in range(9)]), "mask")
    with pytest.raises(DataError, match=r"1 of 1 values \(row 0: /no/2.png\) name no file"):
        as_encoded_images(table(image=["/no/2.png"] * 3).to_iterable_dataset(), "image")


@pytest.mark.parametrize("stream", [False, True])
def test_urls_are_not_downloaded(stream):
    dataset = table(image=["https://example.com/1.png"])
    with pytest.raises(DataError) as error:
        as_encoded_images(dataset.to_iterable_dataset() if stream else dataset, "image")
    assert str(error.value) == (
        "Column 'image': 1 of 1 values (row 0: https://example.com/1.png) are URLs, which are not downloaded. Download "
        "the files and give their paths. " + ADVICE
    )
