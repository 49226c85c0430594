"""Random crops, flips and colours: the same for the same seed, epoch and example, whoever draws them, and the mask follows."""

import pickle
import random
from dataclasses import dataclass
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from sft_hf.errors import ArgumentError, DataError
from sft_hf.losses import IGNORE_INDEX
from sft_hf.seeding import seeded
from sft_hf.vision.augmentation import ImageAugmentation, JointAugmentation
from sft_hf.vision.decoding import open_image

POLICIES = ["light", "trivial", "randaugment", "autoaugment"]
KEY = {"seed": 7, "epoch": 2, "example_id": 11}
BLUE = (10, 20, 200)
CELL = 40  # pixels, the side of a square of the checkerboard
CLASSES = np.array([[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11, 12, 13, 14], [15, 16, 17, 18, 19]])


def photograph(width: int = 120, height: int = 90) -> dict:
    """A JPEG in which no two places look alike."""
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC), "JPEG")


def encoded(image: Image.Image, file_format: str, **options) -> dict:
    buffer = BytesIO()
    image.save(buffer, file_format, **options)
    return {"bytes": buffer.getvalue(), "path": None}


def kind_of(tensor: torch.Tensor) -> tuple:
    return tensor.dtype, tuple(tensor.shape)


# ---- randomness ----


@pytest.mark.parametrize("policy", POLICIES)
def test_pitfall_44_a_picture_is_a_function_of_seed_epoch_and_example(policy):
    augment, value = ImageAugmentation(size=(32, 48), policy=policy, random_erasing=0.5, fill=BLUE), photograph()
    pixels = augment(open_image(value), **KEY)
    assert kind_of(pixels) == (torch.uint8, (3, 32, 48))
    torch.manual_seed(1)
    again = pickle.loads(pickle.dumps(augment))  # as it reaches a spawned worker
    torch.testing.assert_close(again(open_image(value), **KEY), pixels, rtol=0, atol=0)
    for name in KEY:
        other = augment(open_image(value), **{**KEY, name: KEY[name] + 1})
        assert not torch.equal(other, pixels), name


def test_pitfall_44_so_is_a_picture_with_its_mask():
    augment, value, mask = JointAugmentation(size=(32, 48)), photograph(), np.tri(90, 120, dtype=np.int16)
    pixels, classes = augment(open_image(value), mask, **KEY)
    assert kind_of(pixels) == (torch.uint8, (3, 32, 48))
    assert kind_of(classes) == (torch.int16, (32, 48))
    again = augment(open_image(value), Image.fromarray(mask.astype(np.uint8)), **KEY)
    assert torch.equal(again[0], pixels)
    assert torch.equal(again[1], classes)
    for name in KEY:
        assert not torch.equal(augment(open_image(value), mask, **{**KEY, name: KEY[name] + 1})[0], pixels), name


@dataclass
class Augmented(Dataset):
    """Every example is the same file: what differs was drawn."""

    value: dict
    order: list[int]

    def __len__(self) -> int:
        return len(self.order)

    def __getitem__(self, index: int) -> dict:
        key = {"seed": 3, "epoch": 1, "example_id": self.order[index]}
        augment = ImageAugmentation(size=(24, 24), policy="randaugment", random_erasing=0.3)
        joint = JointAugmentation(size=(24, 24))
        pixels, classes = joint(open_image(self.value), np.tri(90, 120, dtype=np.int16), **key)
        image = augment(open_image(self.value), **key)
        return {"example_id": self.order[index], "all": torch.cat([image, pixels, classes[None].to(torch.uint8)])}


def test_pitfall_44_neither_workers_nor_the_order_change_a_pixel():
    read = {}
    for num_workers, order in ((0, list(range(10))), (2, list(range(10))), (2, [7, 3, 9, 1])):
        loader = DataLoader(Augmented(photograph(), order), batch_size=3, num_workers=num_workers)
        for batch in loader:
            for example_id, pixels in zip(batch["example_id"].tolist(), batch["all"], strict=True):
                assert torch.equal(read.setdefault(example_id, pixels), pixels), example_id
    assert len({pixels.numpy().tobytes() for pixels in read.values()}) == 10


def test_the_random_numbers_of_the_process_go_on_where_they_were():
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    ImageAugmentation(size=(24, 24), policy="randaugment", random_erasing=1.0)(open_image(photograph()), **KEY)
    JointAugmentation(size=(24, 24))(open_image(photograph()), np.zeros((90, 120), np.int16), **KEY)
    with pytest.raises(KeyError), seeded(1, 2):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state[0])
    assert (random.getstate(), np.random.get_state()[1].tolist()) == state[1:], "nor is any other generator used"


# ---- classification ----


def test_the_crop_is_torchvision_s_on_the_upright_picture():
    value = encoded(Image.open(BytesIO(photograph()["bytes"])), "PNG")
    crop = v2.RandomResizedCrop((40, 40), scale=(0.35, 1.0), interpolation=v2.InterpolationMode.BILINEAR)
    augment = ImageAugmentation(size=(40, 40), policy="light", flip=False)
    for example_id in range(5):
        with seeded(0, 0, example_id):
            expected = crop(v2.functional.pil_to_tensor(open_image(value))).int()
        pixels = augment(open_image(value), seed=0, epoch=0, example_id=example_id).int()
        assert (pixels - expected).abs().max() <= 1
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(open_image(value), "PNG", exif=exif)
    with seeded(0, 0, 0):
        upright = open_image(value).transpose(Image.Transpose.ROTATE_270)
        expected = crop(v2.functional.pil_to_tensor(upright)).int()
    pixels = augment(open_image(turned), seed=0, epoch=0, example_id=0).int()
    assert (pixels - expected).abs().max() <= 1


@pytest.mark.parametrize("interpolation", list(Image.Resampling))
def test_every_filter_is_pillow_s_to_one_step(interpolation):
    """The whole picture is the crop, so that Pillow reads nothing beyond it either."""
    image = open_image(encoded(open_image(photograph()), "PNG"))
    augment = ImageAugmentation(
        size=(30, 40), policy="light", interpolation=interpolation, crop_scale=(1.0, 1.0), flip=False
    )
    pixels = augment(image, **KEY).numpy().transpose(1, 2, 0).astype(int)
    expected = np.asarray(image.resize((40, 30), interpolation)).astype(int)
    assert np.abs(pixels - expected).max() <= 1


def test_half_of_the_pictures_are_flipped():
    """Red grows from left to right."""
    ramp = np.zeros((16, 64, 3), dtype=np.uint8)
    ramp[..., 0] = np.arange(64) * 4
    augment = ImageAugmentation(size=(8, 8), policy="light", crop_scale=(1.0, 1.0))
    reds = [augment(Image.fromarray(ramp), seed=0, epoch=0, example_id=row)[0] for row in range(200)]
    flipped = sum(bool(red[0, 0] > red[0, -1]) for red in reds)
    assert 75 <= flipped <= 125
    always = ImageAugmentation(size=(8, 8), policy="light", flip=False)
    reds = [always(Image.fromarray(ramp), seed=0, epoch=0, example_id=row)[0] for row in range(20)]
    assert all(red[0, 0] < red[0, -1] for red in reds)


def test_a_jpeg_is_decoded_no_larger_than_needed(monkeypatch):
    sizes = []
    crop = Image.Image.crop
    monkeypatch.setattr(Image.Image, "crop", lambda self, box: sizes.append(self.size) or crop(self, box))
    augment = ImageAugmentation(size=(32, 32), policy="light", crop_scale=(0.9, 1.0))
    augment(open_image(photograph(800, 600)), **KEY)
    assert sizes == [(100, 75)]
    augment(open_image(photograph(60, 40)), **KEY)
    assert sizes[1:] == [(60, 40)]


@pytest.mark.parametrize("policy", POLICIES[1:])
def test_a_policy_distorts_and_fills_with_the_given_colour(policy):
    """White pictures: what is not white, or a colour operation's grey, came in from outside."""
    white = Image.new("RGB", (64, 64), (255, 255, 255))
    augment = ImageAugmentation(size=(32, 32), policy=policy, fill=BLUE)
    pictures = [augment(white, seed=0, epoch=0, example_id=row) for row in range(60)]
    filled = sum(bool((picture == torch.tensor(BLUE).view(3, 1, 1)).all(dim=0).any()) for picture in pictures)
    assert filled >= 5
    light = ImageAugmentation(size=(32, 32), policy="light", fill=BLUE)
    assert all((light(white, seed=0, epoch=0, example_id=row) == 255).all() for row in range(20))


def test_erasing_paints_a_rectangle_in_the_given_colour():
    white = Image.new("RGB", (64, 64), (255, 255, 255))
    augment = ImageAugmentation(size=(32, 32), policy="light", random_erasing=1.0, fill=BLUE)
    pixels = augment(white, **KEY)
    erased = (pixels == torch.tensor(BLUE).view(3, 1, 1)).all(dim=0)
    rows, columns = erased.any(dim=1), erased.any(dim=0)
    assert 0.02 * 32 * 32 * 0.8 < erased.sum() < 0.4 * 32 * 32
    assert erased.sum() == rows.sum() * columns.sum(), "a rectangle"
    assert (pixels[:, ~erased] == 255).all()


def test_random_erasing_is_a_probability():
    with pytest.raises(ArgumentError, match=r"^--random_erasing is 25, expected a probability from 0 to 1\.$"):
        ImageAugmentation(size=(8, 8), policy="light", random_erasing=25)


def test_no_augmentation_is_the_evaluation_s_geometry():
    with pytest.raises(AssertionError, match="none is not an augmentation"):
        ImageAugmentation(size=(8, 8), policy="none")


# ---- a picture and its mask ----


def checkerboard() -> tuple[Image.Image, np.ndarray]:
    """20 large squares, 200 x 160 pixels; the red of a square is ten times its class."""
    mask = CLASSES.repeat(CELL, axis=0).repeat(CELL, axis=1).astype(np.int16)
    red = (mask * 10).astype(np.uint8)
    return Image.fromarray(np.stack([red, np.full_like(red, 100), np.full_like(red, 255 - 100)], axis=-1)), mask


def away_from_edges(classes: np.ndarray) -> np.ndarray:
    """Where all pixels up to two away have the same class."""
    padded = np.pad(classes, 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (5, 5))
    return (windows == classes[..., None, None]).all(axis=(-1, -2))


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
@pytest.mark.parametrize("size", [(64, 80), (160, 200), (40, 33), (300, 300)])
def test_the_mask_follows_the_picture(size, file_format):
    """The colour tells the class, at every scale, place and flip, and in a JPEG that was decoded at a half or a quarter."""
    image, mask = checkerboard()
    value = encoded(image, file_format, **({"quality": 100, "subsampling": 0} if file_format == "JPEG" else {}))
    augment = JointAugmentation(size=size, photometric=False, fill=BLUE)
    for example_id in range(25):
        pixels, classes = (
            part.numpy() for part in augment(open_image(value), mask, seed=0, epoch=0, example_id=example_id)
        )
        is_padding = classes == IGNORE_INDEX
        expected = np.where(is_padding, BLUE[0], 10 * classes)
        inside = away_from_edges(classes)
        assert np.abs(pixels[0].astype(int) - expected)[inside].max(initial=0) <= 4
        assert (pixels[:, is_padding] == np.array(BLUE)[:, None]).all()
        assert inside.mean() > 0.15


def test_pitfall_14_padding_is_ignored_and_no_class_is_invented():
    image, mask = checkerboard()
    mask[CELL : 2 * CELL, :CELL] = IGNORE_INDEX
    mask[mask == 7] = 300  # beyond 8 bits
    half = JointAugmentation(size=(64, 80), scale=(0.5, 0.5), photometric=False, fill=BLUE)
    _, classes = half(image, mask, **KEY)
    assert set(classes.unique().tolist()) == set(np.unique(mask).tolist())
    # a quarter of the window is the picture, of which a 20th is ignored
    assert (classes != IGNORE_INDEX).sum() == 32 * 40 - 8 * 8


def test_at_scale_1_it_is_the_evaluation_s_squashed_picture():
    image, mask = checkerboard()
    augment = JointAugmentation(size=(64, 80), scale=(1.0, 1.0), flip=False, photometric=False)
    pixels, classes = augment(image, mask, **KEY)
    expected = np.asarray(image.resize((80, 64), Image.Resampling.BILINEAR)).transpose(2, 0, 1)
    assert np.abs(pixels.numpy().astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(classes, CLASSES.repeat(16, axis=0).repeat(16, axis=1))


def test_at_scale_2_a_window_of_half_the_height_and_width():
    """Red and green tell where a pixel lies; the windows reach every part of the picture, and none beyond."""
    place = np.stack([*np.meshgrid(np.arange(200), np.arange(160)), np.zeros((160, 200))], axis=-1).astype(np.uint8)
    mask = np.zeros((160, 200), dtype=np.int16)
    augment = JointAugmentation(size=(80, 100), scale=(2.0, 2.0), flip=False, photometric=False)
    corners = []
    for example_id in range(60):
        pixels, _ = augment(Image.fromarray(place), mask, seed=0, epoch=0, example_id=example_id)
        across, down = pixels[0, 0], pixels[1, :, 0]
        assert (across[-1] - across[0], down[-1] - down[0]) == (99, 79)
        corners.append((int(across[0]), int(down[0])))
    for side, limit in ((0, 100), (1, 80)):
        values = np.array([corner[side] for corner in corners])
        assert 0 <= values.min() < limit / 8
        assert limit * 7 / 8 < values.max() <= limit
        assert abs(values.mean() - limit / 2) < limit / 8


def test_a_window_is_what_scale_1_covers():
    """Red and green tell where a pixel lies: 100 x 80 of 200 x 160 pixels at scale 1, 200 x 160 at 0.5, padding below."""
    place = np.stack([*np.meshgrid(np.arange(200), np.arange(160)), np.zeros((160, 200))], axis=-1).astype(np.uint8)
    mask = np.zeros((160, 200), dtype=np.int16)
    for scale, seen in ((1.0, 1), (2.0, 0.5), (0.5, 2)):
        augment = JointAugmentation(
            size=(80, 100), scale=(scale, scale), window=(80, 100), flip=False, photometric=False
        )
        pixels, classes = augment(Image.fromarray(place), mask, **KEY)
        assert (classes == 0).all()
        across, down = (int(pixels[0, 0, -1]) - int(pixels[0, 0, 0])), (int(pixels[1, -1, 0]) - int(pixels[1, 0, 0]))
        assert abs(across - (100 * seen - seen)) <= 1
        assert abs(down - (80 * seen - seen)) <= 1
    augment = JointAugmentation(size=(80, 100), scale=(0.25, 0.25), window=(80, 100), flip=False, fill=BLUE)
    _, classes = augment(Image.fromarray(place), mask, **KEY)
    assert (classes == 0).sum() == 40 * 50, "all of the picture, at half of the result's height and width"


def test_a_picture_smaller_than_the_window_is_the_evaluation_s_at_scale_1():
    """It is squashed there, and not padded: on the side that is smaller."""
    image, mask = checkerboard()
    options = {"size": (64, 80), "scale": (1.0, 1.0), "flip": False, "photometric": False}
    whole, windowed = JointAugmentation(**options), JointAugmentation(**options, window=(500, 400))
    for left, right in zip(whole(image, mask, **KEY), windowed(image, mask, **KEY), strict=True):
        assert torch.equal(left, right)
    _, classes = JointAugmentation(**options, window=(500, 40))(image, mask, **KEY)
    assert len(classes[0].unique()) <= 2, "40 of 200 columns"
    assert len(classes[:, 0].unique()) == 4, "and all rows"


def test_below_scale_1_the_picture_lies_anywhere_in_the_padding():
    image, mask = checkerboard()
    augment = JointAugmentation(size=(64, 80), scale=(0.5, 0.5), flip=False)
    corners = set()
    for example_id in range(60):
        _, classes = augment(image, mask, seed=0, epoch=0, example_id=example_id)
        rows, columns = np.nonzero(classes.numpy() != IGNORE_INDEX)
        assert (np.ptp(rows) + 1, np.ptp(columns) + 1) == (32, 40)
        corners.add((int(rows.min()), int(columns.min())))
    assert len(corners) > 50
    assert {min(row for row, _ in corners), max(row for row, _ in corners)} <= {0, 1, 2, 30, 31, 32}


def test_colours_change_in_the_picture_alone():
    image, mask = checkerboard()
    options = {"size": (64, 80), "scale": (0.6, 0.6), "flip": False, "fill": BLUE}
    plain, distorted = JointAugmentation(**options, photometric=False), JointAugmentation(**options)
    changed = 0
    for example_id in range(20):
        before, classes = plain(image, mask, seed=0, epoch=0, example_id=example_id)
        after, same_classes = distorted(image, mask, seed=0, epoch=0, example_id=example_id)
        assert torch.equal(classes, same_classes)
        assert (after[:, classes == IGNORE_INDEX] == torch.tensor(BLUE)[:, None]).all(), "padding keeps its colour"
        changed += not torch.equal(before, after)
    assert 15 <= changed <= 20, "15 of 16"


@pytest.mark.parametrize("side", [1, 2, 3])
def test_the_smallest_pictures(side):
    image, mask = Image.new("RGB", (side, 1), (200, 0, 0)), np.ones((1, side), dtype=np.int16)
    for example_id in range(10):
        key = {"seed": 0, "epoch": 0, "example_id": example_id}
        pixels, classes = JointAugmentation(size=(4, 4), scale=(0.1, 4.0), photometric=False)(image, mask, **key)
        assert (pixels[0, classes == 1] == 200).all()
        assert (classes == 1).any()
        assert ImageAugmentation(size=(4, 4), policy="light")(image, **key)[0].min() == 200


def test_a_mask_of_another_size_is_not_stretched():
    with pytest.raises(DataError, match="^example 11: the picture is 120 x 90 pixels and its mask 60 x 45.$"):
        JointAugmentation(size=(8, 8))(open_image(photograph()), np.zeros((45, 60), dtype=np.int16), **KEY)
    with pytest.raises(DataError, match="its mask 3 x 120 x 90.$"):
        JointAugmentation(size=(8, 8))(open_image(photograph()), np.zeros((90, 120, 3), dtype=np.uint8), **KEY)
