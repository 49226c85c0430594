"""The other side: transformers' Trainer, used as its example scripts use it (their preprocessing, collation and flags' defaults).

    python -m tests.benchmarks.stock CASE.json FIGURES.json

Written for this comparison. `best` in the case turns on what those scripts offer: dynamic padding, dataloader workers, and bfloat16 on a GPU.
Each of those scripts imports evaluate at its top, as this does; what it would load by it is computed here, since that needs a hub.
"""

import json
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import evaluate  # noqa: F401
import numpy as np
import torch
from datasets import Dataset, load_dataset
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments, Trainer, TrainingArguments

from tests.benchmarks.clock import Clock, write_figures


def arguments(case: dict[str, Any], kind: type = TrainingArguments, **more: Any) -> TrainingArguments:
    """The flags that all sides share, and the script's own."""
    on_gpu = torch.accelerator.is_available()
    best = {"dataloader_num_workers": 2, "bf16": on_gpu} if case["best"] else {}
    return kind(
        output_dir=case["output_dir"],
        learning_rate=case["learning_rate"],
        max_steps=case["max_steps"],
        per_device_train_batch_size=case["batch_size"],
        per_device_eval_batch_size=case["eval_batch_size"],
        warmup_steps=0.1,
        weight_decay=0.01,
        seed=case["seed"],
        report_to="none",
        disable_tqdm=True,
        use_cpu=not on_gpu,
        save_strategy="no",
        **best,
        **more,
    )


# ---- text: as run_classification.py ----


def text(case: dict[str, Any]) -> Trainer:
    """Padded to the maximum (the script's default), or, at its best, to the longest of the batch."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        default_data_collator,
    )

    data = load_dataset("csv", data_files=case["files"])
    names = sorted(set(data["train"]["label"]))
    tokenizer = AutoTokenizer.from_pretrained(case["model"])
    model = AutoModelForSequenceClassification.from_pretrained(case["model"], num_labels=len(names))

    def preprocess(examples: dict[str, list]) -> dict[str, list]:
        padding = False if case["best"] else "max_length"
        result = tokenizer(examples["text"], padding=padding, max_length=case["max_length"], truncation=True)
        result["labels"] = [names.index(name) for name in examples["label"]]
        return result

    data = data.map(preprocess, batched=True, remove_columns=["text", "label"])
    return Trainer(
        model=model,
        args=arguments(case),
        train_dataset=data["train"],
        eval_dataset=data["test"],
        compute_metrics=accuracy,
        processing_class=tokenizer,
        data_collator=DataCollatorWithPadding(tokenizer) if case["best"] else default_data_collator,
    )


def accuracy(prediction: Any) -> dict[str, float]:
    """Of the largest logit."""
    return {"accuracy": float((prediction.predictions.argmax(axis=1) == prediction.label_ids).mean())}


# ---- images: as run_image_classification.py ----


def images(case: dict[str, Any]) -> Trainer:
    """Random resized crops and flips of torchvision's in a transform of the dataset."""
    from torchvision.transforms import (
        CenterCrop,
        Compose,
        Normalize,
        RandomHorizontalFlip,
        RandomResizedCrop,
        Resize,
        ToTensor,
    )
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    data = load_dataset("imagefolder", data_dir=case["folder"])
    names = data["train"].features["label"].names
    processor = AutoImageProcessor.from_pretrained(case["model"])
    model = AutoModelForImageClassification.from_pretrained(
        case["model"], num_labels=len(names), ignore_mismatched_sizes=True
    )
    mean, std, size = case["mean"], case["std"], case["image_size"]
    normalize = Normalize(mean=mean, std=std)
    train = Compose([RandomResizedCrop(size), RandomHorizontalFlip(), ToTensor(), normalize])
    evaluation = Compose([Resize(size), CenterCrop(size), ToTensor(), normalize])

    def transform(compose: Compose, batch: dict[str, list]) -> dict[str, list]:
        return {**batch, "pixel_values": [compose(image.convert("RGB")) for image in batch["image"]]}

    return Trainer(
        model=model,
        args=arguments(case, remove_unused_columns=False),
        train_dataset=data["train"].with_transform(partial(transform, train)),
        eval_dataset=data["test"].with_transform(partial(transform, evaluation)),
        compute_metrics=accuracy,
        processing_class=processor,
        data_collator=stacked_images,
    )


def stacked_images(examples: list[dict]) -> dict[str, torch.Tensor]:
    """Tensors of one size and their labels."""
    pixel_values = torch.stack([example["pixel_values"] for example in examples])
    return {"pixel_values": pixel_values, "labels": torch.tensor([example["label"] for example in examples])}


# ---- segmentation: as run_semantic_segmentation.py ----


def segmentation(case: dict[str, Any]) -> Trainer:
    """Crops and flips of torchvision's v2; in evaluation the logits of every picture are kept, enlarged to the masks and scored."""
    from torchvision import tv_tensors
    from torchvision.transforms import v2
    from transformers import AutoModelForSemanticSegmentation

    data = load_dataset("imagefolder", data_dir=case["folder"])
    names = json.loads((Path(case["folder"]) / "id2label.json").read_text())
    model = AutoModelForSemanticSegmentation.from_pretrained(
        case["model"], num_labels=len(names), ignore_mismatched_sizes=True, **case["config"]
    )
    size, scale = tuple(case["size"]), [v2.ToImage(), v2.ToDtype(torch.float32, scale=True)]
    normalize = v2.Normalize(mean=case["mean"], std=case["std"])
    train = v2.Compose(
        [
            v2.RandomCrop(size, pad_if_needed=True, fill={tv_tensors.Mask: 255}),
            v2.RandomHorizontalFlip(),
            *scale,
            normalize,
        ]
    )
    evaluation = v2.Compose([v2.Resize(size), *scale, normalize])

    def transform(compose: Any, batch: dict[str, list]) -> dict[str, list]:
        pairs = [
            compose(image.convert("RGB"), tv_tensors.Mask(np.array(mask)))
            for image, mask in zip(batch["image"], batch["label"], strict=True)
        ]
        return {
            "pixel_values": [pair[0] for pair in pairs],
            "labels": [torch.as_tensor(pair[1]).long() for pair in pairs],
        }

    return Trainer(
        model=model,
        args=arguments(case, remove_unused_columns=False),
        train_dataset=data["train"].with_transform(partial(transform, train)),
        eval_dataset=data["test"].with_transform(partial(transform, evaluation)),
        compute_metrics=partial(mean_iou, num_labels=len(names)),
        data_collator=stacked_pairs,
    )


def stacked_pairs(examples: list[dict]) -> dict[str, torch.Tensor]:
    """Pictures and masks of one size."""
    return {name: torch.stack([example[name] for example in examples]) for name in ("pixel_values", "labels")}


@torch.no_grad()
def mean_iou(prediction: Any, *, num_labels: int) -> dict[str, float]:
    """As the script's compute_metrics: all logits at once, enlarged to the masks."""
    logits = torch.from_numpy(prediction.predictions)
    labels = prediction.label_ids
    enlarged = torch.nn.functional.interpolate(logits, size=labels.shape[-2:], mode="bilinear", align_corners=False)
    found = enlarged.argmax(dim=1).numpy()
    counts = labels != 255
    matrix = np.bincount(labels[counts] * num_labels + found[counts], minlength=num_labels**2)
    matrix = matrix.reshape(num_labels, num_labels)
    union = matrix.sum(0) + matrix.sum(1) - matrix.diagonal()
    there = matrix.sum(1) > 0
    return {"mean_iou": float((matrix.diagonal()[there] / union[there]).mean())}


# ---- sound ----


def audio_rows(folder: Path, split: str, column: str) -> Dataset:
    """Decoded clips, as an Audio column of datasets gives them (it needs torchcodec, which is not asked for here)."""
    import soundfile

    rows = load_dataset("csv", data_files=str(folder / split / "metadata.csv"), split="train")

    def decoded(row: dict) -> dict:
        samples, rate = soundfile.read(folder / split / row["file_name"], dtype="float32")
        return {"array": samples, "sampling_rate": rate, "target": row[column]}

    return rows.map(decoded, remove_columns=rows.column_names)


def audio_classification(case: dict[str, Any]) -> Trainer:
    """As run_audio_classification.py: the extractor in a transform of the dataset, Whisper's pads every clip to 30 s."""
    import soxr
    from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

    folder = Path(case["folder"])
    train, test = (audio_rows(folder, split, "label") for split in ("train", "test"))
    names = sorted(set(train["target"]))
    extractor = AutoFeatureExtractor.from_pretrained(case["model"])
    model = AutoModelForAudioClassification.from_pretrained(case["model"], num_labels=len(names))

    def transform(batch: dict[str, list]) -> dict[str, list]:
        clips = [
            soxr.resample(np.asarray(array, dtype=np.float32), rate, extractor.sampling_rate)
            for array, rate in zip(batch["array"], batch["sampling_rate"], strict=True)
        ]
        features = extractor(clips, sampling_rate=extractor.sampling_rate)
        return {
            "input_features": list(features["input_features"]),
            "labels": [names.index(name) for name in batch["target"]],
        }

    return Trainer(
        model=model,
        args=arguments(case, remove_unused_columns=False),
        train_dataset=train.with_transform(transform),
        eval_dataset=test.with_transform(transform),
        compute_metrics=accuracy,
        processing_class=extractor,
    )


def recognition_sets(case: dict[str, Any], processor: Any, *, lower: bool) -> Iterator[Dataset]:
    """Training and test rows as both scripts for recognition make them: features and token ids of the whole set, in a map."""
    extractor, tokenizer = processor.feature_extractor, processor.tokenizer
    name = extractor.model_input_names[0]

    def prepared(row: dict) -> dict:
        inputs = extractor(np.asarray(row["array"], dtype=np.float32), sampling_rate=row["sampling_rate"])
        text = row["target"].lower() if lower else row["target"]
        return {name: inputs[name][0], "labels": tokenizer(text).input_ids}

    for split in ("train", "test"):
        rows = audio_rows(Path(case["folder"]), split, "text")
        yield rows.map(prepared, remove_columns=rows.column_names)


def padded_labels(tokenizer: Any, examples: list[dict]) -> torch.Tensor:
    """Token ids, -100 where they are padding."""
    labels = tokenizer.pad([{"input_ids": example["labels"]} for example in examples], return_tensors="pt")
    return labels["input_ids"].masked_fill(labels.attention_mask.ne(1), -100)


def seq2seq(case: dict[str, Any]) -> Trainer:
    """As run_speech_recognition_seq2seq.py: features of the whole set in a map, generation in evaluation."""
    import jiwer
    from transformers import AutoModelForSpeechSeq2Seq, AutoProcessor

    processor = AutoProcessor.from_pretrained(case["model"])
    model = AutoModelForSpeechSeq2Seq.from_pretrained(case["model"])
    extractor, tokenizer = processor.feature_extractor, processor.tokenizer
    name = extractor.model_input_names[0]
    train, test = recognition_sets(case, processor, lower=True)

    def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
        batch = extractor.pad([{name: example[name]} for example in examples], return_tensors="pt")
        labels = padded_labels(tokenizer, examples)
        if (labels[:, 0] == model.config.decoder_start_token_id).all():
            labels = labels[:, 1:].contiguous()  # without it Moonshine's loss stops the script
        return {**batch, "labels": labels}

    def word_error_rate(prediction: Any) -> dict[str, float]:
        labels = np.where(prediction.label_ids == -100, tokenizer.pad_token_id, prediction.label_ids)
        found = np.where(prediction.predictions == -100, tokenizer.pad_token_id, prediction.predictions)
        texts = (tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (labels, found))
        return {"wer": jiwer.wer(*([text.strip().lower() or "-" for text in part] for part in texts))}

    return Seq2SeqTrainer(
        model=model,
        args=arguments(case, Seq2SeqTrainingArguments, predict_with_generate=True),
        train_dataset=train,
        eval_dataset=test,
        compute_metrics=word_error_rate,
        data_collator=collate,
        processing_class=extractor,
    )


def ctc(case: dict[str, Any]) -> Trainer:
    """As run_speech_recognition_ctc.py: normalised samples of the whole set in a map, all logits of the evaluation kept."""
    import jiwer
    from transformers import AutoModelForCTC, AutoProcessor

    import sft_hf.models.crnn  # noqa: F401  the architecture

    processor = AutoProcessor.from_pretrained(case["model"])
    model = AutoModelForCTC.from_pretrained(case["model"])
    extractor, tokenizer = processor.feature_extractor, processor.tokenizer
    train, test = recognition_sets(case, processor, lower=False)  # the vocabulary has the transcripts' own capitals

    def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
        samples = [{"input_values": example["input_values"]} for example in examples]
        batch = extractor.pad(samples, padding=True, return_tensors="pt")
        return {**batch, "labels": padded_labels(tokenizer, examples)}

    def word_error_rate(prediction: Any) -> dict[str, float]:
        found = tokenizer.batch_decode(prediction.predictions.argmax(axis=-1))
        labels = np.where(prediction.label_ids == -100, tokenizer.pad_token_id, prediction.label_ids)
        texts = (tokenizer.batch_decode(labels, group_tokens=False), found)
        return {"wer": jiwer.wer(*([text.strip() or "-" for text in part] for part in texts))}

    return Trainer(
        model=model,
        args=arguments(case),
        train_dataset=train,
        eval_dataset=test,
        compute_metrics=word_error_rate,
        data_collator=collate,
        processing_class=processor,
    )


SIDES = {
    "text": text,
    "images": images,
    "segmentation": segmentation,
    "audio_classification": audio_classification,
    "seq2seq": seq2seq,
    "ctc": ctc,
}


def main(case_file: str, figures_file: str) -> None:
    """Train, evaluate, save, and write the figures."""
    case = json.loads(Path(case_file).read_text())
    trainer, clock = SIDES[case["task"]](case), Clock()
    trainer.add_callback(clock)
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model()
    examples = case["max_steps"] * case["batch_size"] * trainer.args.world_size
    if trainer.is_world_process_zero():
        rate, metric = metrics["eval_samples_per_second"], metrics[f"eval_{case['metric']}"]
        write_figures(Path(figures_file), clock, examples=examples, evaluated=rate, metric=metric)


if __name__ == "__main__":
    main(*sys.argv[1:])
