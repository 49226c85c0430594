"""What is read of a picture and its mask, and how examples become a batch."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SegformerImageProcessor

from sft_hf.errors import DataError
from sft_hf.losses import IGNORE_INDEX
from sft_hf.vision.augmentation import JointAugmentation
from sft_hf.vision.geometry import Geometry
from sft_hf.vision.masks import MaskClasses
from sft_hf.vision.pairs import NO_MASK, PairCollator, ReadPair, ScanPair, UsablePair

CLASSES = MaskClasses(("road", "car"), (3, 7), (255,))
IDS = np.array([[3, 7, 7, 255], [3, 3, 7, 255]], dtype=np.uint8)


def encoded(picture: Image.Image, path: str | None = None, file_format: str = "PNG") -> dict:
    content = io.BytesIO()
    picture.save(content, format=file_format)
    return {"bytes": content.getvalue(), "path": path}


def row(**values) -> dict:
    return {
        "image": encoded(Image.new("RGB", (4, 2), (9, 8, 7))),
        "labels": encoded(Image.fromarray(IDS)),
        "example_id": 5,
        **values,
    }


def reader(*, augment: JointAugmentation | None = None, window: tuple[int, int] | None = None) -> ReadPair:
    geometry = Geometry.of(SegformerImageProcessor(size={"height": 6, "width": 8}))
    return ReadPair(geometry, CLASSES, None, augment, window, seed=0)


def test_evaluation_keeps_the_mask_s_resolution():
    example = reader()(row(), 0)
    assert example["example_id"] == 5
    assert example["pixel_values"].shape == (1, 3, 6, 8)
    assert example["pixel_values"].dtype == torch.uint8
    assert example["pixel_values"][0, :, 0, 0].tolist() == [9, 8, 7]
    assert example["labels"].tolist() == [[0, 1, 1, IGNORE_INDEX], [0, 0, 1, IGNORE_INDEX]]
    assert (example["target_size"], example["boxes"]) == ((2, 4), [(0, 0, 2, 4)])
    unlabelled = row()
    del unlabelled["labels"]
    assert "labels" not in reader()(unlabelled, 0)


def test_each_window_is_squashed_to_the_model_s_size():
    pixels = np.zeros((2, 4, 3), dtype=np.uint8)
    pixels[:, 2:] = 200
    example = reader(window=(2, 2))(row(image=encoded(Image.fromarray(pixels))), 0)
    assert example["boxes"] == [(0, 0, 2, 2), (0, 1, 2, 3), (0, 2, 2, 4)]
    assert example["pixel_values"].shape == (3, 3, 6, 8)
    assert example["pixel_values"][0].unique().tolist() == [0]
    assert example["pixel_values"][2].unique().tolist() == [200]
    assert example["labels"].shape == (2, 4), "of the whole picture"


def test_training_draws_both_at_the_model_s_size():
    augment = JointAugmentation(size=(6, 8), scale=(1.0, 1.0), flip=False, photometric=False)
    example = reader(augment=augment)(row(), 3)
    assert example["pixel_values"].shape == (3, 6, 8)
    assert example["labels"].shape == (6, 8)
    assert example["labels"][0].tolist() == [0, 0, 1, 1, 1, 1, IGNORE_INDEX, IGNORE_INDEX]
    assert set(example) == {"example_id", "pixel_values", "labels"}


def test_what_went_bad_since_it_was_checked_is_named():
    with pytest.raises(
        DataError, match=r"^example 5: a/1.png is empty. --on_bad_example skip leaves such pairs out\.$"
    ):
        reader()(row(image={"bytes": b"", "path": "a/1.png"}), 0)
    with pytest.raises(DataError, match="The masks hold the value 4 in 8 pixels"):
        reader()(row(labels=encoded(Image.fromarray(np.full((2, 4), 4, dtype=np.uint8)))), 0)


def test_a_training_batch_is_stacked_and_an_evaluation_batch_lists_what_has_sizes_of_its_own():
    augment = JointAugmentation(size=(6, 8), scale=(1.0, 1.0), flip=False, photometric=False)
    collate = pickle.loads(pickle.dumps(PairCollator()))  # pitfall 24
    batch = collate([reader(augment=augment)(row(), 0)] * 2)
    assert batch["pixel_values"].shape == (2, 3, 6, 8)
    assert batch["labels"].shape == (2, 6, 8)
    assert batch["example_id"].tolist() == [5, 5]
    narrow = row(image=encoded(Image.new("RGB", (2, 2))), labels=encoded(Image.fromarray(IDS[:, :2])), example_id=6)
    batch = collate([reader(window=(2, 2))(row(), 0), reader(window=(2, 2))(narrow, 0)])
    assert batch["pixel_values"].shape == (3 + 1, 3, 6, 8)
    assert [len(boxes) for boxes in batch["boxes"]] == [3, 1]
    assert batch["target_size"] == [(2, 4), (2, 2)]
    assert [tuple(labels.shape) for labels in batch["labels"]] == [(2, 4), (2, 2)]
    assert batch["example_id"].tolist() == [5, 6]


def test_a_text_goes_beside_each_picture():
    batch = PairCollator(torch.tensor([[1, 2]]))([reader()(row(), 0)] * 3)
    assert batch["task_inputs"].tolist() == [[1, 2]] * 3


def test_a_scan_says_what_a_mask_holds():
    scan = ScanPair("image", "labels", None)
    found = scan(row(labels=encoded(Image.fromarray(IDS), path="masks/7.png")))
    assert dict(zip(found["values"], found["pixels"], strict=True)) == {3: 3, 7: 3, 255: 2}
    assert (found["reason"], found["file"]) == (None, "7.png")
    assert scan(row(labels=None)) == {"values": None, "pixels": None, "reason": NO_MASK, "file": None}


def test_a_scan_says_why_a_pair_cannot_be_used(caplog):
    scan = ScanPair("image", "labels", None)
    turned = scan(row(labels=encoded(Image.fromarray(IDS.T), path="7.png")))
    assert turned["reason"].startswith("7.png: the picture has 4 x 2 pixels, its mask 2 x 4.")
    assert turned["values"] is None
    assert "is a JPEG file" in scan(row(labels=encoded(Image.fromarray(IDS), file_format="JPEG")))["reason"]
    assert "begins with b'not'" in scan(row(labels={"bytes": b"not", "path": "8.png"}))["reason"]
    assert "9.png is empty" in scan(row(image={"bytes": b"", "path": "9.png"}))["reason"]
    assert UsablePair(scan)(row())
    assert not UsablePair(scan)(row(labels=None))
    assert "left out: no mask" in caplog.text
