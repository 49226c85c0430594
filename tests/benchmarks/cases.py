"""The cases: data, model and the flags that all sides share; `ours` are the recipe's own flags that name the data."""

import csv
from pathlib import Path
from typing import Any

IMAGENET = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
Case = dict[str, Any]


def minilm(folder: Path) -> str:
    """The package's MiniLM, as a folder with weights and tokenizer that both sides load."""
    from sft_hf.arguments import ModelArguments
    from sft_hf.pretrained import resolve_model

    return str(resolve_model(ModelArguments(model_name_or_path="builtin:minilm")).path)


def text_short(data: Path, weights: Path, folder: Path) -> Case:
    """Short messages, 20 tokens in the mean: the stock script pads them to 128."""
    return _text(data / "sms_spam", folder, max_steps=40, repeat=1)


def text_long(data: Path, weights: Path, folder: Path) -> Case:
    """The same messages joined by twelves."""
    return _text(data / "sms_spam", folder, max_steps=12, repeat=12)


def _text(source: Path, folder: Path, *, max_steps: int, repeat: int) -> Case:
    files = {}
    for split in ("train", "test"):
        rows = list(csv.DictReader((source / f"{split}.csv").open(encoding="utf-8")))
        if repeat > 1:  # texts of one label joined, so that the label stays true
            by_label: dict[str, list[str]] = {}
            for row in rows:
                by_label.setdefault(row["label"], []).append(row["text"])
            rows = [
                {"text": " ".join(texts[start : start + repeat]), "label": label}
                for label, texts in by_label.items()
                for start in range(0, len(texts), repeat)
            ]
        path = folder / f"{split}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, ["text", "label"])
            writer.writeheader()
            writer.writerows({"text": row["text"], "label": row["label"]} for row in rows)
        files[split] = str(path)
    length = 128 if repeat == 1 else 256
    return {
        "task": "text",
        "recipe": "text_cls",
        "model": minilm(folder),
        "files": files,
        "max_length": length,
        "learning_rate": 2e-4,
        "max_steps": max_steps,
        "batch_size": 32,
        "eval_batch_size": 64,
        "metric": "accuracy",
        "ours": {
            "train_file": files["train"],
            "test_file": files["test"],
            "max_length": length,
            "max_eval_samples": 64,
        },
    }


def images_mobilenet(data: Path, weights: Path, folder: Path) -> Case:
    """Photos of cats and dogs at 224, MobileNetV2."""
    return _images(data, weights / "mobilenet_v2_1.0_224-hf", HALF)


def images_timm(data: Path, weights: Path, folder: Path) -> Case:
    """The same with a timm EfficientNet."""
    return _images(data, weights / "tf_efficientnet_lite0", HALF)


def _images(data: Path, model: Path, statistics: dict) -> Case:
    return {
        "task": "images",
        "recipe": "image_cls",
        "model": str(model),
        "folder": str(data / "cats_dogs"),
        "image_size": 224,
        **statistics,
        "learning_rate": 5e-4,
        "max_steps": 20,
        "batch_size": 32,
        "eval_batch_size": 32,
        "metric": "accuracy",
        "ours": {"dataset_name": str(data / "cats_dogs")},
    }


def segmentation(data: Path, weights: Path, folder: Path) -> Case:
    """Photos of people, 59 ids, MobileNetV2 DeepLab at 360x480 (height 480)."""
    return {
        "task": "segmentation",
        "recipe": "image_seg",
        "model": str(weights / "mobilenet_v2_1.0_224-hf"),
        "config": {"output_stride": 16},
        "folder": str(data / "ccp_clothing"),
        "size": [480, 360],
        **HALF,
        "learning_rate": 1e-3,
        "max_steps": 12,
        "batch_size": 8,
        "eval_batch_size": 8,
        "metric": "mean_iou",
        "ours": {
            "dataset_name": str(data / "ccp_clothing"),
            "config_overrides": "output_stride=16",
            "image_size": [480, 360],
        },
    }


def audio_classification(data: Path, weights: Path, folder: Path) -> Case:
    """Spoken digits of a second by Whisper's encoder."""
    return {
        "task": "audio_classification",
        "recipe": "audio_cls",
        "model": str(weights / "whisper-tiny.en"),
        "folder": str(data / "fsdd"),
        "learning_rate": 1e-4,
        "max_steps": 6,
        "batch_size": 8,
        "eval_batch_size": 8,
        "metric": "accuracy",
        "ours": {"dataset_name": str(data / "fsdd"), "label_column_name": "label"},
    }


def moonshine(data: Path, weights: Path, folder: Path) -> Case:
    """Spelled words and numbers by Moonshine tiny."""
    return _recogniser(data, weights / "moonshine-tiny", max_steps=12)


def whisper(data: Path, weights: Path, folder: Path) -> Case:
    """The same by Whisper tiny.en, whose window is 30 s on every side."""
    return _recogniser(data, weights / "whisper-tiny.en", max_steps=3)


def _recogniser(data: Path, model: Path, *, max_steps: int) -> Case:
    return {
        "task": "seq2seq",
        "recipe": "speech_seq2seq",
        "model": str(model),
        "folder": str(data / "an4"),
        "learning_rate": 1e-4,
        "max_steps": max_steps,
        "batch_size": 8,
        "eval_batch_size": 8,
        "metric": "wer",
        "ours": {"dataset_name": str(data / "an4")},
    }


CASES = {
    case.__name__: case
    for case in (
        text_short,
        text_long,
        images_mobilenet,
        images_timm,
        segmentation,
        audio_classification,
        moonshine,
        whisper,
    )
}
