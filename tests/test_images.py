"""Pictures from their column to the model's device: found, checked, read, normalised."""

import io
import json
import logging
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from datasets import Dataset, Features, Value
from datasets import Image as ImageFeature
from PIL import Image
from transformers import CLIPConfig, Dinov2Config, TimmWrapperConfig, ViTConfig, ViTImageProcessor

from sft_hf.arguments import DataArguments
from sft_hf.data.sources import load_splits
from sft_hf.errors import ArgumentError, DataError
from sft_hf.images import adopt_image_size, read_image, stacked_pixels
from sft_hf.task import Columns
from sft_hf.tasks.image_classification import ImageClassification
from sft_hf.vision.geometry import Geometry

COLUMNS = Columns(("image",), "label")
SKIP = ImageClassification(on_bad_example="skip")


@pytest.fixture(autouse=True)
def _log(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("sft_hf"), "propagate", True)
    caplog.set_level(logging.INFO, logger="sft_hf")


def encoded(colour: str = "red", file_format: str = "PNG", size: tuple[int, int] = (8, 8)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, file_format)
    return buffer.getvalue()


BAD = {
    "truncated.jpg": encoded(file_format="JPEG", size=(64, 64))[:-200],
    "text.png": b"not found",
    "empty.png": b"",
}


def in_memory(*contents: bytes) -> Dataset:
    rows = {
        "image": [{"bytes": content, "path": f"{row}.png"} for row, content in enumerate(contents)],
        "example_id": list(range(len(contents))),
    }
    return Dataset.from_dict(
        rows, features=Features({"image": ImageFeature(decode=False), "example_id": Value("int64")})
    )


def as_files(folder: Path, contents: dict[str, bytes]) -> Dataset:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    paths = [str(folder / name) for name in contents]
    return Dataset.from_dict({"image": paths, "example_id": list(range(len(paths)))})


# ---- what cannot be decoded ----


def test_pictures_that_decode_stay_encoded():
    dataset = ImageClassification().decodable(in_memory(encoded(), encoded("blue")), COLUMNS, split="train")
    assert [row["image"]["bytes"] for row in dataset] == [encoded(), encoded("blue")]


def test_pictures_that_do_not_end_the_run_with_their_number_and_names(tmp_path):
    dataset = as_files(tmp_path, {"good.png": encoded(), **BAD})
    with pytest.raises(DataError) as raised:
        ImageClassification().decodable(dataset, COLUMNS, split="validation")
    message = str(raised.value)
    assert message.startswith("validation: pictures that cannot be decoded: 3 of 4: row 1: ")
    assert all(str(tmp_path / name) in message for name in BAD)
    assert "it begins with b'not found'" in message
    assert message.endswith("Mend or remove them, or leave them out with --on_bad_example skip.")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_pictures_that_do_not_are_left_out_with_a_warning(tmp_path, caplog, split):
    """In evaluation too, since there is nothing to predict from; but never without a word."""
    dataset = SKIP.decodable(as_files(tmp_path, {**BAD, "good.png": encoded()}), COLUMNS, split=split)
    assert dataset["example_id"][:] == [3]
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert f"{split}: pictures that cannot be decoded: 3 of 4: row 0: {tmp_path / 'truncated.jpg'}" in warning.message
    assert warning.message.endswith("they are left out")


def test_a_picture_that_is_missing_in_its_row():
    rows = {"image": [{"bytes": encoded(), "path": None}, None], "example_id": [0, 1]}
    with pytest.raises(DataError, match="1 of 2: row 1: there is no picture: neither bytes nor a path"):
        ImageClassification().decodable(Dataset.from_dict(rows), COLUMNS, split="train")


def test_one_bad_picture_after_a_thousand_good_ones():
    """datasets takes the type of a column from its first 1,000 values, here None for "nothing is wrong"."""
    dataset = in_memory(*[encoded(size=(2, 2))] * 1001, b"")
    assert SKIP.decodable(dataset, COLUMNS, split="train")["example_id"][-1] == 1000


def test_a_file_that_was_mended_is_looked_at_again(tmp_path):
    """The rows, paths, are the same: what datasets keeps of the first check would be found again."""
    (tmp_path / "a.png").write_bytes(b"")
    rows = [{"image": "a.png", "label": "x"}, {"image": "a.png", "label": "y"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def check() -> Dataset:
        source = load_splits(
            DataArguments(train_file=[str(tmp_path / "train.jsonl")]), cache_dir=str(tmp_path / "cache")
        )
        return ImageClassification().decodable(source.splits["train"], COLUMNS, split="train")

    with pytest.raises(DataError, match=r"a\.png is empty"):
        check()
    (tmp_path / "a.png").write_bytes(encoded())
    assert len(check()) == 2


def test_a_stream_is_checked_as_it_is_read(caplog):
    stream = in_memory(encoded(), b"text", encoded()).to_iterable_dataset()
    kept = pickle.loads(pickle.dumps(SKIP.decodable(stream, COLUMNS, split="train")))
    assert [row["example_id"] for row in kept] == [0, 2]
    assert "left out: 1.png is no picture that Pillow reads" in caplog.text
    whole = ImageClassification().decodable(stream, COLUMNS, split="train")
    with pytest.raises(DataError, match=r"example 1: 1\.png is no picture .* --on_bad_example skip leaves such"):
        [read_image(row, "image") for row in whole]


def test_a_split_without_the_column_says_what_it_has():
    dataset = in_memory(encoded()).rename_column("image", "photo")
    with pytest.raises(
        DataError, match="The test split has no column 'image'; it has photo, example_id. Choose with --im"
    ):
        ImageClassification().decodable(dataset, COLUMNS, split="test")


# ---- rows ----


def test_equal_files_have_equal_keys(tmp_path):
    contents = {"a.png": encoded("red"), "b.png": encoded("blue"), "c.png": encoded("red")}
    dataset = ImageClassification().decodable(as_files(tmp_path, contents), COLUMNS, split="train")
    first, other, same = ImageClassification().example_keys(dataset, COLUMNS)
    assert first == same != other


def test_a_row_for_a_person_and_for_the_pipeline():
    image = Image.new("L", (6, 4), 200)
    exif = Image.Exif()
    exif[0x0112] = 6  # lies on its side
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", exif=exif)
    row = {"image": {"bytes": buffer.getvalue(), "path": "/home/me/pets/cat/1.jpg"}}
    task = ImageClassification()
    assert task.describe_inputs(row, COLUMNS) == {"image": "cat/1.jpg"}
    seen = task.pipeline_inputs(row, COLUMNS, None)
    assert (seen.mode, seen.size) == ("RGB", (4, 6))


def test_stacked_pixels_stay_in_8_bits():
    examples = [{"pixel_values": torch.full((3, 2, 2), i, dtype=torch.uint8), "example_id": 7 + i} for i in range(2)]
    batch = stacked_pixels(examples)
    assert batch["pixel_values"].dtype == torch.uint8
    assert batch["pixel_values"][:, 0, 0, 0].tolist() == [0, 1]
    assert batch["example_id"].tolist() == [7, 8]


def test_on_the_device_pixels_become_what_the_model_takes():
    processor = ViTImageProcessor(size={"height": 8, "width": 8})
    picture = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    batch = {"pixel_values": Geometry.of(processor).pixels(picture)[None], "labels": torch.tensor([1])}
    expected = processor(images=picture, return_tensors="pt")["pixel_values"]
    for dtype in (torch.float32, torch.bfloat16):
        given = ImageClassification().on_device(batch, processor, dtype=dtype)
        torch.testing.assert_close(given["pixel_values"], expected.to(dtype), rtol=0, atol=1e-6)
        assert given["labels"] is batch["labels"]


# ---- size ----


def test_image_size_is_one_number_or_height_and_width():
    assert ImageClassification().given_image_size is None
    assert ImageClassification(image_size=[64]).given_image_size == (64, 64)
    assert ImageClassification(image_size=[48, 64]).given_image_size == (48, 64)


@pytest.mark.parametrize("size", [[0], [-1, 32], [], [1, 2, 3]])
def test_image_sizes_that_are_none(size):
    """Said before anything is loaded."""
    given = " ".join(map(str, size))
    with pytest.raises(ArgumentError, match=f"--image_size {given}: expected height and width, or one number for both"):
        ImageClassification(image_size=size)


def geometry_of(height: int, width: int) -> Geometry:
    return Geometry.of(ViTImageProcessor(size={"height": height, "width": width}))


def test_a_configuration_is_told_the_size():
    config = ViTConfig(image_size=224)
    adopt_image_size(config, None, geometry_of(32, 32))
    assert config.image_size == 224
    adopt_image_size(config, (32, 32), geometry_of(32, 32))
    assert config.image_size == 32
    adopt_image_size(config, (32, 48), geometry_of(32, 48))
    assert config.image_size == [32, 48]
    with pytest.raises(ArgumentError, match="--image_size 32 48: the pictures of a sft_hf_mlp are square"):
        adopt_image_size(SimpleNamespace(model_type="sft_hf_mlp", image_size=28), (32, 48), geometry_of(32, 48))
    with_both_sides = SimpleNamespace(model_type="x", image_size=[224, 224])
    adopt_image_size(with_both_sides, (32, 48), geometry_of(32, 48))
    assert with_both_sides.image_size == [32, 48]
    nested = CLIPConfig()
    adopt_image_size(nested, (32, 32), geometry_of(32, 32))
    assert nested.vision_config.image_size == 32
    of_any_size = Dinov2Config(image_size=518)
    adopt_image_size(of_any_size, (32, 48), geometry_of(32, 48))
    assert of_any_size.image_size == 518
    without = SimpleNamespace(model_type="resnet")
    adopt_image_size(without, (32, 48), geometry_of(32, 48))
    assert not hasattr(without, "image_size")


@pytest.mark.parametrize(("architecture", "model_args"), [("test_resnet", None), ("test_vit", {"img_size": [32, 48]})])
def test_the_configuration_of_a_timm_model_holds_its_image_processor(architecture, model_args):
    """What is fixed when the model is made goes to timm as its img_size."""
    settings = timm.get_pretrained_cfg(architecture).to_dict()
    config = TimmWrapperConfig.from_dict({"architecture": architecture, "pretrained_cfg": settings, "num_classes": 2})
    adopt_image_size(config, (32, 48), geometry_of(32, 48))
    assert config.pretrained_cfg["input_size"] == [3, 32, 48]
    assert config.model_args == model_args
