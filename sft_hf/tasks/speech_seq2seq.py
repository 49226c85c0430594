"""Speech recognition by an encoder and a decoder that writes the transcript, token by token: Whisper, Moonshine, Speech2Text.

{"audio": {"bytes": b"...", "path": "an251-fash-b.flac"}, "text": "YES"}
-> {"input_features": float32 (80, 3000), "decoder_input_ids": [50257, 50362, 43335], "labels": [50362, 43335, 50256]}
-> logits (batch, tokens, vocab); in evaluation also the text that the model generates by itself

Scores come from generation alone: those of the transcript fed back to the decoder depend on how a set is cut into batches
(pitfall 12).
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from datasets import Dataset, IterableDataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import (
    AutoModelForSpeechSeq2Seq,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    WhisperFeatureExtractor,
)
from transformers.models.whisper.tokenization_whisper import LANGUAGES, TO_LANGUAGE_CODE

from sft_hf.arguments import FinetuningArguments, ModelArguments
from sft_hf.clips import FEATURES, NUM_SAMPLES, hears_padding, parts_of_one_length, say_sampling_rates
from sft_hf.data.labels import TRANSCRIPTION, Labels
from sft_hf.data.token_batches import Lengths
from sft_hf.errors import ArgumentError, ModelError
from sft_hf.losses import Loss
from sft_hf.losses.classification import CrossEntropy
from sft_hf.pretrained import load_config, load_model, load_processor, resolve_model
from sft_hf.recognition import Recognition, batch_of, padded_labels
from sft_hf.task import AnyDataset, Batch, Columns

logger = logging.getLogger(__name__)
# Those whose decoder reads an encoder's states and starts from one token. Others talk to a language model, or need a prompt.
FAMILIES = ("whisper", "moonshine", "speech_to_text", "speecht5", "speech-encoder-decoder")
FALSE_ALARMS = ("The attention mask is not set", "Passing `generation_config` together")
POSITIONS = ("max_target_positions", "max_text_positions", "max_position_embeddings")  # of a decoder, by family


@dataclass(frozen=True)
class SpeechSeq2Seq(Recognition):
    """Any AutoModelForSpeechSeq2Seq whose decoder starts from a start token."""

    language: str | None = field(
        default=None,
        metadata={"help": "Spoken language, for multilingual models: german or de; English-only ones take none."},
    )
    task: Literal["transcribe", "translate"] | None = field(
        default=None, metadata={"help": "Of multilingual models: transcribe (default), or translate to English."}
    )
    generation_max_length: int | None = field(
        default=None, metadata={"help": "Longest transcript in tokens; default: the model's."}
    )
    num_beams: int = field(default=1, metadata={"help": "Hypotheses that a search keeps; 1 is greedy."})
    freeze_encoder: bool = field(default=False, metadata={"help": "Train the decoder alone."})

    def __post_init__(self):
        super().__post_init__()
        for name in ("num_beams", "generation_max_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ArgumentError(f"--{name} {value}: expected at least 1.")

    # ---- processor and model ----

    def load_processor(self, model_args: ModelArguments, train: AnyDataset, columns: Columns) -> Any:
        """The model's feature extractor and tokenizer; ModelError for a family that is not ours, before its weights are loaded."""
        config = load_config(model_args, Labels(TRANSCRIPTION, (), columns.label or ""))
        if config.model_type not in FAMILIES:
            raise ModelError(
                f"--model_name_or_path {model_args.model_name_or_path} is of the family {config.model_type}, which this task "
                f"does not train; it trains {', '.join(FAMILIES)}. For CTC models there is speech_ctc."
            )
        if resolve_model(model_args).architecture:
            processor = self._new_processor(train, columns)
        else:
            processor = load_processor(model_args)
        if getattr(processor.tokenizer, "lang_code_to_id", None):
            raise ModelError(
                f"--model_name_or_path {model_args.model_name_or_path} translates into {len(processor.tokenizer.langs)} "
                "languages; of Speech2Text this task trains those that transcribe one."
            )
        say_sampling_rates(train, processor.feature_extractor)
        return processor

    def _new_processor(self, train: AnyDataset, columns: Columns) -> Any:
        from sft_hf.models.moonshine import build_processor

        if isinstance(train, IterableDataset):
            raise ArgumentError(
                "--streaming: builtin:moonshine trains its tokenizer on all transcripts, which a stream never has; name a "
                "model of the Hub."
            )
        logger.info("a tokenizer is trained on the transcripts of the training split")
        return build_processor(train[columns.label])

    def load_model(self, model_args: ModelArguments, labels: Labels, processor: Any) -> PreTrainedModel:
        """The model; language, task and search are written into tokenizer and generation configuration (pitfall 17)."""
        config = load_config(model_args, labels)
        if resolve_model(model_args).architecture:
            config.vocab_size = len(processor.tokenizer)
        model = load_model(AutoModelForSpeechSeq2Seq, config, model_args)
        if model_args.from_scratch:
            model.generation_config = generation_config_of(model, model_args)
        decoder_tokens(model)
        self._set_language(model.generation_config, processor.tokenizer, model_args.model_name_or_path)
        self._set_search(model)
        if self.freeze_encoder:
            model.get_encoder().requires_grad_(False)
        return model

    def _set_language(self, generation: GenerationConfig, tokenizer: PreTrainedTokenizerBase, name: str) -> None:
        is_multilingual = getattr(generation, "is_multilingual", False)
        for flag, value in (("language", self.language), ("task", self.task)):
            if value and not is_multilingual:
                raise ArgumentError(
                    f"--{flag} {value}: the generation configuration of {name} names no languages, it knows one; leave the "
                    "flag out."
                )
        if not hasattr(generation, "no_timestamps_token_id"):  # not Whisper
            return
        expected = [generation.decoder_start_token_id, generation.no_timestamps_token_id]
        tokenizer_language, tokenizer.language, tokenizer.task = tokenizer.language, None, None
        if is_multilingual:
            language = self.language or getattr(generation, "language", None) or tokenizer_language
            tokenizer.language = generation.language = known_language(language, generation.lang_to_id, name)
            tokenizer.task = generation.task = self.task or getattr(generation, "task", None) or "transcribe"
            logger.info("language %s, task %s", generation.language, generation.task)
            code = TO_LANGUAGE_CODE[generation.language]
            expected[1:1] = [generation.lang_to_id[f"<|{code}|>"], generation.task_to_id[generation.task]]
        tokenizer.set_prefix_tokens(predict_timestamps=False)
        if tokenizer.prefix_tokens != expected:
            raise ModelError(
                f"{name}: its tokenizer begins a transcript with {tokenizer.prefix_tokens}, its generation configuration with "
                f"{expected}: they are of two models."
            )

    def _set_search(self, model: PreTrainedModel) -> None:
        """All that decides a transcript is said explicitly, since the pipeline has other defaults: five beams, 256 tokens."""
        generation, limit = model.generation_config, decoder_limit(model)
        given = self.generation_max_length
        if given and limit and given > limit:
            raise ArgumentError(f"--generation_max_length {given}: the decoder has {limit} positions.")
        lengths = (generation.max_length, 1 + (generation.max_new_tokens or 0), limit)
        default = next(length for length in lengths if length and length > 1)
        generation.max_length = given or min(default, limit or default)
        generation.max_new_tokens = None
        generation.num_beams, generation.do_sample, generation.use_cache = self.num_beams, False, True
        generation.pad_token_id = decoder_tokens(model).pad
        generation.forced_decoder_ids = None
        if hasattr(generation, "no_timestamps_token_id"):
            generation.return_timestamps = False

    # ---- examples ----

    def text_encoder(self, processor: Any, model: PreTrainedModel) -> "TokenEncoder":
        """What the decoder is to write: the prefix of its kind without the start token, the text, and the end."""
        return TokenEncoder(processor.tokenizer, decoder_tokens(model))

    def misfit_rule(self, processor: Any, model: PreTrainedModel) -> "WindowRule":
        """A transcript longer than the decoder, or a clip longer than the window of the model."""
        return WindowRule(decoder_limit(model), window_seconds(processor.feature_extractor))

    def lengths(self, examples: Dataset, processor: Any, *, split: str) -> Lengths | None:
        """Seconds of sound; None of Whisper, which fills every clip up to its window."""
        return (
            None if window_seconds(processor.feature_extractor) else super().lengths(examples, processor, split=split)
        )

    def check_transcripts(self, texts: Sequence[str], processor: Any, model: PreTrainedModel, *, split: str) -> None:
        """Let the model write what it is trained to: Whisper's own settings suppress most symbols."""
        suppressed = getattr(model.generation_config, "suppress_tokens", None)
        if split != "train" or not suppressed:
            return
        encode = self.text_encoder(processor, model)
        trained = {token for text in texts for token in encode(text)}.intersection(suppressed)
        if trained:
            named = ", ".join(repr(processor.tokenizer.decode([token])) for token in sorted(trained))
            logger.info("generation does not suppress %s any more, which the training transcripts have", named)
            model.generation_config.suppress_tokens = [token for token in suppressed if token not in trained]

    def data_collator(self, processor: Any, model: PreTrainedModel) -> Callable[[list[dict]], Batch]:
        """Features, and the transcript shifted by one as the decoder's input."""
        extractor = processor.feature_extractor
        hears = hears_padding(extractor, getattr(model.config, "encoder", model.config))
        return Seq2SeqCollator(extractor, decoder_tokens(model), decoder_limit(model), hears)

    # ---- loss and evaluation ----

    def load_loss(
        self, train: AnyDataset, labels: Labels, training_args: FinetuningArguments, model: PreTrainedModel
    ) -> Loss:
        """Cross-entropy of every token."""
        return CrossEntropy(label_smoothing_factor=training_args.label_smoothing_factor)

    def loss_denominators(self, loss: Loss, batch: Batch) -> dict[str, Tensor]:
        """Tokens."""
        return loss.denominators(batch["labels"])

    def loss_sums(self, loss: Loss, model: PreTrainedModel, batch: Batch) -> tuple[Any, dict[str, Tensor]]:
        """Forward with the transcript as the decoder's input; in evaluation the encoder runs once, for that and for generation."""
        inputs, states = encoder_inputs(batch), None
        if not model.training:
            states = encoder_states(model, batch)
            inputs = _after_encoder(inputs, states)
        if "labels" not in batch:
            return states, {}
        logits = model(**inputs, decoder_input_ids=batch["decoder_input_ids"], use_cache=False).logits
        return states, loss.sums(logits.flatten(0, 1), batch["labels"].flatten())

    def predict(self, model: PreTrainedModel, outputs: Any, batch: Batch, processor: Any) -> list[str]:
        """The texts that the model generates from the encoder's states."""
        inputs = encoder_inputs(batch)
        with _without_false_alarms():
            ids = model.generate(**_after_encoder(inputs, outputs))
            last_without_time = getattr(model.generation_config, "no_timestamps_token_id", None)
            if last_without_time is not None and (ids > last_without_time).any():
                # Where Whisper writes a time all the same, generate listens once more from there on, to the features.
                ids = model.generate(**inputs)
        return [text.strip() for text in processor.tokenizer.batch_decode(ids, skip_special_tokens=True)]

    # ---- transformers.pipeline ----

    def pipeline_inputs(self, example: dict, columns: Columns, processor: Any) -> dict[str, Any]:
        """The part of the clip that the model hears: the pipeline would go on with windows and timestamps."""
        inputs = super().pipeline_inputs(example, columns, processor)
        heard = window_seconds(processor.feature_extractor)
        if heard is not None:
            inputs["raw"] = inputs["raw"][: round(heard * inputs["sampling_rate"])]
        return inputs


# ---- models ----


@dataclass(frozen=True)
class DecoderTokens:
    """The ids from which a decoder starts, with which it ends, and which stand where nothing is computed."""

    start: int
    end: int
    pad: int


def decoder_tokens(model: PreTrainedModel) -> DecoderTokens:
    """Those of the generation configuration, else of the model's; ModelError where neither says one."""
    found = {}
    for name in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        values = (getattr(config, name, None) for config in (model.generation_config, model.config))
        found[name] = next((value for value in values if value is not None), None)
        found[name] = found[name][0] if isinstance(found[name], list) else found[name]
    start, end, pad = found.values()
    for name in ("decoder_start_token_id", "eos_token_id"):
        if found[name] is None:
            raise ModelError(f"{type(model).__name__} has no {name}: give --config_overrides {name}=... .")
    return DecoderTokens(start, end, end if pad is None else pad)


def decoder_limit(model: PreTrainedModel) -> int | None:
    """How many tokens the decoder has positions for."""
    config = model.config.get_text_config(decoder=True)
    return next((getattr(config, name) for name in POSITIONS if getattr(config, name, None)), None)


def generation_config_of(model: PreTrainedModel, model_args: ModelArguments) -> GenerationConfig:
    """The checkpoint's, which a model with random weights does not have from its configuration: languages, start tokens."""
    source = resolve_model(model_args)
    try:
        return GenerationConfig.from_pretrained(
            source.path, revision=source.revision or "main", token=model_args.token, cache_dir=model_args.cache_dir
        )
    except OSError:  # as transformers takes it: there is none
        return model.generation_config


def known_language(language: str | None, lang_to_id: dict[str, int], name: str) -> str:
    """`german` of `German`, `de` and `<|de|>`; ArgumentError with the model's languages for none and for another one."""
    there = [token.strip("<|>") for token in lang_to_id]
    given = (language or "").lower().strip("<|>")
    code = TO_LANGUAGE_CODE.get(given, given)
    if code in there:
        return LANGUAGES[code]
    named = ", ".join(sorted(f"{LANGUAGES[code]} ({code})" for code in there))
    problem = (
        f"--language {language}: {name} has no such" if language else f"{name} needs a --language, since it has several"
    )
    raise ArgumentError(f"{problem}; it has {named}.")


def window_seconds(extractor: Any) -> int | None:
    """What Whisper hears of a clip, from its beginning; None for extractors that take clips of any length."""
    return extractor.chunk_length if isinstance(extractor, WhisperFeatureExtractor) else None


@contextmanager
def _without_false_alarms() -> Iterator[None]:
    """Whisper needs no attention mask, and its own generate gives options in a way that the one it calls finds dated."""
    generation = logging.getLogger("transformers.generation.utils")
    is_news = lambda record: not record.getMessage().startswith(FALSE_ALARMS)  # noqa: E731
    generation.addFilter(is_news)
    try:
        yield
    finally:
        generation.removeFilter(is_news)


def encoder_inputs(batch: Batch) -> Batch:
    """What goes to the encoder."""
    return {name: value for name, value in batch.items() if name in (*FEATURES, "attention_mask")}


def encoder_states(model: PreTrainedModel, batch: Batch) -> Any:
    """What the encoder makes of each clip; where it hears padding, of each by itself."""
    encoder, inputs = model.get_encoder(), encoder_inputs(batch)
    if NUM_SAMPLES not in batch:
        return encoder(**inputs)
    parts = [encoder(**part) for part in parts_of_one_length(inputs, batch)]
    clips, states = [clip for part in parts for clip in part.last_hidden_state], parts[0]
    states.last_hidden_state = pad_sequence(clips, batch_first=True)
    if getattr(states, "attention_mask", None) is not None:  # Moonshine's, of frames
        ones = [clip.new_ones(len(clip), dtype=torch.int) for clip in clips]
        states.attention_mask = pad_sequence(ones, batch_first=True)
    return states


def _after_encoder(inputs: Batch, states: Any) -> Batch:
    """The same for a decoder: the encoder's states in place of the features."""
    return {**{name: value for name, value in inputs.items() if name not in FEATURES}, "encoder_outputs": states}


# ---- examples ----


@dataclass(frozen=True)
class TokenEncoder:
    """A transcript to the token ids that the decoder is to write."""

    tokenizer: PreTrainedTokenizerBase
    tokens: DecoderTokens

    def __call__(self, text: str) -> list[int]:
        ids = self.tokenizer(text).input_ids
        if ids[:1] == [self.tokens.start]:  # the decoder is given it, and once is enough (pitfall 17)
            ids = ids[1:]
        return ids if ids[-1:] == [self.tokens.end] else [*ids, self.tokens.end]


@dataclass(frozen=True)
class WindowRule:
    """Whether the decoder has a position for each token, and the model hears the whole clip."""

    limit: int | None
    window_seconds: int | None

    def __call__(self, ids: Sequence[int], durations: tuple[float, float]) -> str | None:
        if self.limit and len(ids) > self.limit:
            return f"have transcripts of more than the {self.limit} tokens of the decoder"
        _, longest = durations
        if self.window_seconds and longest > self.window_seconds:
            return f"are longer than the {self.window_seconds} s that the model hears"
        return None


@dataclass(frozen=True)
class Seq2SeqCollator:
    """Examples to features, `labels` and `decoder_input_ids` (batch, tokens), `text` and `example_id`.

    In evaluation the loss of a transcript is that of as many tokens as the decoder has positions for.
    """

    extractor: Any
    tokens: DecoderTokens
    limit: int | None
    hears_padding: bool = False

    def __call__(self, examples: list[dict]) -> Batch:
        is_labelled = "labels" in examples[0]
        if is_labelled:
            examples = [{**example, "labels": example["labels"][: self.limit]} for example in examples]
        batch = batch_of(self.extractor, examples, hears_padding=self.hears_padding)
        if is_labelled:
            inputs = [[self.tokens.start, *example["labels"][:-1]] for example in examples]
            batch["decoder_input_ids"] = padded_labels(inputs, self.tokens.pad)
        return batch
