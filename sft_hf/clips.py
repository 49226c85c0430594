"""What the tasks that hear share: finding clips, checking, reading, and batching what the feature extractor makes of them.

{"audio": {"bytes": b"...", "path": "a.flac"}}  ->  waveform (samples,) at the model's rate, and of it
                                                    {"input_features": float32 (80, 3000)}      in a dataloader's worker
                                                ->  float32 (batch, 80, 3000)                   on the device

Nothing of a clip is kept between epochs: the features of 960 hours are 221 GB (pitfall 26). What is drawn when one is read, the
part and its augmentation, is a function of seed, epoch and example (pitfall 44).
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from torch.nn import functional
from transformers import ASTFeatureExtractor, PretrainedConfig, PreTrainedModel, WhisperFeatureExtractor

from sft_hf.arguments import ModelArguments
from sft_hf.audio.augmentation import WAVEFORM_AUGMENTATIONS, WaveformAugmentation, spec_augment
from sft_hf.audio.decoding import UnreadableAudio, check_clip, decode, digest, read_header
from sft_hf.data.columns import require_column
from sft_hf.data.paths import as_encoded_audio, short_name
from sft_hf.data.rows import map_rows, refuse_or_skip
from sft_hf.data.sources import EXAMPLE_ID
from sft_hf.data.token_batches import Lengths
from sft_hf.errors import ArgumentError, DataError, ModelError
from sft_hf.pretrained import load_feature_extractor
from sft_hf.seeding import seeded
from sft_hf.task import AnyDataset, Batch, Columns, Task

logger = logging.getLogger(__name__)
# Columns of what was found out about a clip.
SECONDS, RATE, DIGEST = "seconds_of_the_clip", "sampling_rate_of_the_clip", "digest_of_the_clip"
FEATURES = ("input_values", "input_features")
NUM_SAMPLES = "num_samples"  # what a batch says of each waveform where the model hears padding
# Two steps of 20 ms, each with its window: below, convolutions have nothing to give, and variances over frames are of one.
SHORTEST_SECONDS = 0.05
AST_FRAME, AST_HOP = 400, 160  # samples; the extractor has them as numbers in its code
CROP = 2  # a further number of the key by which the parts of clips are drawn


@dataclass(frozen=True)
class Clips(Task):
    """A task whose one input is a clip of sound."""

    own_data: ClassVar[str] = "--dataset_name FOLDER"

    audio_column_name: str | None = field(default=None, metadata={"help": "Default: found by type and usual names."})
    augmentation: Literal["none", "light", "full"] = field(
        default="none", metadata={"help": "light: loudness and shifts in time; full: speed and noise too."}
    )
    spec_augment: bool = field(
        default=False,
        metadata={
            "help": "Mask parts of the spectrogram in training (SpecAugment); for models that read spectrograms."
        },
    )
    min_duration_seconds: float = field(
        default=0.0, metadata={"help": "Shorter clips are left out of training; evaluation keeps them."}
    )
    max_duration_seconds: float | None = field(
        default=None, metadata={"help": "Longer clips are left out of training; evaluation keeps them."}
    )
    on_bad_example: Literal["error", "skip"] = field(
        default="error", metadata={"help": "What files that cannot be decoded do: end the run, or be left out."}
    )

    def __post_init__(self):
        longest = self.max_duration_seconds
        if self.min_duration_seconds < 0 or (longest is not None and longest <= self.min_duration_seconds):
            raise ArgumentError(
                f"--min_duration_seconds {self.min_duration_seconds} --max_duration_seconds {longest}: expected two numbers "
                "of seconds, the second one larger."
            )

    @property
    def randomness(self) -> tuple[str, str] | None:
        """--augmentation, or --spec_augment."""
        if self.augmentation != "none":
            return f"--augmentation {self.augmentation}", "--augmentation none"
        return ("--spec_augment true", "--spec_augment false") if self.spec_augment else None

    # ---- before training ----

    def decodable(self, dataset: AnyDataset, columns: Columns, *, split: str) -> AnyDataset:
        """Encoded clips, all of which decode; the others end the run or are left out, as --on_bad_example says."""
        (column,) = columns.inputs
        require_column(dataset.column_names, column, split=split, flag="--audio_column_name")
        dataset = as_encoded_audio(dataset, column, place=columns.place)
        if isinstance(dataset, IterableDataset):
            return dataset.filter(_Decodes(column)) if self.on_bad_example == "skip" else dataset
        _refuse_taken_names(dataset, split)
        scans = map_rows(dataset.select_columns([column]), _Scan(column), f"checking the clips of {split}")
        # Added before rows are chosen: a later column would copy all that is in them.
        for name in (SECONDS, RATE, DIGEST):
            dataset = dataset.add_column(name, [scan[name] for scan in scans])
        reasons = [scan["reason"] for scan in scans]
        dataset = refuse_or_skip(dataset, reasons, self.on_bad_example, what=f"{split}: clips that cannot be decoded")
        _say_short_clips(dataset, split)
        return dataset

    def of_durations(self, dataset: AnyDataset, columns: Columns, *, split: str) -> AnyDataset:
        """Training clips from --min_duration_seconds to --max_duration_seconds; of the other splits all clips.

        Raises DataError where none is left.
        """
        shortest, longest = self.min_duration_seconds, self.max_duration_seconds or math.inf
        if split != "train" or (shortest == 0 and longest == math.inf):
            return dataset
        if isinstance(dataset, IterableDataset):
            return dataset.filter(_Lasts(columns.inputs[0], shortest, longest))
        seconds = np.asarray(dataset[SECONDS][:], dtype=float)
        keep = np.flatnonzero((seconds >= shortest) & (seconds <= longest))
        flags = f"--min_duration_seconds {shortest:g} or longer than --max_duration_seconds {self.max_duration_seconds}"
        if len(keep) == 0:
            raise DataError(f"train: all of the {len(seconds)} clips are shorter than {flags}.")
        if len(keep) < len(seconds):
            logger.warning(
                "train: %d of %d clips (%s of %s) are shorter than %s and are left out",
                len(seconds) - len(keep), len(seconds), as_hours(seconds.sum() - seconds[keep].sum()),
                as_hours(seconds.sum()), flags,
            )  # fmt: skip
        return dataset if len(keep) == len(seconds) else dataset.select(keep)

    def seconds_per_example(self, examples: AnyDataset) -> float | None:
        """Mean length of the clips; None of a stream."""
        return None if isinstance(examples, IterableDataset) else float(np.mean(examples["length"][:]))

    def lengths(self, examples: Dataset, processor: Any, *, split: str) -> Lengths | None:
        """Seconds of sound, in training the most that the augmentation makes of them."""
        seconds = np.asarray(examples["length"][:], dtype=float)
        if split == "train":
            _, seconds = WAVEFORM_AUGMENTATIONS[self.augmentation].durations(seconds)
        return Lengths(np.maximum(seconds, SHORTEST_SECONDS), "seconds", "--max_duration_seconds")

    def example_keys(self, dataset: Dataset, columns: Columns) -> list[str]:
        """A digest of each encoded clip: the same file in two splits is found, not the same words."""
        return dataset[DIGEST][:]

    def load_processor(self, model_args: ModelArguments, train: AnyDataset, columns: Columns) -> Any:
        """The model's feature extractor; the log says where clips are resampled for it."""
        extractor = load_feature_extractor(model_args)
        say_sampling_rates(train, extractor)
        return extractor

    def training_reader(self, processor: Any, *, seed: int) -> "ReadClip":
        """What decodes and augments a training clip."""
        extractor = extractor_of(processor)
        if self.spec_augment and not is_spectrogram(extractor):
            raise ArgumentError(
                "--spec_augment: the model reads waveforms and masks its own features; change by how much with "
                "--config_overrides mask_time_prob=0.05."
            )
        return ReadClip(extractor, WAVEFORM_AUGMENTATIONS[self.augmentation], self.spec_augment, seed)

    # ---- on the device, and what a person reads ----

    def on_device(self, batch: Batch, processor: Any, *, dtype: torch.dtype) -> Batch:
        """Features in the dtype of the model's weights."""
        return {name: value.to(dtype) if name in FEATURES else value for name, value in batch.items()}

    def describe_inputs(self, row: dict, columns: Columns) -> dict[str, Any]:
        """The file's name, and its folder's, where it has one; --push_examples publishes it."""
        return {name: file_name(row[name]) for name in columns.inputs}

    def pipeline_inputs(self, example: dict, columns: Columns, processor: Any) -> Any:
        """The waveform at the model's rate: the pipeline's own reading needs ffmpeg, its resampling torchaudio."""
        (column,) = columns.inputs
        rate = extractor_of(processor).sampling_rate
        return {"raw": filled_up(decode(example[column], sampling_rate=rate), rate), "sampling_rate": rate}


def extractor_of(processor: Any) -> Any:
    """The feature extractor, alone or of a processor."""
    return getattr(processor, "feature_extractor", processor)


def as_hours(seconds: float) -> str:
    """`1.5 hours`, `40.0 minutes` or `12.0 seconds`."""
    for unit, length in (("hours", 3600), ("minutes", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def file_name(clip: dict) -> str | None:
    """`zero/1.flac` of `/home/me/digits/zero/1.flac`, and of a file in an archive."""
    return short_name((clip or {}).get("path"))


def say_sampling_rates(train: AnyDataset, extractor: Any) -> None:
    """How long the training clips are together, and which are resampled for the model."""
    if isinstance(train, IterableDataset):
        return
    rates, seconds = np.asarray(train[RATE][:]), np.asarray(train[SECONDS][:])
    logger.info("train: %s of sound, the longest clip %.1f s", as_hours(seconds.sum()), seconds.max(initial=0))
    wanted = extractor.sampling_rate
    for rate in np.unique(rates[rates != wanted]):
        missing = f"; what is above {rate // 2} Hz is missing in them" if rate < wanted else ""
        logger.info(
            "%d clips have %d Hz and are resampled to the model's %d%s", (rates == rate).sum(), rate, wanted, missing
        )


def freeze_feature_encoder(model: PreTrainedModel) -> None:
    """Leave the convolutions on the waveform as they are; ModelError for a model without."""
    if not hasattr(model, "freeze_feature_encoder"):
        raise ModelError(
            f"--freeze_feature_encoder: {type(model).__name__} reads no waveform by convolutions of its own; "
            "--freeze_base_model trains the head alone."
        )
    model.freeze_feature_encoder()


def read_clip(row: dict, *, sampling_rate: int, start_seconds: float = 0.0, seconds: float | None = None) -> np.ndarray:
    """The waveform of a preprocessed row, float32 (samples,); DataError with the row's id for one that is none."""
    try:
        return decode(row["audio"], sampling_rate=sampling_rate, start_seconds=start_seconds, seconds=seconds)
    except UnreadableAudio as error:
        raise _unreadable(row, error) from None


def seconds_of(row: dict) -> float:
    """How long the clip of a preprocessed row is; a stream's says it by its header, or DataError with the row's id."""
    return row["length"] if "length" in row else _header_seconds(row, "audio")


@dataclass(frozen=True)
class ReadClip:
    """A preprocessed row and the epoch to the features of a training clip; a function of both and the seed.

    Of a clip that is longer than `longest_seconds` a random part is read, and nothing else is decoded. It is as much as is left of
    it at the highest speed; what the augmentation leaves over is cut off at either end.
    """

    extractor: Any
    augment: WaveformAugmentation
    spec_augment: bool
    seed: int

    def __call__(self, row: dict, epoch: int, *, longest_seconds: float = math.inf) -> dict[str, np.ndarray]:
        key = {"seed": self.seed, "epoch": epoch, "example_id": row[EXAMPLE_ID]}
        rate = self.extractor.sampling_rate
        with seeded(self.seed, epoch, row[EXAMPLE_ID], CROP):
            place, second_place = torch.rand(2, dtype=torch.float64).tolist()
        waveform = self.augment(self._part(row, longest_seconds, place), sampling_rate=rate, **key)
        if len(waveform) > longest_seconds * rate:
            size = round(longest_seconds * rate)
            start = int(second_place * (len(waveform) - size + 1))
            waveform = waveform[start : start + size]
        features = extracted(self.extractor, waveform)
        return masked(self.extractor, features, num_samples=len(waveform), **key) if self.spec_augment else features

    def _part(self, row: dict, longest_seconds: float, place: float) -> np.ndarray:
        _, fastest = self.augment.speed_percent
        seconds = longest_seconds * fastest / 100
        part = {}
        if seconds < math.inf and (spare := seconds_of(row) - seconds) > 0:
            part = {"start_seconds": spare * place, "seconds": seconds}
        return read_clip(row, sampling_rate=self.extractor.sampling_rate, **part)


def masked(extractor: Any, features: dict[str, np.ndarray], *, num_samples: int, **key: int) -> dict[str, np.ndarray]:
    """The features of a clip of `num_samples`, with SpecAugment on the frames of sound alone, not on what fills them up."""
    name = next(name for name in FEATURES if name in features)
    spectrogram, layout, num_frames = features[name], "frames_bins", None
    if isinstance(extractor, WhisperFeatureExtractor):
        layout, num_frames = "bins_frames", -(-num_samples // extractor.hop_length)
    elif isinstance(extractor, ASTFeatureExtractor):
        num_frames = 1 + max(num_samples - AST_FRAME, 0) // AST_HOP
    else:  # of w2v-BERT a row holds two frames
        spectrogram = spectrogram.reshape(-1, extractor.num_mel_bins)
    spectrogram = spec_augment(spectrogram, layout=layout, num_frames=num_frames, **key)
    return {**features, name: spectrogram.reshape(features[name].shape)}


def longest_seconds(dataset: AnyDataset) -> float | None:
    """Of the longest clip; None of a stream."""
    return None if isinstance(dataset, IterableDataset) else max(dataset[SECONDS][:], default=None)


def is_spectrogram(extractor: Any) -> bool:
    """Whether an extractor makes spectrograms, of whatever name."""
    return isinstance(extractor, ASTFeatureExtractor) or "input_features" in extractor.model_input_names


def filled_up(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """A waveform, with silence behind it where it is shorter than what any model has a frame for."""
    missing = math.ceil(SHORTEST_SECONDS * sampling_rate) - len(waveform)
    return np.pad(waveform, (0, missing)) if missing > 0 else waveform


def extracted(extractor: Any, waveform: np.ndarray) -> dict[str, np.ndarray]:
    """What a feature extractor makes of one clip, without the dimension of the batch."""
    rate = extractor.sampling_rate
    features = extractor(filled_up(waveform, rate), sampling_rate=rate, return_tensors="np")
    return {name: np.asarray(value)[0] for name, value in features.items()}


def collated(extractor: Any, features: Sequence[dict[str, np.ndarray]], *, hears_padding: bool = False) -> Batch:
    """Features of clips as tensors (batch, ...), padded by the extractor's own rule where lengths differ.

    Where the model hears padding, `num_samples` (batch,) says where it begins.
    """
    first = features[0]
    if all(one[name].shape == first[name].shape for one in features for name in first):
        batch = {name: torch.from_numpy(np.stack([one[name] for one in features])) for name in first}
    else:
        batch = dict(extractor.pad(list(features), padding=True, return_tensors="pt"))
    if hears_padding:
        batch[NUM_SAMPLES] = torch.tensor([len(one["input_values"]) for one in features])
    return batch


def hears_padding(extractor: Any, config: PretrainedConfig) -> bool:
    """Whether a waveform's padding changes what a model makes of it.

    Without an attention mask it is a part of the clip, and group normalisation (wav2vec2-base, Moonshine) counts it in spite of
    one.
    """
    if is_spectrogram(extractor):
        return False
    counts_padding = config.model_type == "moonshine" or getattr(config, "feat_extract_norm", None) == "group"
    return not extractor.return_attention_mask or counts_padding


def parts_of_one_length(inputs: Batch, batch: Batch) -> Iterator[Batch]:
    """What a model hears at once in evaluation, of the inputs in a batch: no more of them than the batch has clips.

    Where `num_samples` (inputs,) tells lengths, they are neighbours of one length, without padding.
    """
    number, at_most = len(next(iter(inputs.values()))), len(batch[EXAMPLE_ID])
    lengths = batch[NUM_SAMPLES].tolist() if NUM_SAMPLES in batch else [None] * number
    start = 0
    for length, run in groupby(lengths):
        stop = start + len(list(run))
        for first in range(start, stop, at_most):
            part = slice(first, min(first + at_most, stop))
            yield {name: value[part] if length is None else value[part, :length] for name, value in inputs.items()}
        start = stop


def with_room_for_masks(model: PreTrainedModel, batch: Batch) -> Batch:
    """A training batch, padded to the spans that wav2vec2 and its kind mask: they refuse one of shorter clips alone."""
    config = model.config
    if not getattr(config, "apply_spec_augment", True) or not getattr(config, "mask_time_prob", 0):
        return batch
    if not any(name in batch for name in FEATURES):
        return batch  # what a frozen base made of them
    name, needed = next(name for name in FEATURES if name in batch), config.mask_time_length
    if name == "input_values":
        if not hasattr(config, "conv_kernel"):  # builtin:crnn cuts its masks to the clip
            return batch
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride), strict=True):
            needed = (needed - 1) * stride + kernel
    missing = needed - batch[name].shape[1]
    if missing <= 0:
        return batch
    padded = {name: functional.pad(batch[name], (0, 0) * (batch[name].ndim - 2) + (0, missing))}
    if "attention_mask" in batch:
        padded["attention_mask"] = functional.pad(batch["attention_mask"], (0, missing))
    return {**batch, **padded}


def _refuse_taken_names(dataset: Dataset, split: str) -> None:
    for name in (SECONDS, RATE, DIGEST):
        if name in dataset.column_names:
            raise DataError(
                f"The {split} split has a column {name}, a name for what is found out: rename or remove it."
            )


def _say_short_clips(dataset: Dataset, split: str) -> None:
    number = sum(seconds < SHORTEST_SECONDS for seconds in dataset[SECONDS][:])
    if number:
        logger.warning(
            "%s: %d of %d clips are shorter than %g s and get silence behind them; --min_duration_seconds leaves such clips "
            "out of training",
            split, number, len(dataset), SHORTEST_SECONDS,
        )  # fmt: skip


def _header_seconds(row: dict, column: str) -> float:
    try:
        return read_header(row[column]).seconds
    except UnreadableAudio as error:
        raise _unreadable(row, error) from None


def _unreadable(row: dict, error: UnreadableAudio) -> DataError:
    """What a clip that went bad after it was checked, or that a stream brought, says."""
    return DataError(f"example {row[EXAMPLE_ID]}: {error}. --on_bad_example skip leaves such clips out.")


@dataclass(frozen=True)
class _Scan:
    """What is wrong with a clip, None for nothing, and what its header says."""

    column: str

    def __call__(self, row: dict) -> dict:
        reason, header = check_clip(row[self.column])
        if reason or header is None:
            return {"reason": reason, SECONDS: None, RATE: None, DIGEST: None}
        return {
            "reason": None,
            SECONDS: header.seconds,
            RATE: header.sampling_rate,
            DIGEST: digest(row[self.column]),
        }


@dataclass(frozen=True)
class _Decodes:
    """A picklable filter for streams."""

    column: str

    def __call__(self, row: dict) -> bool:
        reason, _ = check_clip(row[self.column])
        if reason:
            logger.warning("left out: %s", reason)
        return reason is None


@dataclass(frozen=True)
class _Lasts:
    """A picklable filter for streams."""

    column: str
    shortest: float
    longest: float

    def __call__(self, row: dict) -> bool:
        return self.shortest <= _header_seconds(row, self.column) <= self.longest
