"""Folders of pictures and masks: which belong together, and what is refused; the names of the ids in masks."""

import logging
from pathlib import Path

import pytest
from datasets import Image
from PIL import Image as PillowImage

from sft_hf.data.paired_folders import are_paired, read_id2label, read_pairs
from sft_hf.data.paths import as_encoded_images
from sft_hf.errors import DataError


def write(folder: Path, *paths: str) -> list[Path]:
    """Pictures of one pixel under a folder; their paths in it."""
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        PillowImage.new("L", (1, 1)).save(folder / path, format="PNG")
    return sorted(map(Path, paths))


def read(folder: Path, pictures: list[Path]) -> dict[str, list[tuple[str, str]]]:
    """The pairs of each split, as relative paths."""
    return {
        split: [
            tuple(Path(row[name]["path"]).relative_to(folder).as_posix() for name in ("image", "mask")) for row in rows
        ]
        for split, dataset in read_pairs(folder, pictures, flag="--dataset_name D").items()
        for rows in [as_encoded_images(as_encoded_images(dataset, "image"), "mask")]
    }


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
    found = read(tmp_path, write(tmp_path, *paths))
    assert list(found) == splits.split()
    pairs = [pair for rows in found.values() for pair in rows]
    assert sorted(path for pair in pairs for path in pair) == sorted(paths)
    for image, mask in pairs:
        assert Path(mask).stem in (Path(image).stem, f"{Path(image).stem}_mask", f"{Path(image).stem}-mask")
        assert Path(image).parts[0].lower() in ("images", "image", "jpegimages", "train", "val")
    assert all(rows == sorted(rows) for rows in found.values())


def test_both_folders_make_a_pair():
    assert are_paired([Path("images/1.png"), Path("train/masks/2.png")])
    assert not are_paired([Path("images/1.png"), Path("train/images/2.png")])
    assert not are_paired([Path("cat/1.png"), Path("masks/2.png")])


def test_a_pair_is_two_pictures(tmp_path):
    dataset = read_pairs(tmp_path, write(tmp_path, "images/1.png", "masks/1.png"), flag="")["train"]
    assert dataset.features == {"image": Image(), "mask": Image()}
    assert dataset[0]["mask"].size == (1, 1)


def test_a_picture_may_itself_end_in_mask(tmp_path):
    pictures = write(tmp_path, "images/a.png", "images/a_mask.png", "masks/a_mask.png", "masks/a-mask.png")
    assert read(tmp_path, pictures)["train"] == [
        ("images/a.png", "masks/a-mask.png"),
        ("images/a_mask.png", "masks/a_mask.png"),
    ]


def test_folders_of_other_things_beside_them_do_no_harm(tmp_path, caplog):
    """The folders that count are those of images and of masks."""
    pictures = write(tmp_path, "images/1.png", "masks/1.png", "overlays/1.png", "cover.png")
    with caplog.at_level(logging.INFO):
        assert read(tmp_path, pictures) == {"train": [("images/1.png", "masks/1.png")]}
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
        read(tmp_path, write(tmp_path, *paths))


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
