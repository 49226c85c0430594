"""Stand-ins for data and models that are not at hand: made up, of the sizes and in the layout of the real ones.

Speeds on them mean what those on the real ones do; scores mean nothing.
"""

import csv
import random
from collections.abc import Callable
from pathlib import Path

import tiny
import tiny_speech
from PIL import Image

WORDS = (
    "the of and to in is you that it he was for on are as with his they at be this have from or one had by word".split()
)


def data(name: str, folder: Path) -> Path:
    """A data set of the name of a real one."""
    return _made(DATA, name, folder / "data")


def model(name: str, folder: Path) -> Path:
    """A model of the architecture of that name, with random weights."""
    return _made(MODELS, name, folder / "models")


def _made(makers: dict[str, Callable[[Path], None]], name: str, folder: Path) -> Path:
    target = folder / name
    if not target.exists():
        target.mkdir(parents=True)
        makers[name](target)
    return target


# ---- data ----


def _messages(folder: Path) -> None:
    generator = random.Random(0)
    for split, number in {"train": 4459, "test": 1115}.items():
        with (folder / f"{split}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("text", "label"))
            for _ in range(number):
                label = "spam" if generator.random() < 0.13 else "ham"
                length = min(150, round(generator.lognormvariate(3.4 if label == "spam" else 2.5, 0.6)))
                writer.writerow((" ".join(generator.choices(WORDS, k=length)), label))


def _photos(folder: Path) -> None:
    tiny.write_class_folders(folder, train=240, test=60)
    _enlarge(folder, (500, 375))


def _people(folder: Path) -> None:
    tiny.write_mask_folders(folder, train=80, test=40)
    _enlarge(folder, (360, 480))


def _enlarge(folder: Path, size: tuple[int, int]) -> None:
    for path in folder.rglob("*.png"):
        kind = Image.Resampling.NEAREST if path.parent.name == "masks" else Image.Resampling.BICUBIC
        Image.open(path).resize(size, kind).save(path)


def _digits(folder: Path) -> None:
    for split, number, seed in (("train", 480, 0), ("test", 120, 1)):
        rows = [("file_name", "label")]
        for index, (name, samples) in enumerate(tiny_speech.tones(number, seed=seed)):
            tiny_speech.write_wav(folder / split / f"{index}.wav", samples)
            rows.append((f"{index}.wav", name))
        with (folder / split / "metadata.csv").open("w", newline="") as file:
            csv.writer(file).writerows(rows)


def _spelt(folder: Path) -> None:
    tiny_speech.write_spelt(folder, train=400, test=130)


DATA = {"sms_spam": _messages, "cats_dogs": _photos, "ccp_clothing": _people, "fsdd": _digits, "an4": _spelt}


# ---- models ----


def _mobilenet(folder: Path) -> None:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification, MobileNetV2ImageProcessor

    MobileNetV2ForImageClassification(MobileNetV2Config(num_labels=1001)).save_pretrained(folder)
    MobileNetV2ImageProcessor().save_pretrained(folder)


def _efficientnet(folder: Path) -> None:
    tiny.save_timm(folder, "tf_efficientnet_lite0", size=224)


def _moonshine(folder: Path) -> None:
    tiny_speech.save_moonshine(folder, **MOONSHINE_TINY)


def _whisper(folder: Path) -> None:
    tiny_speech.save_whisper(folder, chunk_length=30, num_mel_bins=80, **WHISPER_TINY)


# The sizes of the published tiny ones; the vocabulary is the stand-in's.
MOONSHINE_TINY = {
    "hidden_size": 288,
    "intermediate_size": 1152,
    "encoder_num_hidden_layers": 6,
    "decoder_num_hidden_layers": 6,
    "encoder_num_attention_heads": 8,
    "decoder_num_attention_heads": 8,
}
WHISPER_TINY = {
    "d_model": 384,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "encoder_attention_heads": 6,
    "decoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "decoder_ffn_dim": 1536,
}
MODELS = {
    "mobilenet_v2_1.0_224-hf": _mobilenet,
    "tf_efficientnet_lite0": _efficientnet,
    "moonshine-tiny": _moonshine,
    "whisper-tiny.en": _whisper,
}
