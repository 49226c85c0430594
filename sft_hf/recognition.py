"""What recognisers of speech share, whatever their loss: transcripts, scores, and the same clip through transformers.pipeline.

{"audio": {"bytes": b"...", "path": "an251-fash-b.flac"}, "text": "YES"}
-> {"input_values": float32 (samples,), "labels": [27, 7, 21]}, in evaluation with "text": "YES"     read on the fly, in workers
-> "YES", compared with the transcript after a normaliser and as it stands

The two tasks differ in how a text becomes token ids (`text_encoder`), which training clips those ids do not fit (`misfit_rule`),
the forward pass with its loss, and `predict`.
"""

import logging
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import Dataset, Features, IterableDataset
from torch import Tensor
from transformers import PreTrainedModel

from sft_hf.arguments import ModelArguments
from sft_hf.audio.augmentation import WAVEFORM_AUGMENTATIONS
from sft_hf.clips import (
    SECONDS,
    Clips,
    ReadClip,
    as_hours,
    collated,
    extracted,
    extractor_of,
    file_name,
    read_clip,
    seconds_of,
)
from sft_hf.data.columns import find_audio_column, find_transcript_column, require_column
from sft_hf.data.labels import TRANSCRIPTION, Labels
from sft_hf.data.rows import renamed
from sft_hf.data.sources import EXAMPLE_ID, Source
from sft_hf.data.transcripts import load_normalizer
from sft_hf.losses import IGNORE_INDEX
from sft_hf.metrics import Metrics, TranscriptionMetrics
from sft_hf.report.transcripts import write_worst_utterances
from sft_hf.task import AnyDataset, Batch, Columns

logger = logging.getLogger(__name__)
STREAM_PEEK = 100  # rows of a streamed test split that tell whether it has transcripts
NUM_WORST = 30  # utterances in the report

EncodeText = Callable[[str], list[int]]
# Token ids, and the shortest and the longest that their clip becomes in seconds -> the reason, as the log says it.
MisfitRule = Callable[[Sequence[int], tuple[float, float]], str | None]


@dataclass(frozen=True)
class Recognition(Clips):
    """Sound to text, with token ids as labels."""

    pipeline_tag: ClassVar[str] = "automatic-speech-recognition"

    text_column_name: str | None = field(
        default=None, metadata={"help": "The transcripts' column; default: found by type and usual names."}
    )
    normalizer: Literal["none", "basic", "english"] = field(
        default="basic",
        metadata={"help": "Whisper's rules before wer and cer; wer_raw and cer_raw are of the texts as they stand."},
    )

    # ---- what each recogniser says for itself ----

    @abstractmethod
    def text_encoder(self, processor: Any, model: PreTrainedModel) -> EncodeText:
        """What makes of a transcript the token ids that the model is trained to give; picklable."""

    @abstractmethod
    def misfit_rule(self, processor: Any, model: PreTrainedModel) -> MisfitRule:
        """What says why a clip cannot be trained on with its token ids; picklable."""

    def check_transcripts(self, texts: Sequence[str], processor: Any, model: PreTrainedModel, *, split: str) -> None:
        """What the transcripts of a whole split, before any of it is left out, have to say to the log or to the model's settings."""

    # ---- what the data mean ----

    def columns(self, features: Features) -> Columns:
        """The clip's column, and the transcript's."""
        text = find_transcript_column(features, given=self.text_column_name, exclude=(EXAMPLE_ID,))
        return Columns((find_audio_column(features, given=self.audio_column_name, exclude=(text, EXAMPLE_ID)),), text)

    def labels(self, source: Source, columns: Columns) -> Labels:
        """No classes: what a label is is the tokenizer's to say."""
        return Labels(TRANSCRIPTION, (), columns.label or "")

    def select_examples(self, dataset: AnyDataset, columns: Columns, labels: Labels, *, split: str) -> AnyDataset:
        """Drop clips that cannot be decoded, as --on_bad_example says, rows without a transcript and, from training, empty ones."""
        if split == "test" and not self._has_transcripts(dataset, columns):
            logger.info("the test split has no transcripts: its predictions are written, nothing is scored")
            kept = [name for name in dataset.column_names if name != columns.label]
            return self.decodable(dataset.select_columns(kept), columns, split=split)
        require_column(dataset.column_names, columns.label, split=split, flag="--text_column_name")
        dataset = self.decodable(dataset, columns, split=split)
        is_transcribed = _IsTranscribed(columns.label, empty_too=split != "train")
        if isinstance(dataset, IterableDataset):
            return dataset.filter(is_transcribed)
        keep = [row for row, text in enumerate(dataset[columns.label][:]) if is_transcribed({columns.label: text})]
        if len(keep) < len(dataset):
            logger.warning(
                "%s: %d of %d clips have no transcript and are left out", split, len(dataset) - len(keep), len(dataset)
            )
            dataset = dataset.select(keep)
        return dataset

    def _has_transcripts(self, dataset: AnyDataset, columns: Columns) -> bool:
        if columns.label not in (dataset.column_names or []):
            return False
        rows = dataset.select_columns([columns.label])
        return any(
            row[columns.label] for row in (rows.take(STREAM_PEEK) if isinstance(rows, IterableDataset) else rows)
        )

    def stratify(self, train: Dataset, columns: Columns, labels: Labels) -> None:
        """A hold-out is drawn at random; --validation_group_column keeps speakers apart."""
        return

    # ---- examples ----

    def preprocess(
        self,
        dataset: AnyDataset,
        columns: Columns,
        labels: Labels,
        processor: Any,
        model: PreTrainedModel,
        *,
        split: str,
        num_workers: int | None = None,
    ) -> AnyDataset:
        """The encoded clip as `audio`, the transcript as `labels`, `example_id`, `length` in seconds; nothing is decoded yet."""
        names = {columns.inputs[0]: "audio", columns.label: "labels", SECONDS: "length", EXAMPLE_ID: EXAMPLE_ID}
        dataset = renamed(self.of_durations(dataset, columns, split=split), names)
        augmentation = self.augmentation if split == "train" else "none"
        fits = _Fits(self.text_encoder(processor, model), self.misfit_rule(processor, model), augmentation)
        if isinstance(dataset, IterableDataset):
            return dataset.filter(fits) if split == "train" else dataset
        if "labels" not in dataset.column_names:
            return dataset
        self.check_transcripts(dataset["labels"][:], processor, model, split=split)
        return _fitting(dataset, fits, split)

    def load_reader(
        self, processor: Any, model: PreTrainedModel, columns: Columns, labels: Labels, *, split: str, seed: int
    ) -> Callable[[dict, int], dict]:
        """Decode, extract features and, in training, augment; the transcript to token ids."""
        read = self.training_reader(processor, seed=seed) if split == "train" else _ReadWhole(extractor_of(processor))
        return _ReadUtterance(self.text_encoder(processor, model), read, keeps_text=split != "train")

    # ---- evaluation ----

    def references(self, batch: Batch) -> list[str]:
        """The transcripts as they stand in the data."""
        return batch["text"]

    def load_metrics(self, labels: Labels, model_args: ModelArguments) -> Metrics:
        """Word and character error rates."""
        return TranscriptionMetrics(load_normalizer(self.normalizer))

    def describe(self, kept: str, labels: Labels, thresholds: np.ndarray | None) -> dict[str, Any]:
        """The text."""
        return {"prediction": kept}

    def describe_label(self, row: dict, columns: Columns, labels: Labels, feature: Any) -> str | None:
        """The transcript."""
        return row.get(columns.label)

    def report_metrics(self, metrics: Metrics, rows: AnyDataset, columns: Columns, *, folder: Path, split: str) -> None:
        """The worst utterances of a split, reference above hypothesis, `worst_utterances_<split>.html`."""
        worst, names = metrics.worst(NUM_WORST), {}
        if isinstance(rows, Dataset):
            wanted = {utterance.example_id for utterance in worst}
            chosen = [row for row, key in enumerate(rows[EXAMPLE_ID][:]) if key in wanted]
            names = {row[EXAMPLE_ID]: file_name(row[columns.inputs[0]]) for row in rows.select(chosen)}
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / f"worst_utterances_{split}.html"
        write_worst_utterances(page, worst, metric=metrics.main, names=names)

    # ---- transformers.pipeline ----

    def pipeline_options(self) -> dict[str, Any]:
        """Nothing: how the model generates is in its generation configuration."""
        return {}

    def reload_difference(self, predictions: list[str], answers: list[dict], labels: Labels) -> float:
        """The character error rate of the pipeline's texts against the trainer's."""
        import jiwer

        expected, found = [text.strip() for text in predictions], [answer["text"].strip() for answer in answers]
        edits = jiwer.process_characters(expected, found)
        return (edits.substitutions + edits.deletions + edits.insertions) / max(sum(map(len, expected)), 1)

    def usage_example(self) -> str:
        """A line of the model card."""
        return 'recogniser("clip.wav")'


def padded_labels(labels: Sequence[Sequence[int]], value: int = IGNORE_INDEX) -> Tensor:
    """`(batch, longest)` int64, filled up on the right with `value`."""
    padded = torch.full((len(labels), max(map(len, labels))), value, dtype=torch.long)
    for row, ids in zip(padded, labels, strict=True):
        row[: len(ids)] = torch.tensor(ids, dtype=torch.long)
    return padded


def batch_of(extractor: Any, examples: list[dict], *, hears_padding: bool = False) -> Batch:
    """`collated` features, `example_id`, `labels` padded with -100 and, in evaluation, `text`, where the examples have them."""
    batch = collated(extractor, [example["features"] for example in examples], hears_padding=hears_padding)
    batch[EXAMPLE_ID] = torch.tensor([example[EXAMPLE_ID] for example in examples])
    if "labels" in examples[0]:
        batch["labels"] = padded_labels([example["labels"] for example in examples])
    if "text" in examples[0]:
        batch["text"] = [example["text"] for example in examples]
    return batch


@dataclass(frozen=True)
class _IsTranscribed:
    """A picklable filter for streams."""

    column: str
    empty_too: bool

    def __call__(self, row: dict) -> bool:
        text = row[self.column]
        return text is not None and (self.empty_too or bool(text.strip()))


@dataclass(frozen=True, eq=False)
class _Fits:
    """A picklable filter for streams, and what it is made of."""

    encode: EncodeText
    misfit: MisfitRule
    augmentation: str

    def reason(self, text: str, seconds: float) -> str | None:
        ids = self.encode(text)
        reason = self.misfit(ids, WAVEFORM_AUGMENTATIONS[self.augmentation].durations(seconds))
        if reason is None or self.misfit(ids, (seconds, seconds)):
            return reason
        return f"{reason} once --augmentation {self.augmentation} has changed them"

    def __call__(self, row: dict) -> bool:
        reason = self.reason(row["labels"], seconds_of(row))
        if reason:
            logger.warning("train: example %d is left out: clips %s", row[EXAMPLE_ID], reason)
        return reason is None


def _fitting(dataset: Dataset, fits: _Fits, split: str) -> Dataset:
    """Training clips that their labels fit; in evaluation all, with a count of those that do not."""
    seconds = dataset["length"][:]
    reasons = [fits.reason(text, length) for text, length in zip(dataset["labels"][:], seconds, strict=True)]
    for reason, number in Counter(reason for reason in reasons if reason).items():
        outcome = "left out" if split == "train" else "scored like any other"
        logger.warning("%s: %d of %d clips %s; they are %s", split, number, len(dataset), reason, outcome)
    if split != "train" or not any(reasons):
        return dataset
    left_out = sum(length for length, reason in zip(seconds, reasons, strict=True) if reason)
    logger.warning("train: %s of sound are left out", as_hours(left_out))
    return dataset.select([row for row, reason in enumerate(reasons) if not reason])


@dataclass(frozen=True)
class _ReadWhole:
    """A preprocessed row to the features of its whole clip, as they are."""

    extractor: Any

    def __call__(self, row: dict, epoch: int) -> dict[str, np.ndarray]:
        return extracted(self.extractor, read_clip(row, sampling_rate=self.extractor.sampling_rate))


@dataclass(frozen=True)
class _ReadUtterance:
    """A preprocessed row and the epoch to `features`, `labels`, `text` and `example_id`."""

    encode: EncodeText
    read: ReadClip | _ReadWhole
    keeps_text: bool

    def __call__(self, row: dict, epoch: int) -> dict:
        example = {"features": self.read(row, epoch), EXAMPLE_ID: row[EXAMPLE_ID]}
        text = row.get("labels")
        if text is None:
            return example
        example["labels"] = self.encode(text)
        return {**example, "text": text} if self.keeps_text else example
