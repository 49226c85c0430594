"""Audio classification: a clip of sound to one class, several labels, or numbers.

{"audio": {"bytes": b"...", "path": "seven/1.flac"}, "label": "seven"}
-> {"windows": [{"input_features": float32 (80, 100)}], "labels": 7}     read on the fly, in the dataloader's workers
-> logits (batch, num_labels)

In training a window is a random crop. In evaluation it is the whole clip, or what covers it, and the windows' probabilities are
averaged.
"""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset, Features, IterableDataset
from torch import Tensor, nn
from transformers import (
    ASTFeatureExtractor,
    AutoModelForAudioClassification,
    PreTrainedModel,
    WhisperFeatureExtractor,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from sft_hf.arguments import ModelArguments
from sft_hf.audio.windows import mean_of_windows, windows_of
from sft_hf.classification import ENCODED_LABEL, Classification, EncodeLabel, labels_tensor, model_inputs
from sft_hf.clips import (
    AST_HOP,
    NUM_SAMPLES,
    SECONDS,
    Clips,
    ReadClip,
    collated,
    extracted,
    freeze_feature_encoder,
    hears_padding,
    longest_seconds,
    parts_of_one_length,
    read_clip,
    say_sampling_rates,
    with_room_for_masks,
)
from sft_hf.data.columns import find_audio_column
from sft_hf.data.labels import Labels
from sft_hf.data.rows import renamed
from sft_hf.data.sources import EXAMPLE_ID
from sft_hf.data.token_batches import Lengths
from sft_hf.errors import ArgumentError
from sft_hf.losses import Loss
from sft_hf.pretrained import load_config, load_model, resolve_model
from sft_hf.task import AnyDataset, Batch, Columns

logger = logging.getLogger(__name__)
LONGEST_CROP_SECONDS = 20.0
HEARD_WHOLE_SECONDS = 120.0  # of longer clips the log says that their windows can be averaged instead
AST_PATCH = 16  # frames: more than what a grid of patches can leave over at the end
FRAMES_PER_POSITION = 2  # of Whisper: the stride of its second convolution
NUM_WINDOWS = "num_windows"  # what a batch says of each clip


@dataclass(frozen=True)
class AudioClassification(Clips, Classification):
    """Any AutoModelForAudioClassification, of waveforms or of log-mel spectrograms, and builtin:crnn."""

    pipeline_tag: ClassVar[str] = "audio-classification"

    max_length_seconds: float | None = field(
        default=None,
        metadata={
            "help": "What training hears of longer clips, a random part; default: 20, for Whisper and AST the longest clip."
        },
    )
    average_windows: bool = field(
        default=False,
        metadata={
            "help": "Evaluate longer clips by windows of --max_length_seconds; Whisper and AST always do, by theirs."
        },
    )
    freeze_feature_encoder: bool = field(
        default=False,
        metadata={"help": "Do not train the convolutions that read the waveform (wav2vec2 and its kind)."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.max_length_seconds is not None and not 0 < self.max_length_seconds < math.inf:
            raise ArgumentError(
                f"--max_length_seconds {self.max_length_seconds}: expected a number of seconds larger than 0."
            )

    def columns(self, features: Features) -> Columns:
        """The clip's column, and the label's."""
        label = self.find_label(features)
        return Columns((find_audio_column(features, given=self.audio_column_name, exclude=(label, EXAMPLE_ID)),), label)

    def select_examples(self, dataset: AnyDataset, columns: Columns, labels: Labels, *, split: str) -> AnyDataset:
        """Drop clips that cannot be decoded, as --on_bad_example says, and rows without a label."""
        return self.select_labelled(self.decodable(dataset, columns, split=split), columns, labels, split=split)

    # ---- processor and model ----

    def load_processor(self, model_args: ModelArguments, train: AnyDataset, columns: Columns) -> Any:
        """The model's feature extractor; Whisper's and AST's with a window no longer than the longest training clip."""
        if resolve_model(model_args).architecture == "crnn":
            from sft_hf.models.crnn import build_feature_extractor

            extractor = build_feature_extractor()
            say_sampling_rates(train, extractor)
            return extractor
        extractor = super().load_processor(model_args, train, columns)
        longest = min(longest_seconds(train) or math.inf, self.max_duration_seconds or math.inf)
        return with_window(extractor, self.max_length_seconds or longest)

    def load_model(self, model_args: ModelArguments, labels: Labels, processor: Any) -> PreTrainedModel:
        """The model with a head for the labels; Whisper and AST with positions for the extractor's window alone."""
        model = load_model(AutoModelForAudioClassification, load_config(model_args, labels), model_args)
        if isinstance(processor, WhisperFeatureExtractor):
            keep_positions(model, processor.nb_max_frames // FRAMES_PER_POSITION)
        elif isinstance(processor, ASTFeatureExtractor):
            keep_patches(model, processor.max_length)
        if self.freeze_feature_encoder:
            freeze_feature_encoder(model)
        return model

    def _training_seconds(self, extractor: Any) -> float:
        """How much of a clip training hears at once."""
        fixed = fixed_seconds(extractor)
        return min(self.max_length_seconds or fixed or LONGEST_CROP_SECONDS, fixed or math.inf)

    def _evaluation_samples(self, extractor: Any) -> int | None:
        """The size of a window in evaluation; None where clips are heard whole."""
        seconds = self._training_seconds(extractor) if self.average_windows else fixed_seconds(extractor)
        return None if seconds is None else round(seconds * extractor.sampling_rate)

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
        """The encoded clip as `audio`, `labels` where known, `example_id`, `length` in seconds; nothing is decoded yet."""
        dataset = self.of_durations(dataset, columns, split=split)
        if isinstance(dataset, IterableDataset):
            encode = EncodeLabel("audio", columns, labels, columns.label_feature(dataset))
            return dataset.map(encode, remove_columns=list(dataset.column_names))
        if split != "train" and self._evaluation_samples(processor) is None:
            _say_long_clips(dataset, split)
        names = {columns.inputs[0]: "audio", ENCODED_LABEL: "labels", SECONDS: "length", EXAMPLE_ID: EXAMPLE_ID}
        return renamed(dataset, names)

    def lengths(self, examples: Dataset, processor: Any, *, split: str) -> Lengths | None:
        """Seconds of sound, in training at most those of a part; None where clips are windows of one size."""
        if fixed_seconds(processor) or (split != "train" and self._evaluation_samples(processor)):
            return None
        whole = super().lengths(examples, processor, split=split)
        if split != "train":
            return whole
        return Lengths(np.minimum(whole.values, self._training_seconds(processor)), "seconds", "--max_length_seconds")

    def load_reader(
        self, processor: Any, model: PreTrainedModel, columns: Columns, labels: Labels, *, split: str, seed: int
    ) -> Callable[[dict, int], dict]:
        """Decode a random part and augment it, or all windows of the clip."""
        if split != "train":
            return _ReadWindows(processor, self._evaluation_samples(processor))
        return _ReadPart(self.training_reader(processor, seed=seed), self._training_seconds(processor))

    def data_collator(self, processor: Any, model: PreTrainedModel) -> Callable[[list[dict]], Batch]:
        """Pads features as the extractor does, and stacks labels."""
        return WindowCollator(processor, model.config.problem_type, hears_padding(processor, model.config))

    def why_inputs_vary(self, train: AnyDataset, processor: Any, model: PreTrainedModel) -> str | None:
        """Random parts of longer clips, and padding that the model hears: another one in every batch."""
        if hears_padding(processor, model.config):
            return "the model hears the padding of a batch"
        heard = self._training_seconds(processor)
        if max(train["length"][:]) > heard:
            return f"of clips longer than {heard:g} s every epoch hears another part (--max_length_seconds)"
        return None

    # ---- evaluation ----

    def loss_sums(self, loss: Loss, model: PreTrainedModel, batch: Batch) -> tuple[Any, dict[str, Tensor]]:
        """As of any classification; in evaluation the logits of a clip's windows are first made one."""
        inputs = {name: value for name, value in model_inputs(batch).items() if name not in (NUM_WINDOWS, NUM_SAMPLES)}
        bare = getattr(model, "module", model)
        if model.training:
            outputs = model(**with_room_for_masks(bare, inputs))
        else:
            # A clip of an hour has hundreds of windows.
            parts = parts_of_one_length(inputs, batch)
            outputs = SequenceClassifierOutput(logits=torch.cat([model(**part).logits for part in parts]))
        if NUM_WINDOWS in batch:
            counts = batch[NUM_WINDOWS].tolist()
            outputs.logits = mean_of_windows(outputs.logits, counts, bare.config.problem_type)
        return outputs, loss.sums(outputs.logits, batch["labels"]) if "labels" in batch else {}

    # ---- transformers.pipeline ----

    def pipeline_inputs(self, example: dict, columns: Columns, processor: Any) -> list[dict]:
        """The windows of the clip, which the pipeline, too, sees one by one."""
        whole = super().pipeline_inputs(example, columns, processor)
        return [{**whole, "raw": window} for window in windows_of(whole["raw"], self._evaluation_samples(processor))]

    def pipeline_options(self) -> dict[str, Any]:
        """All scores."""
        return {"top_k": None}

    def reload_difference(self, predictions: list[np.ndarray], answers: list[Any], labels: Labels) -> float:
        """As of any classification, of the mean over the answers for a clip's windows."""
        return super().reload_difference(predictions, [_mean_answer(windows) for windows in answers], labels)

    def usage_example(self) -> str:
        """A line of the model card."""
        return 'classifier("clip.wav")'


# ---- models ----


def fixed_seconds(extractor: Any) -> float | None:
    """The one length to which an extractor pads and cuts its clips; None where it takes them as they are."""
    if isinstance(extractor, WhisperFeatureExtractor):
        return float(extractor.chunk_length)
    if isinstance(extractor, ASTFeatureExtractor):
        return extractor.max_length * AST_HOP / extractor.sampling_rate
    return None


def with_window(extractor: Any, seconds: float) -> Any:
    """An extractor whose fixed length is no longer than what clips of `seconds` need; any other as it is.

    Whisper's is a whole number of seconds.
    """
    before = fixed_seconds(extractor)
    if before is None or seconds >= before:
        return extractor
    if isinstance(extractor, WhisperFeatureExtractor):
        settings = {"chunk_length": math.ceil(seconds)}
    else:
        frames = math.ceil(seconds * extractor.sampling_rate / AST_HOP) + AST_PATCH
        settings = {"max_length": min(frames, extractor.max_length)}
    extractor = type(extractor).from_dict({**extractor.to_dict(), **settings})
    logger.info(
        "clips are padded to %g s, not to %g; --max_length_seconds changes it", fixed_seconds(extractor), before
    )
    return extractor


def keep_positions(model: PreTrainedModel, number: int) -> None:
    """Whisper's encoder for `number` positions: it refuses clips of any other length than its own (pitfalls 39 and 43).

    Its position embeddings are those of the first seconds, since they are sinusoids of the place from the beginning.
    """
    encoder = model.encoder
    if encoder.max_source_positions == number:
        return
    positions = encoder.embed_positions.weight[:number].detach().clone()
    encoder.embed_positions = nn.Embedding(number, positions.shape[1], _weight=positions)
    encoder.embed_positions.requires_grad_(False)
    encoder.max_source_positions = encoder.config.max_source_positions = model.config.max_source_positions = number


def keep_patches(model: PreTrainedModel, max_length: int) -> None:
    """AST for spectrograms of `max_length` frames.

    Its position embeddings, one for each patch of a grid of frequency and time, are those of the middle of the longer clips that it
    was trained on, as in the authors' code (https://github.com/YuanGongND/ast, `ast_models.py`).
    """
    embeddings = model.audio_spectrogram_transformer.embeddings
    num_bands, before = embeddings.get_shape(model.config)
    embeddings.config.max_length = model.config.max_length = max_length
    _, after = embeddings.get_shape(model.config)
    if after == before:
        return
    # Two tokens that stand for the whole clip come first.
    tokens, patches = embeddings.position_embeddings.detach().tensor_split([2], dim=1)
    start = (before - after) // 2
    patches = patches.unflatten(1, (num_bands, before))[:, :, start : start + after].flatten(1, 2)
    embeddings.position_embeddings = nn.Parameter(torch.cat([tokens, patches], dim=1))


# ---- examples ----


def _say_long_clips(dataset: Any, split: str) -> None:
    longest = longest_seconds(dataset) or 0
    if longest > HEARD_WHOLE_SECONDS:
        logger.warning(
            "%s: the longest clip lasts %.0f s and is heard whole, which takes memory; --average_windows cuts it",
            split,
            longest,
        )


@dataclass(frozen=True)
class _ReadPart:
    """A preprocessed row and the epoch to one window: a random part of a clip that is longer than `seconds`."""

    read: ReadClip
    seconds: float

    def __call__(self, row: dict, epoch: int) -> dict:
        return {**_without_clip(row), "windows": [self.read(row, epoch, longest_seconds=self.seconds)]}


@dataclass(frozen=True)
class _ReadWindows:
    """A preprocessed row to the windows that cover its clip."""

    extractor: Any
    size: int | None

    def __call__(self, row: dict, epoch: int) -> dict:
        waveform = read_clip(row, sampling_rate=self.extractor.sampling_rate)
        windows = [extracted(self.extractor, window) for window in windows_of(waveform, self.size)]
        return {**_without_clip(row), "windows": windows}


def _without_clip(row: dict) -> dict:
    return {name: value for name, value in row.items() if name != "audio"}


@dataclass(frozen=True)
class WindowCollator:
    """Examples to their features, `labels` and `example_id`.

    Where clips have several windows, `num_windows` (clips,) counts them; where the model hears padding, `num_samples` (windows,)
    says where it begins.
    """

    extractor: Any
    problem_type: str
    hears_padding: bool

    def __call__(self, examples: list[dict]) -> Batch:
        windows = [window for example in examples for window in example["windows"]]
        batch = collated(self.extractor, windows, hears_padding=self.hears_padding)
        batch[EXAMPLE_ID] = torch.tensor([example[EXAMPLE_ID] for example in examples])
        if len(windows) > len(examples):
            batch[NUM_WINDOWS] = torch.tensor([len(example["windows"]) for example in examples])
        if examples[0].get("labels") is not None:
            batch["labels"] = labels_tensor([example["labels"] for example in examples], self.problem_type)
        return batch


def _mean_answer(windows: list[list[dict]]) -> list[dict]:
    """The pipeline's answers for the windows of one clip, as one."""
    scores: dict[str, list[float]] = {}
    for answer in windows:
        for item in answer:
            scores.setdefault(item["label"], []).append(item["score"])
    return [{"label": label, "score": float(np.mean(values))} for label, values in scores.items()]
