"""The cases: data, model and the flags that all sides share; `ours` are the recipe's own flags that name the data.

A case is asked for data and models in folders as those of docs/results.md; `growth` copies the training rows so many times.
"""

import csv
import json
from dataclasses import dataclass, replace
from itertools import cycle, islice, takewhile
from pathlib import Path
from typing import Any

from tests.benchmarks import generated

HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
FEW = 16  # validation rows: the other sides have no validation split, all of them score the test split
Case = dict[str, Any]


@dataclass(frozen=True)
class Place:
    """Where the data and the models of the cases are; without them, ones that are made in `folder`."""

    data: Path | None
    weights: Path | None
    folder: Path
    growth: int = 1

    def set(self, name: str) -> Path:
        """The folder of a data set, its training rows `growth` times."""
        source = self.data / name if self.data else generated.data(name, self.folder)
        return source if self.growth == 1 else copied(source, self.folder / f"{name}_x{self.growth}", self.growth)

    def model(self, name: str) -> str:
        """The folder of a model."""
        return str(self.weights / name if self.weights else generated.model(name, self.folder))


def copied(source: Path, target: Path, growth: int) -> Path:
    """The data set with its training files `growth` times, as links under other names."""
    for path in source.rglob("*"):
        relative = path.relative_to(source)
        if path.is_dir():
            continue
        (target / relative).parent.mkdir(parents=True, exist_ok=True)
        if relative.parts[0] != "train":
            (target / relative).symlink_to(path)
        elif path.suffix in (".csv", ".jsonl"):
            (target / relative).write_text(_with_copies(path, growth))
        else:
            for number in range(growth):
                (target / relative).with_name(f"{number}_{path.name}").symlink_to(path)
    return target


def _with_copies(table: Path, growth: int) -> str:
    """A metadata table that names each file under all its names."""
    lines = table.read_text().splitlines()
    header, rows = (lines[:1], lines[1:]) if table.suffix == ".csv" else ([], lines)
    return "\n".join([*header, *(_renamed(row, number) for number in range(growth) for row in rows)]) + "\n"


def _renamed(row: str, number: int) -> str:
    if not row.startswith("{"):
        return f"{number}_{row}"  # file_name is the first column
    named = {
        key: _prefixed(value, number) if key.endswith("file_name") else value for key, value in json.loads(row).items()
    }
    return json.dumps(named)


def _prefixed(path: str, number: int) -> str:
    return str(Path(path).with_name(f"{number}_{Path(path).name}"))


def minilm() -> str:
    """The package's MiniLM, as a folder with weights and tokenizer that both sides load."""
    from sft_hf.arguments import ModelArguments
    from sft_hf.pretrained import resolve_model

    return str(resolve_model(ModelArguments(model_name_or_path="builtin:minilm")).path)


def text_short(place: Place) -> Case:
    """Short messages, 20 tokens in the mean: the stock script pads them to 128."""
    return _text(place, max_steps=40)


def text_long(place: Place) -> Case:
    """Documents of 4 to 24 of the same messages, 20 to 512 tokens, which is where both sides cut."""
    return _text(place, max_steps=10, joined=(4, 24, 12, 18, 6), max_length=512)


def _text(place: Place, *, max_steps: int, joined: tuple[int, ...] = (1,), max_length: int = 128) -> Case:
    source, files = replace(place, growth=1).set("sms_spam"), {}
    for split in ("train", "test"):
        rows = list(csv.DictReader((source / f"{split}.csv").open(encoding="utf-8")))
        documents = [(text, label) for label in ("ham", "spam") for text in _documents(rows, label, joined)]
        if split == "train":  # a copy differs, so that neither side finds its work done
            documents = [(text + " ." * number, label) for number in range(place.growth) for text, label in documents]
        path = place.folder / f"{split}.csv"
        with path.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("text", "label"), *documents])
        files[split] = str(path)
    return {
        "task": "text",
        "recipe": "text_cls",
        "model": minilm(),
        "files": files,
        "max_length": max_length,
        "learning_rate": 2e-4,
        "max_steps": max_steps,
        "batch_size": 32,
        "eval_batch_size": 64,
        "metric": "accuracy",
        "ours": {
            "train_file": files["train"],
            "test_file": files["test"],
            "max_length": max_length,
            "max_eval_samples": FEW,
        },
    }


def _documents(rows: list[dict[str, str]], label: str, joined: tuple[int, ...]) -> list[str]:
    """Messages of one label in documents of so many, in turns."""
    messages = iter([row["text"] for row in rows if row["label"] == label])
    return list(takewhile(bool, (" ".join(islice(messages, number)) for number in cycle(joined))))


def images_mobilenet(place: Place) -> Case:
    """Photos of cats and dogs at 224, MobileNetV2."""
    return _images(place, "mobilenet_v2_1.0_224-hf")


def images_timm(place: Place) -> Case:
    """The same with a timm EfficientNet."""
    return _images(place, "tf_efficientnet_lite0")


def _images(place: Place, model: str) -> Case:
    case = _of_folder(place.set("cats_dogs"), learning_rate=5e-4, max_steps=20, batch_size=32, metric="accuracy")
    return {**case, "task": "images", "recipe": "image_cls", "model": place.model(model), "image_size": 224, **HALF}


def _of_folder(
    folder: Path, *, learning_rate: float, max_steps: int, batch_size: int, metric: str, **ours: Any
) -> Case:
    """What all cases over a folder of files have; `ours` are flags of ours beside those that name it."""
    return {
        "folder": str(folder),
        "learning_rate": learning_rate,
        "max_steps": max_steps,
        "batch_size": batch_size,
        "eval_batch_size": batch_size,
        "metric": metric,
        "ours": {"dataset_name": str(folder), "max_eval_samples": FEW, **ours},
    }


def segmentation(place: Place) -> Case:
    """Photos of people, 59 ids, MobileNetV2 DeepLab at 360x480 (height 480)."""
    size, ours = [480, 360], {"config_overrides": "output_stride=16"}
    folder = place.set("ccp_clothing")
    return {
        **_of_folder(
            folder, learning_rate=1e-3, max_steps=12, batch_size=8, metric="mean_iou", image_size=size, **ours
        ),
        "task": "segmentation",
        "recipe": "image_seg",
        "model": place.model("mobilenet_v2_1.0_224-hf"),
        "config": {"output_stride": 16},
        "size": size,
        **HALF,
    }


def audio_classification(place: Place) -> Case:
    """Spoken digits of a second by Whisper's encoder."""
    folder, ours = place.set("fsdd"), {"label_column_name": "label"}
    case = _of_folder(folder, learning_rate=1e-4, max_steps=6, batch_size=8, metric="accuracy", **ours)
    return {**case, "task": "audio_classification", "recipe": "audio_cls", "model": place.model("whisper-tiny.en")}


def moonshine(place: Place) -> Case:
    """Spelled words and numbers by Moonshine tiny."""
    return _recogniser(place, "moonshine-tiny", max_steps=12)


def whisper(place: Place) -> Case:
    """The same by Whisper tiny.en, whose window is 30 s on every side."""
    return _recogniser(place, "whisper-tiny.en", max_steps=3)


def crnn(place: Place) -> Case:
    """The same by builtin:crnn, whose first weights lie in a folder that all sides load."""
    from sft_hf.data.vocabulary import build_tokenizer
    from sft_hf.models.crnn import CrnnConfig, CrnnForCTC, build_processor

    case, model = _recogniser(place, None, max_steps=12), place.folder / "crnn"
    with (Path(case["folder"]) / "train" / "metadata.csv").open() as file:
        tokenizer = build_tokenizer([row["text"] for row in csv.DictReader(file)])
    CrnnForCTC(CrnnConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)).save_pretrained(model)
    build_processor(tokenizer).save_pretrained(model)
    return {**case, "task": "ctc", "recipe": "speech_ctc", "model": str(model), "learning_rate": 2e-3}


def _recogniser(place: Place, model: str | None, *, max_steps: int) -> Case:
    case = _of_folder(place.set("an4"), learning_rate=1e-4, max_steps=max_steps, batch_size=8, metric="wer")
    return {**case, "task": "seq2seq", "recipe": "speech_seq2seq", "model": place.model(model) if model else None}


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
        crnn,
    )
}
