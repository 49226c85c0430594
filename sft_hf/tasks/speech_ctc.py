"""Speech recognition by an encoder that names a character for each frame, or none: connectionist temporal classification.

{"audio": {"bytes": b"...", "path": "an251-fash-b.flac"}, "text": "YES"}
-> {"input_values": float32 (samples,), "labels": [29, 9, 23]}
-> logits (batch, frames, vocab) -> [0, 29, 29, 0, 9, 23, 0] -> "YES"

The vocabulary is the checkpoint's where it has every character of the training transcripts, else it is made of them.
"""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from datasets import IterableDataset
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCTC, PreTrainedModel, PreTrainedTokenizerBase, Wav2Vec2Processor
from transformers.utils import cached_file

from sft_hf.arguments import FinetuningArguments, ModelArguments
from sft_hf.clips import (
    FEATURES,
    extracted,
    freeze_feature_encoder,
    hears_padding,
    parts_of_one_length,
    say_sampling_rates,
    with_room_for_masks,
)
from sft_hf.ctc_decoding import CharacterBeamDecoder, GreedyDecoder, LmUnit, WordBeamDecoder, load_beam_decoder
from sft_hf.data.labels import Labels
from sft_hf.data.vocabulary import Casing, UnicodeNormalForm, build_tokenizer, normalize_transcript, uncovered
from sft_hf.errors import ArgumentError, ModelError
from sft_hf.losses import Loss
from sft_hf.losses.ctc import CtcLoss, frames_needed
from sft_hf.pretrained import load_config, load_feature_extractor, load_model, load_tokenizer, resolve_model
from sft_hf.recognition import Recognition, batch_of
from sft_hf.task import AnyDataset, Batch, Columns

logger = logging.getLogger(__name__)
PROBE_SECONDS = 10  # of silence, that tell how many frames of features an extractor makes of a second
NUM_NAMED = 20  # characters that a message names
VOCABULARY_FILES = ("vocab.json", "tokenizer.json")
TOO_LONG = "have transcripts of more characters than frames of sound"

Decoder = GreedyDecoder | WordBeamDecoder | CharacterBeamDecoder


@dataclass(frozen=True)
class SpeechCtc(Recognition):
    """Any AutoModelForCTC, and builtin:crnn."""

    unicode_normal_form: UnicodeNormalForm = field(
        default="NFC", metadata={"help": "Of the transcripts that the model learns."}
    )
    casing: Casing = field(default="keep", metadata={"help": "Of the transcripts that the model learns."})
    vocabulary: Literal["auto", "checkpoint", "data"] = field(
        default="auto",
        metadata={
            "help": "Whose characters the model knows; auto: the checkpoint's where it has all of the training data's."
        },
    )
    freeze_feature_encoder: bool | None = field(
        default=None,
        metadata={"help": "Do not train the convolutions that read the waveform; default: where they are pretrained."},
    )
    train_adapter_layers: bool = field(
        default=False, metadata={"help": "Train the language adapters and the head alone (MMS)."}
    )
    decoder: Literal["greedy", "beam"] = field(
        default="greedy", metadata={"help": "How evaluation reads the text off the frames; a beam needs --lm_path."}
    )
    lm_path: str | None = field(
        default=None, metadata={"help": "An n-gram language model for --decoder beam: ARPA, or a binary of KenLM."}
    )
    lm_unit: LmUnit = field(default="word", metadata={"help": "What the language model is over."})
    lm_weight: float = field(default=0.5, metadata={"help": "Of the language model beside the frames."})
    word_insertion_bonus: float = field(default=0.0, metadata={"help": "What the beam adds for each word."})
    beam_width: int = field(default=64, metadata={"help": "Hypotheses that the beam keeps."})

    def __post_init__(self):
        super().__post_init__()
        if self.decoder == "beam" and self.lm_path is None:
            raise ArgumentError("--decoder beam needs a language model: give --lm_path, or --decoder greedy.")
        if self.decoder == "greedy" and self.lm_path is not None:
            raise ArgumentError(
                f"--lm_path {self.lm_path} is read by --decoder beam alone: give that, or leave it out."
            )

    @property
    def normalize(self) -> Callable[[str], str]:
        """What makes of a transcript the form that the model learns."""
        return partial(normalize_transcript, unicode_normal_form=self.unicode_normal_form, casing=self.casing)

    @property
    def as_the_pipeline_does(self) -> "SpeechCtc":
        """The same with the greedy decoder of transformers' pipeline, for the reload check."""
        return _AsThePipeline(**vars(self))

    # ---- vocabulary ----

    def load_processor(self, model_args: ModelArguments, train: AnyDataset, columns: Columns) -> Any:
        """Feature extractor, and a tokenizer of characters."""
        tokenizer = self._choose_tokenizer(model_args, train, columns)
        if tokenizer.pad_token_id is None:
            raise ModelError(
                f"{tokenizer.name_or_path}: its tokenizer has no padding token, which is the blank of CTC; --vocabulary data "
                "makes one of the transcripts."
            )
        self._load_decoder(tokenizer)  # what is wrong with a language model is known before training
        if resolve_model(model_args).architecture == "crnn":
            from sft_hf.models.crnn import build_processor

            processor = build_processor(tokenizer)
        else:
            processor = Wav2Vec2Processor(load_feature_extractor(model_args), tokenizer)
        say_sampling_rates(train, processor.feature_extractor)
        return processor

    def _choose_tokenizer(
        self, model_args: ModelArguments, train: AnyDataset, columns: Columns
    ) -> PreTrainedTokenizerBase:
        name = model_args.tokenizer_name or model_args.model_name_or_path
        if self.vocabulary == "data":
            if model_args.tokenizer_name:
                raise ArgumentError(f"--tokenizer_name {name} and --vocabulary data: give one of the two.")
            return self._data_tokenizer(train, columns)
        if not has_vocabulary(model_args):
            if self.vocabulary == "checkpoint":
                raise ModelError(f"--vocabulary checkpoint: {name} has none; --vocabulary data makes one.")
            logger.info("%s has no vocabulary of its own", name)
            return self._data_tokenizer(train, columns)
        tokenizer = load_tokenizer(model_args)
        if isinstance(train, IterableDataset):
            logger.info("the vocabulary of %s is taken as it is: a stream is not read to see what it lacks", name)
            return tokenizer
        if self.vocabulary == "checkpoint":
            return tokenizer
        missing = uncovered(map(self.normalize, train[columns.label]), tokenizer)
        if not missing:
            logger.info("the vocabulary of %s has every character of the training transcripts", name)
            return tokenizer
        logger.warning(
            "the vocabulary of %s lacks %s of the training transcripts: a new one is made of them, and the head is new%s",
            name, _counted(missing), self._other_casing(train[columns.label], tokenizer, missing),
        )  # fmt: skip
        return self._data_tokenizer(train, columns)

    def _data_tokenizer(self, train: AnyDataset, columns: Columns) -> PreTrainedTokenizerBase:
        if isinstance(train, IterableDataset):
            raise ArgumentError(
                "--streaming: a vocabulary is made of all training transcripts, which a stream never has; give a "
                "--tokenizer_name, or a model with a vocabulary."
            )
        tokenizer = build_tokenizer(map(self.normalize, train[columns.label]))
        logger.info("a vocabulary of %d tokens is made of the training transcripts", len(tokenizer))
        return tokenizer

    def _other_casing(self, texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, missing: Counter[str]) -> str:
        """The hint that another casing fits the vocabulary better, where one does."""
        left = {
            casing: uncovered(map(replace(self, casing=casing).normalize, texts), tokenizer)
            for casing in ("upper", "lower")
        }
        best = min(left, key=lambda casing: left[casing].total())
        if left[best].total() >= missing.total():
            return ""
        return f"; with --casing {best} it lacks {_counted(left[best]) if left[best] else 'none'}"

    # ---- model ----

    def load_model(self, model_args: ModelArguments, labels: Labels, processor: Any) -> PreTrainedModel:
        """The model with an output for each token; its blank is the padding token."""
        source, tokenizer = resolve_model(model_args), processor.tokenizer
        if self.train_adapter_layers and model_args.freeze_base_model:
            raise ArgumentError("--train_adapter_layers and --freeze_base_model: adapters lie in the base model.")
        config = load_config(model_args, labels)
        has_head = not source.is_random and any(name.endswith("ForCTC") for name in config.architectures or ())
        is_of_data = not tokenizer.name_or_path  # made here, not loaded from anywhere
        num_tokens = max(tokenizer.get_vocab().values()) + 1
        config.vocab_size = max(num_tokens, config.vocab_size) if has_head and not is_of_data else num_tokens
        config.pad_token_id = tokenizer.pad_token_id
        for name, value in (("ctc_zero_infinity", True), ("ctc_loss_reduction", "mean")):
            if hasattr(config, name):  # for whoever trains it further with the model's own loss (pitfall 16)
                setattr(config, name, value)
        model = load_model(AutoModelForCTC, config, model_args)
        if has_head and is_of_data:
            forget_head(model)
        self._freeze(model, is_pretrained=not source.is_random)
        return model

    def _freeze(self, model: PreTrainedModel, *, is_pretrained: bool) -> None:
        if self.train_adapter_layers:
            train_adapters_alone(model)
        elif self.freeze_feature_encoder or (
            self.freeze_feature_encoder is None and is_pretrained and hasattr(model, "freeze_feature_encoder")
        ):
            freeze_feature_encoder(model)

    # ---- examples ----

    def text_encoder(self, processor: Any, model: PreTrainedModel) -> "CharacterEncoder":
        """One id for each character of the normalised transcript."""
        return CharacterEncoder(processor.tokenizer, self.normalize)

    def misfit_rule(self, processor: Any, model: PreTrainedModel) -> "FrameRule":
        """More characters than frames."""
        return FrameRule(model, inputs_per_second(processor.feature_extractor))

    def check_transcripts(self, texts: Sequence[str], processor: Any, model: PreTrainedModel, *, split: str) -> None:
        """Count the characters that the vocabulary lacks."""
        missing = uncovered(map(self.normalize, texts), processor.tokenizer)
        if missing:
            logger.warning(
                "%s: the vocabulary lacks %s, which nothing that is recognised can match%s",
                split, _counted(missing), self._other_casing(texts, processor.tokenizer, missing),
            )  # fmt: skip

    def data_collator(self, processor: Any, model: PreTrainedModel) -> Callable[[list[dict]], Batch]:
        """Features as the extractor pads them, with the attention mask that it wants, and labels."""
        extractor = processor.feature_extractor
        return CtcCollator(extractor, hears_padding(extractor, model.config))

    # ---- loss and evaluation ----

    def load_loss(
        self, train: AnyDataset, labels: Labels, training_args: FinetuningArguments, model: PreTrainedModel
    ) -> Loss:
        """CTC for each character, the mean over utterances."""
        if training_args.label_smoothing_factor:
            raise ArgumentError(
                f"--label_smoothing_factor {training_args.label_smoothing_factor}: CTC has no smoothed form here; leave it out."
            )
        return CtcLoss(blank_id=model.config.pad_token_id)

    def loss_denominators(self, loss: Loss, batch: Batch) -> dict[str, Tensor]:
        """Utterances."""
        return loss.denominators(batch["labels"])

    def loss_sums(self, loss: Loss, model: PreTrainedModel, batch: Batch) -> tuple["Frames", dict[str, Tensor]]:
        """Forward without labels, then the sum over utterances; in evaluation no clip hears the padding of another."""
        inputs = {name: value for name, value in batch.items() if name in (*FEATURES, "attention_mask")}
        if model.training:
            frames = frames_of(model, with_room_for_masks(getattr(model, "module", model), inputs))
        else:
            frames = joined([frames_of(model, part) for part in parts_of_one_length(inputs, batch)])
        return frames, loss.sums(frames.logits, batch["labels"], frames.num_frames) if "labels" in batch else {}

    def predict(self, model: PreTrainedModel, outputs: "Frames", batch: Batch, processor: Any) -> list[str]:
        """The texts that --decoder reads off the frames."""
        return self._load_decoder(processor.tokenizer)(outputs.logits, outputs.num_frames)

    def _load_decoder(self, tokenizer: PreTrainedTokenizerBase) -> Decoder:
        if self.decoder == "greedy":
            return GreedyDecoder(tokenizer)
        return _beam_decoder(
            self.lm_path,
            tokenizer,
            lm_unit=self.lm_unit,
            beam_width=self.beam_width,
            lm_weight=self.lm_weight,
            word_insertion_bonus=self.word_insertion_bonus,
        )


@lru_cache(maxsize=1)
def _beam_decoder(lm_path: str, tokenizer: PreTrainedTokenizerBase, **options: Any) -> Decoder:
    """Kept, since a language model takes longer to load than a batch to decode."""
    return load_beam_decoder(lm_path, tokenizer, **options)


@dataclass(frozen=True)
class _AsThePipeline(SpeechCtc):
    """Reads all frames of its one utterance, as transformers' pipeline does: those that an extractor only fills up, too."""

    def predict(self, model: PreTrainedModel, outputs: "Frames", batch: Batch, processor: Any) -> list[str]:
        return GreedyDecoder(processor.tokenizer)(outputs.logits, all_frames(outputs.logits))


# ---- vocabulary ----


def has_vocabulary(model_args: ModelArguments) -> bool:
    """Whether --tokenizer_name is given or the checkpoint comes with a tokenizer, which encoders without a head do not."""
    source = resolve_model(model_args)
    if model_args.tokenizer_name or source.architecture:
        return bool(model_args.tokenizer_name)
    options = {"revision": source.revision, "token": model_args.token, "cache_dir": model_args.cache_dir}
    return any(
        cached_file(source.path, name, _raise_exceptions_for_missing_entries=False, **options)
        for name in VOCABULARY_FILES
    )


def _counted(characters: Counter[str]) -> str:
    """`'Q' (3), 'Z' (1)`, the most frequent ones."""
    named = ", ".join(f"{character!r} ({count})" for character, count in characters.most_common(NUM_NAMED))
    return named + (f" and {len(characters) - NUM_NAMED} more" if len(characters) > NUM_NAMED else "")


@dataclass(frozen=True)
class CharacterEncoder:
    """A transcript to token ids, in the form that the model learns."""

    tokenizer: PreTrainedTokenizerBase
    normalize: Callable[[str], str]

    def __call__(self, text: str) -> list[int]:
        return self.tokenizer(self.normalize(text)).input_ids


# ---- models ----


@torch.no_grad()
def forget_head(model: PreTrainedModel) -> None:
    """Start the head anew: that of another vocabulary of the same size would be loaded with wrong meanings."""
    logger.info("the head starts anew, its outputs were those of another vocabulary")
    for module in model.children():
        if module is not model.base_model:
            for parameter in module.parameters():
                if parameter.dim() > 1:
                    nn.init.normal_(parameter, std=model.config.initializer_range)
                else:
                    nn.init.zeros_(parameter)


def train_adapters_alone(model: PreTrainedModel) -> None:
    """Freeze all but the language adapters and the head; ModelError for a model without adapters."""
    if getattr(model.config, "adapter_attn_dim", None) is None:
        raise ModelError(
            f"--train_adapter_layers: this {type(model).__name__} has none. Those of MMS come with its checkpoints, and "
            "--config_overrides adapter_attn_dim=16 gives new ones to a wav2vec2 model."
        )
    model.freeze_base_model()
    for parameter in model._get_adapters().values():
        parameter.requires_grad_(True)


# ---- frames ----


class Frames(NamedTuple):
    """Logits `(batch, frames, vocab)`, and how many frames of each utterance are sound, `(batch,)`; the rest is padding."""

    logits: Tensor
    num_frames: Tensor


def frames_of(model: PreTrainedModel, inputs: Batch) -> Frames:
    """What a model makes of its inputs; without an attention mask silence is sound too."""
    logits = model(**inputs).logits
    if "attention_mask" not in inputs:
        return Frames(logits, all_frames(logits))
    num_frames = output_lengths(model, inputs["attention_mask"].sum(dim=-1))
    return Frames(logits, num_frames.clamp(max=logits.shape[1]))


def joined(parts: Sequence[Frames]) -> Frames:
    """The utterances of all parts, those with fewer frames filled up with zeros."""
    first, *others = parts
    if not others:
        return first
    logits = pad_sequence([utterance for part in parts for utterance in part.logits], batch_first=True)
    return Frames(logits, torch.cat([part.num_frames for part in parts]))


def all_frames(logits: Tensor) -> Tensor:
    """The number of frames of logits `(batch, frames, vocab)` for each utterance, `(batch,)`."""
    return torch.full((len(logits),), logits.shape[1], device=logits.device)


def output_lengths(model: PreTrainedModel, lengths: Tensor) -> Tensor:
    """Frames of logits for each number of samples or frames of features."""
    model = getattr(model, "module", model)
    for part in (model, getattr(model, "encoder", None)):
        for name in ("_get_feat_extract_output_lengths", "_get_subsampling_output_length"):
            if hasattr(part, name):
                return getattr(part, name)(lengths).long()
    return lengths.long()


def inputs_per_second(extractor: Any) -> float:
    """Samples, or frames of the features that an extractor makes of silence."""
    if "input_values" in extractor.model_input_names:
        return extractor.sampling_rate
    silence = np.zeros(PROBE_SECONDS * extractor.sampling_rate, dtype=np.float32)
    return len(extracted(extractor, silence)["input_features"]) / PROBE_SECONDS


@dataclass(frozen=True, eq=False)
class FrameRule:
    """Whether a clip has the frames of logits that its characters need."""

    model: PreTrainedModel
    inputs_per_second: float

    def __call__(self, ids: Sequence[int], durations: tuple[float, float]) -> str | None:
        shortest, _ = durations
        # 0.52 s are 8,320 samples, of which a float may lack the last.
        inputs = torch.tensor(int(shortest * self.inputs_per_second + 1e-6))
        return TOO_LONG if frames_needed(ids) > int(output_lengths(self.model, inputs)) else None


@dataclass(frozen=True)
class CtcCollator:
    """Examples to features, `labels`, `text` and `example_id`.

    Where the model hears padding, `num_samples` (batch,) says where it begins.
    """

    extractor: Any
    hears_padding: bool

    def __call__(self, examples: list[dict]) -> Batch:
        return batch_of(self.extractor, examples, hears_padding=self.hears_padding)
