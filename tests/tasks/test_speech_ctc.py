"""CTC, stage by stage: which characters the model knows, which frames count, one gradient however a batch is cut."""

import csv
import io
import json
import logging
import random
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import tiny
import tiny_speech
import torch
from datasets import Dataset, IterableDataset
from test_ctc_decoding import WORDS
from test_trainer import gradient, relative_difference
from transformers import AutoFeatureExtractor, AutoTokenizer, Wav2Vec2Processor, pipeline

from sft_hf import build_trainer
from sft_hf.arguments import DataArguments, FinetuningArguments, ModelArguments
from sft_hf.clips import RATE, SECONDS, extracted
from sft_hf.data.labels import TRANSCRIPTION, Labels
from sft_hf.data.sources import load_splits
from sft_hf.data.vocabulary import build_tokenizer
from sft_hf.errors import ArgumentError, ModelError
from sft_hf.task import Columns
from sft_hf.tasks import speech_ctc
from sft_hf.tasks.speech_ctc import FrameRule, Frames, SpeechCtc, all_frames, frames_of, inputs_per_second

COLUMNS = Columns(("audio",), "text")
LABELS = Labels(TRANSCRIPTION, (), "text")
KINDS = ("layer_norm", "group_norm", "masked_group_norm", "wav2vec2_bert", "wav2vec2_bert with adapter", "crnn")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """Spelt tones, and models: encoders with and without an attention mask, one of spectrograms, and a recogniser."""
    folder = tmp_path_factory.mktemp("world")
    tiny_speech.write_spelt(folder / "spelt", train=64, test=12)
    tiny_speech.save_wav2vec2(folder / "layer_norm")
    tiny_speech.save_wav2vec2(folder / "group_norm", layer_norm=False)
    tiny_speech.save_wav2vec2(folder / "masked_group_norm", feat_extract_norm="group", conv_bias=False)
    tiny_speech.save_wav2vec2(folder / "letters", vocabulary=True)
    tiny_speech.save_wav2vec2_bert(folder / "wav2vec2_bert")
    return folder


@pytest.fixture(autouse=True)
def _log(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("sft_hf"), "propagate", True)
    caplog.set_level(logging.INFO, logger="sft_hf")


def texts(*values: str) -> Dataset:
    """Training rows as `select_examples` leaves them, but for the clips."""
    return Dataset.from_dict({"text": list(values), RATE: [16_000] * len(values), SECONDS: [1.0] * len(values)})


def utterances(*texts: str, seconds: float) -> Dataset:
    """Rows of noise with those transcripts."""
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(seconds), 16_000, format="WAV")
    clips = [{"bytes": buffer.getvalue(), "path": f"{row}.wav"} for row in range(len(texts))]
    return Dataset.from_dict({"audio": clips, "text": list(texts), "example_id": list(range(len(texts)))})


def model_args(world: Path, kind: str = "layer_norm", **flags) -> ModelArguments:
    kind, _, adapter = kind.partition(" with ")
    overrides = ["add_adapter=true", "num_adapter_layers=2", "output_hidden_size=32"] if adapter else None
    name = "builtin:crnn" if kind == "crnn" else str(world / kind)
    return ModelArguments(model_name_or_path=name, **{"config_overrides": overrides, **flags})


def loaded(world: Path, kind: str, *values: str, task: SpeechCtc | None = None, **flags):
    """Processor and model for those training transcripts."""
    task, arguments = task or SpeechCtc(), model_args(world, kind, **flags)
    processor = task.load_processor(arguments, texts(*(values or ("ABC ",))), COLUMNS)
    torch.manual_seed(0)
    return processor, task.load_model(arguments, LABELS, processor).eval()


def noise(seconds: float) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(round(16_000 * seconds)).astype(np.float32)


def batch_of_noise(processor, model, *seconds: float, labels: list[list[int]] | None = None) -> dict:
    examples = [
        {"features": extracted(processor.feature_extractor, noise(length)), "example_id": row}
        for row, length in enumerate(seconds)
    ]
    for example, ids in zip(examples, labels or [], strict=bool(labels)):
        example["labels"] = ids
    return SpeechCtc().data_collator(processor, model)(examples)


# ---- which characters the model knows ----


def test_an_encoder_without_a_vocabulary_gets_that_of_the_data(world, caplog):
    processor, model = loaded(world, "layer_norm", "GO", "GO ON")
    assert processor.tokenizer.get_vocab() == {"[PAD]": 0, "[UNK]": 1, "|": 2, "G": 3, "N": 4, "O": 5}
    assert (model.config.vocab_size, model.config.pad_token_id) == (6, 0)
    assert (model.config.ctc_zero_infinity, model.config.ctc_loss_reduction) == (True, "mean")
    assert "layer_norm has no vocabulary of its own" in caplog.text
    assert "a vocabulary of 6 tokens is made of the training transcripts" in caplog.text


def test_scripts_without_spaces_have_a_vocabulary_too(world):
    """Pitfall 16: a vocabulary without a space is a KeyError in the example scripts."""
    processor, model = loaded(world, "layer_norm", "你好", "好的")
    ids = SpeechCtc().text_encoder(processor, model)("你好")
    assert processor.tokenizer.decode(ids, group_tokens=False) == "你好"


def test_casing_and_normal_form_are_the_users(world):
    """Pitfall 16: no forced lower-casing."""
    kept, _ = loaded(world, "layer_norm", "Go")
    lower, model = loaded(world, "layer_norm", "Go", task=SpeechCtc(casing="lower"))
    split, _ = loaded(world, "layer_norm", "É", task=SpeechCtc(unicode_normal_form="NFD"))
    assert [sorted(one.tokenizer.get_vocab())[:2] for one in (kept, lower, split)] == [
        ["G", "[PAD]"],
        ["[PAD]", "[UNK]"],
        ["E", "[PAD]"],
    ]
    assert "g" in lower.tokenizer.get_vocab()
    assert "\u0301" in split.tokenizer.get_vocab()
    encode = SpeechCtc(casing="lower").text_encoder(lower, model)
    assert encode("GO") == encode("go") == lower.tokenizer("go").input_ids


def test_a_vocabulary_that_has_every_character_is_kept_with_its_head(world, caplog):
    processor, model = loaded(world, "letters", "GO HOME")
    before = AutoTokenizer.from_pretrained(world / "letters")
    assert processor.tokenizer.get_vocab() == before.get_vocab()
    assert model.config.vocab_size == 32
    assert "has every character of the training transcripts" in caplog.text
    assert "new weights" not in caplog.text


def test_a_vocabulary_that_lacks_characters_is_replaced_and_the_log_counts_them(world, caplog):
    processor, _ = loaded(world, "letters", "GO 24", "22")
    assert sorted(processor.tokenizer.get_vocab()) == ["2", "4", "G", "O", "[PAD]", "[UNK]", "|"]
    assert (
        "lacks '2' (3), '4' (1) of the training transcripts: a new one is made of them, and the head is new"
        in caplog.text
    )
    assert "--casing" not in caplog.text


def test_another_casing_is_suggested_where_it_fits_better(world, caplog):
    loaded(world, "letters", "go home", "off")
    assert "and the head is new; with --casing upper it lacks none" in caplog.text
    caplog.clear()
    loaded(world, "letters", "go 2")
    assert "with --casing upper it lacks '2' (1)" in caplog.text


def test_a_vocabulary_may_be_kept_although_it_lacks_characters(world, caplog):
    """Such characters become unknown ones, and each split says how many it has."""
    task = SpeechCtc(vocabulary="checkpoint")
    processor, model = loaded(world, "letters", "GO 24", task=task)
    assert task.text_encoder(processor, model)("2") == [processor.tokenizer.unk_token_id]
    task.check_transcripts(["GO 2", "22 B"], processor, model, split="validation")
    assert "validation: the vocabulary lacks '2' (3), which nothing that is recognised can match" in caplog.text


def test_evaluation_transcripts_may_have_characters_that_training_ones_lack(world, caplog):
    processor, model = loaded(world, "layer_norm", "GO")
    SpeechCtc().check_transcripts(["GO", "OX", "FOX"], processor, model, split="test")
    assert "test: the vocabulary lacks 'X' (2), 'F' (1), which nothing" in caplog.text
    caplog.clear()
    SpeechCtc().check_transcripts(["GO"], processor, model, split="test")
    assert not caplog.text


def test_a_message_names_the_most_frequent_characters_alone(world, caplog):
    processor, model = loaded(world, "layer_norm", "0")
    SpeechCtc().check_transcripts(["ABCDEFGHIJKLMNOPQRSTUVWXYZ", "Z"], processor, model, split="test")
    assert "lacks 'Z' (2), 'A' (1), 'B' (1)" in caplog.text
    assert "'S' (1) and 6 more" in caplog.text


def test_a_new_head_of_the_same_size_is_new(world):
    """Its 32 outputs would be loaded as those of 32 other characters."""
    digits_and_more = "0123456789abcdefghijklmnopqrs"
    _, before = loaded(world, "letters", "GO")
    processor, model = loaded(world, "letters", digits_and_more)
    assert len(processor.tokenizer) == model.config.vocab_size == 32
    assert relative_difference(model.lm_head.weight.detach(), before.lm_head.weight.detach()) > 1
    assert not model.lm_head.bias.any()
    projections = [one.wav2vec2.feature_projection.projection.weight for one in (model, before)]
    assert torch.equal(*projections)


def test_a_tokenizer_by_name(world):
    processor, model = loaded(world, "layer_norm", "GO", tokenizer_name=str(world / "letters"))
    assert len(processor.tokenizer) == model.config.vocab_size == 32
    assert loaded(world, "crnn", "GO", tokenizer_name=str(world / "letters"))[1].config.vocab_size == 32


@pytest.mark.parametrize(
    ("kind", "task", "flags", "error", "message"),
    [
        ("layer_norm", {"vocabulary": "checkpoint"}, {}, ModelError,
         "--vocabulary checkpoint: .*layer_norm has none; --vocabulary data makes one"),
        ("crnn", {"vocabulary": "checkpoint"}, {}, ModelError, "--vocabulary checkpoint: builtin:crnn has none"),
        ("layer_norm", {"vocabulary": "data"}, {"tokenizer_name": "letters"}, ArgumentError,
         "--tokenizer_name .*letters and --vocabulary data: give one of the two"),
    ],
)  # fmt: skip
def test_vocabularies_that_cannot_be_had(world, kind, task, flags, error, message):
    flags = {name: str(world / value) for name, value in flags.items()}
    with pytest.raises(error, match=message):
        loaded(world, kind, "GO", task=SpeechCtc(**task), **flags)


def test_a_stream_is_never_whole_enough_for_a_vocabulary(world):
    train = IterableDataset.from_generator(lambda: iter([{"text": "GO"}]))
    with pytest.raises(ArgumentError, match="--streaming: a vocabulary is made of all training transcripts"):
        SpeechCtc().load_processor(model_args(world, "layer_norm"), train, COLUMNS)
    processor = SpeechCtc().load_processor(model_args(world, "letters"), train, COLUMNS)
    assert len(processor.tokenizer) == 32


def test_a_tokenizer_without_padding_has_no_blank(world, tmp_path):
    tiny.save_decoder(tmp_path)
    with pytest.raises(ModelError, match="its tokenizer has no padding token, which is the blank of CTC"):
        loaded(world, "layer_norm", "GO", task=SpeechCtc(vocabulary="checkpoint"), tokenizer_name=str(tmp_path))


# ---- which frames count ----


@pytest.mark.parametrize("kind", KINDS)
def test_the_frames_of_a_padded_utterance_are_those_that_it_has_alone(world, kind):
    processor, model = loaded(world, kind)
    rule = FrameRule(model, inputs_per_second(processor.feature_extractor))
    alone = []
    for seconds in (0.5, 0.82, 1.0):
        frames, _ = SpeechCtc().loss_sums(None, model, batch_of_noise(processor, model, seconds))
        alone.append(frames.logits.shape[1])
        assert frames.num_frames.tolist() == alone[-1:]
        # The same id twice needs a blank between.
        assert rule([0] * alone[-1], (seconds, seconds)) == speech_ctc.TOO_LONG
        assert rule(list(range(alone[-1] - 1)), (seconds, seconds)) is None
    batch = batch_of_noise(processor, model, 0.5, 0.82, 1.0)
    assert ("attention_mask" in batch) == (kind != "group_norm")
    assert SpeechCtc().loss_sums(None, model, batch)[0].num_frames.tolist() == alone
    # Without an attention mask training hears the padding: all frames count.
    expected = [alone[-1]] * 3 if kind == "group_norm" else alone
    assert SpeechCtc().loss_sums(None, model.train(), batch)[0].num_frames.tolist() == expected


@pytest.mark.parametrize("kind", KINDS)
def test_no_clip_is_recognised_by_the_clips_beside_it(world, kind):
    """Pitfall 12, and where padding is heard: clips of one length go together, and without it."""
    processor, model = loaded(world, kind)
    seconds, labels = (0.5, 0.5, 1.0, 0.5), [[3, 4], [4], [3, 4, 3], [5, 4]]
    loss = SpeechCtc().load_loss(None, LABELS, FinetuningArguments(output_dir="unused"), model)
    with torch.no_grad():
        frames, sums = SpeechCtc().loss_sums(loss, model, batch_of_noise(processor, model, *seconds, labels=labels))
        alone = [
            SpeechCtc().loss_sums(loss, model, batch_of_noise(processor, model, length, labels=[ids]))
            for length, ids in zip(seconds, labels, strict=True)
        ]
    for row, (one, _) in enumerate(alone):
        number = int(one.num_frames)
        assert frames.num_frames[row] == number
        torch.testing.assert_close(frames.logits[row, :number], one.logits[0, :number], rtol=0, atol=1e-5)
    assert sums["items"].item() == pytest.approx(sum(float(one["items"]) for _, one in alone), rel=1e-5)


@pytest.mark.parametrize("kind", ["group_norm", "masked_group_norm"])
def test_a_batch_is_recognised_as_the_pipeline_does_one_by_one(world, tmp_path, kind):
    processor, model = loaded(world, kind)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    recogniser = pipeline("automatic-speech-recognition", model=str(tmp_path), device="cpu")
    generator = random.Random(0)
    waveforms = [tiny_speech.spelt(text, generator) for text in ("ABC", "C B", "CABAC", "B")]
    examples = [
        {"features": extracted(processor.feature_extractor, waveform), "example_id": row}
        for row, waveform in enumerate(waveforms)
    ]
    batch = SpeechCtc().data_collator(processor, model)(examples)
    with torch.no_grad():
        frames, _ = SpeechCtc().loss_sums(None, model, batch)
        padded = model(batch["input_values"]).logits
    texts = SpeechCtc().predict(model, frames, batch, processor)
    assert texts == [recogniser({"raw": waveform, "sampling_rate": 16_000})["text"] for waveform in waveforms]
    assert texts != SpeechCtc().predict(model, Frames(padded, all_frames(padded)), batch, processor)


def test_clips_of_one_length_go_through_together(world):
    processor, model = loaded(world, "group_norm")
    heard, forward = [], model.forward
    model.forward = lambda **inputs: (heard.append(tuple(inputs["input_values"].shape)), forward(**inputs))[1]
    batch = batch_of_noise(processor, model, 0.5, 0.5, 1.0)
    SpeechCtc().loss_sums(None, model, batch)
    assert heard == [(2, 8_000), (1, 16_000)]
    SpeechCtc().loss_sums(None, model.train(), batch)
    assert heard[2:] == [(3, 16_000)]


def test_labels_longer_than_the_frames(world):
    """Pitfall 16. A second is 50 frames; a repeated letter takes three, with the blank."""
    processor, model = loaded(world, "layer_norm")
    rule = SpeechCtc().misfit_rule(processor, model)
    alternating, second = [3, 4] * 25, (1.0, 1.0)
    assert rule(alternating[:49], second) is None
    assert rule([3] * 25, second) is None
    assert (
        rule([3] * 26, second)
        == rule([*alternating, 3], second)
        == "have transcripts of more characters than frames of sound"
    )


def test_labels_have_to_fit_the_frames_at_the_highest_speed(world, caplog):
    """Half a second has 24 frames, and 22 where it takes 100/110 of its time; evaluation hears it as it is."""
    task = SpeechCtc(augmentation="full")
    processor, model = loaded(world, "layer_norm", "AB", task=task)
    rows = utterances(*(("AB" * 13)[:number] for number in (22, 23, 24, 25)), seconds=0.5)
    kept = {}
    for split in ("train", "validation"):
        chosen = task.select_examples(rows, COLUMNS, LABELS, split=split)
        kept[split] = task.preprocess(chosen, COLUMNS, LABELS, processor, model, split=split)
    assert [len(text) for text in kept["train"]["labels"]] == [22]
    assert [len(text) for text in kept["validation"]["labels"]] == [22, 23, 24, 25]
    assert f"train: 1 of 4 clips {speech_ctc.TOO_LONG}; they are left out" in caplog.text
    assert f"train: 2 of 4 clips {speech_ctc.TOO_LONG} once --augmentation full has changed them" in caplog.text
    assert f"validation: 1 of 4 clips {speech_ctc.TOO_LONG}; they are scored like any other" in caplog.text
    read = task.load_reader(processor, model, COLUMNS, LABELS, split="train", seed=0)
    shortest = min(len(read(kept["train"][0], epoch)["features"]["input_values"]) for epoch in range(60))
    assert 22 <= int(speech_ctc.output_lengths(model, torch.tensor(shortest))) < 24


@pytest.mark.parametrize("kind", ["layer_norm", "group_norm", "wav2vec2_bert"])
def test_clips_shorter_than_what_the_model_masks_at_once(world, kind):
    """wav2vec2 draws spans of 10 frames and refuses a batch that is shorter; augmentation shortens clips."""
    processor, model = loaded(world, kind, config_overrides=["mask_time_prob=0.5"])
    seconds = 0.1 if kind == "wav2vec2_bert" else 0.19
    batch = batch_of_noise(processor, model, seconds, seconds, labels=[[3], [3, 4]])
    loss = SpeechCtc().load_loss(None, LABELS, FinetuningArguments(output_dir="unused"), model)
    num_frames = SpeechCtc().loss_sums(loss, model, batch)[0].num_frames.tolist()
    assert num_frames[0] < 10
    assert SpeechCtc().misfit_rule(processor, model)([3], (seconds, seconds)) is None
    model.train()
    with pytest.raises(ValueError, match="`mask_length` has to be smaller than `sequence_length`"):
        frames_of(model, {name: batch[name] for name in batch if name.startswith(("input", "attention"))})
    frames, sums = SpeechCtc().loss_sums(loss, model, batch)
    assert frames.num_frames.tolist() == ([10, 10] if kind == "group_norm" else num_frames)
    assert sums["items"] > 0


# ---- the loss ----


@pytest.mark.parametrize("kind", ["layer_norm", "group_norm", "wav2vec2_bert", "crnn"])
def test_the_loss_is_the_models_own(world, kind):
    """Which takes the mean over a batch, so that it depends on how a global batch is cut (pitfall 1)."""
    processor, model = loaded(world, kind)
    seconds = (1.0, 1.0) if kind == "group_norm" else (0.6, 1.0)  # the model itself would hear the padding
    batch = batch_of_noise(processor, model, *seconds, labels=[[3, 3, 4], [5, 2, 4, 3, 3]])
    loss = SpeechCtc().load_loss(None, LABELS, FinetuningArguments(output_dir="unused"), model)
    _, sums = SpeechCtc().loss_sums(loss, model, batch)
    ours = sums["items"] / SpeechCtc().loss_denominators(loss, batch)["items"]
    inputs = {name: batch[name] for name in batch if name not in ("example_id", "num_samples")}
    assert ours.item() == pytest.approx(model(**inputs).loss.item(), rel=1e-5)


def test_a_label_that_does_not_fit_is_no_nan(world):
    """Pitfall 16: in evaluation such an utterance stays, with a loss of 0."""
    processor, model = loaded(world, "layer_norm")
    loss = SpeechCtc().load_loss(None, LABELS, FinetuningArguments(output_dir="unused"), model)
    fitting = batch_of_noise(processor, model, 1.0, labels=[[3, 4]])
    both = batch_of_noise(processor, model, 1.0, 1.0, labels=[[3, 4], [3, 4] * 100])
    sums = [SpeechCtc().loss_sums(loss, model, batch)[1]["items"] for batch in (fitting, both)]
    assert sums[0].item() == pytest.approx(sums[1].item(), rel=1e-5)
    assert float(SpeechCtc().loss_denominators(loss, both)["items"]) == 2


def test_silence_has_a_loss(world):
    processor, model = loaded(world, "layer_norm")
    loss = SpeechCtc().load_loss(None, LABELS, FinetuningArguments(output_dir="unused"), model)
    batch = batch_of_noise(processor, model, 0.5, 0.7, labels=[[], []])
    assert SpeechCtc().loss_sums(loss, model, batch)[1]["items"] > 0


def test_label_smoothing_is_refused(world):
    arguments = FinetuningArguments(output_dir="unused", label_smoothing_factor=0.1)
    with pytest.raises(ArgumentError, match="--label_smoothing_factor 0.1: CTC has no smoothed form"):
        SpeechCtc().load_loss(None, LABELS, arguments, SimpleNamespace())


def make_trainer(world: Path, output_dir: Path, kind: str, *, task: SpeechCtc | None = None, rows: int = 4, **flags):
    """A trainer of plain SGD at rate 1 on the first rows in their order."""
    data_args = DataArguments(dataset_name=str(world / "spelt"))
    splits = load_splits(data_args, cache_dir=str(world / "cache")).splits
    train = splits["train"].select(range(rows))
    arguments = {
        "max_steps": 1,
        "learning_rate": 1.0,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "lr_scheduler_type": "constant",
        "train_sampling_strategy": "sequential",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "cpu_bf16": "off",
        "dataloader_num_workers": 0,
        **flags,
    }
    overrides = ["dropout=0", "apply_spec_augment=false"] if kind == "crnn" else None
    return build_trainer(
        task or SpeechCtc(),
        DataArguments(),
        model_args(world, kind, config_overrides=overrides),
        FinetuningArguments(output_dir=str(output_dir), **arguments),
        datasets={"train": train, "validation": splits["test"], "test": splits["test"]},
    )


@pytest.mark.parametrize("kind", ["layer_norm", "wav2vec2_bert", "crnn"])
def test_a_global_batch_has_one_gradient_however_it_is_cut(world, kind, tmp_path):
    """Pitfall 1, with clips of different lengths, and so of different paddings in each cut."""
    whole, cut = (
        gradient(
            make_trainer(world, tmp_path, kind, per_device_train_batch_size=size, gradient_accumulation_steps=4 // size)
        )
        for size in (4, 2)
    )
    assert relative_difference(cut, whole) < 1e-5


# ---- what is trained ----


@pytest.mark.parametrize(
    ("kind", "given", "from_scratch", "is_frozen"),
    [
        ("layer_norm", None, False, True),
        ("layer_norm", None, True, False),
        ("layer_norm", False, False, False),
        ("layer_norm", True, True, True),
        ("wav2vec2_bert", None, False, False),
    ],
)
def test_the_feature_encoder_is_frozen_where_it_is_pretrained(world, kind, given, from_scratch, is_frozen):
    _, model = loaded(world, kind, task=SpeechCtc(freeze_feature_encoder=given), from_scratch=from_scratch)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    there = {name for name, _ in model.named_parameters() if ".feature_extractor." in name}
    assert frozen == (there if is_frozen else set())


def test_a_model_without_convolutions_on_the_waveform_has_none_to_freeze(world):
    assert all(parameter.requires_grad for parameter in loaded(world, "crnn")[1].parameters())
    with pytest.raises(ModelError, match="--freeze_feature_encoder: Wav2Vec2BertForCTC reads no waveform"):
        loaded(world, "wav2vec2_bert", task=SpeechCtc(freeze_feature_encoder=True))


def test_adapters_and_the_head_can_be_trained_alone(world, tmp_path):
    """As MMS is fine-tuned to another language."""
    tiny_speech.save_wav2vec2(tmp_path / "mms", adapter_attn_dim=4)
    task = SpeechCtc(train_adapter_layers=True)
    _, model = loaded(world, str(tmp_path / "mms"), task=task)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {
        "lm_head.weight", "lm_head.bias",
        *(f"wav2vec2.encoder.layers.{layer}.adapter_layer.{name}" for layer in (0, 1) for name in (
            "norm.weight", "norm.bias", "linear_1.weight", "linear_1.bias", "linear_2.weight", "linear_2.bias")),
    }  # fmt: skip


def test_adapters_that_are_not_there(world):
    with pytest.raises(ModelError, match="--train_adapter_layers: this Wav2Vec2ForCTC has none.*adapter_attn_dim=16"):
        loaded(world, "layer_norm", task=SpeechCtc(train_adapter_layers=True))
    with pytest.raises(ArgumentError, match="--train_adapter_layers and --freeze_base_model"):
        loaded(world, "layer_norm", task=SpeechCtc(train_adapter_layers=True), freeze_base_model=True)


# ---- decoding ----


def one_hot(tokenizer, *paths: str, num_frames: list[int] | None = None) -> Frames:
    """Logits of the characters of a path, `-` for the blank; all frames are sound unless told otherwise."""
    ids = [[tokenizer.convert_tokens_to_ids("[PAD]" if letter == "-" else letter) for letter in path] for path in paths]
    logits = 10 * torch.nn.functional.one_hot(torch.tensor(ids), len(tokenizer)).float()
    return Frames(logits, all_frames(logits) if num_frames is None else torch.tensor(num_frames))


def test_the_best_path_loses_repetitions_and_blanks(world):
    processor, model = loaded(world, "group_norm", "GOD")
    outputs = one_hot(processor.tokenizer, "GGO-O-DD", "-GO|GO--")
    assert SpeechCtc().predict(model, outputs, {}, processor) == ["GOOD", "GO GO"]


def test_frames_of_the_padding_are_not_read(world):
    processor, model = loaded(world, "layer_norm", "GOD")
    # 400 samples make the first frame, 320 each further one.
    mask = (torch.arange(400 + 7 * 320) < torch.tensor([[400 + 2 * 320], [400 + 7 * 320]])).long()
    num_frames = frames_of(model, {"input_values": torch.zeros(mask.shape), "attention_mask": mask}).num_frames.tolist()
    assert num_frames == [model._get_feat_extract_output_lengths(length).item() for length in mask.sum(dim=1)]
    outputs = one_hot(processor.tokenizer, "GO-DDDDD", "GO-DDDDD", num_frames=num_frames)
    expected = [processor.tokenizer.decode(outputs.logits[0, :number].argmax(-1)) for number in num_frames]
    assert SpeechCtc().predict(model, outputs, {}, processor) == expected == ["GO", "GOD"]


BEAM = {"decoder": "beam", "lm_path": "words.arpa"}


def test_a_language_model_is_loaded_once(world, monkeypatch):
    loadings = []

    def load(lm_path, tokenizer, **options):
        loadings.append((lm_path, options))
        return lambda logits, frames: [f"{len(frames)} utterances of {logits.shape[1]} frames"]

    monkeypatch.setattr(speech_ctc, "load_beam_decoder", load)
    speech_ctc._beam_decoder.cache_clear()
    task = SpeechCtc(**BEAM, lm_unit="character", lm_weight=0.7, word_insertion_bonus=0.2, beam_width=8)
    processor, model = loaded(world, "group_norm", "GOD", task=task)
    assert len(loadings) == 1  # before training
    outputs = one_hot(processor.tokenizer, "GO-D")
    for _ in range(3):
        assert task.predict(model, outputs, {}, processor) == ["1 utterances of 4 frames"]
    options = {"lm_unit": "character", "beam_width": 8, "lm_weight": 0.7, "word_insertion_bonus": 0.2}
    assert loadings == [("words.arpa", options)]


def test_the_pipeline_decodes_greedily(world):
    """And of spectrograms it reads the frames, too, that are there to make their number even."""
    processor, model = loaded(world, "wav2vec2_bert", "GOD")
    batch = batch_of_noise(processor, model, 0.83)  # 81 frames of 10 ms, in pairs
    assert batch["attention_mask"].tolist() == [[1] * 40 + [0]]
    num_frames = SpeechCtc().loss_sums(None, model, batch)[0].num_frames.tolist()
    outputs = one_hot(processor.tokenizer, "-" * 39 + "GO", num_frames=num_frames)
    task = SpeechCtc(**BEAM, casing="upper")
    assert task.as_the_pipeline_does.predict(model, outputs, batch, processor) == ["GO"]
    assert SpeechCtc().predict(model, outputs, batch, processor) == ["G"]
    assert task.as_the_pipeline_does.casing == "upper"


@pytest.mark.skipif(find_spec("flashlight") is None, reason="the extra lm is not installed")
def test_a_beam_with_a_language_model_puts_right_what_the_best_path_gets_wrong(world, tmp_path):
    (tmp_path / "words.arpa").write_text(WORDS)
    task = SpeechCtc(decoder="beam", lm_path=str(tmp_path / "words.arpa"), lm_weight=2.0)
    processor, model = loaded(world, "group_norm", "GO HOME", "GOOD DAY", task=task)
    outputs = one_hot(processor.tokenizer, "GO|-HAME-")
    outputs.logits[0, 5, processor.tokenizer.convert_tokens_to_ids("O")] = 9.0
    assert task.as_the_pipeline_does.predict(model, outputs, {}, processor) == ["GO HAME"]
    assert task.predict(model, outputs, {}, processor) == ["GO HOME"]


def test_a_language_model_that_is_not_there_is_known_before_training(world):
    with pytest.raises(ModelError, match="--lm_path words.arpa: no such file"):
        loaded(world, "layer_norm", "GO", task=SpeechCtc(**BEAM))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"decoder": "beam"}, "--decoder beam needs a language model: give --lm_path"),
        ({"lm_path": "words.arpa"}, "--lm_path words.arpa is read by --decoder beam alone"),
    ],
)
def test_flags_that_do_not_go_together(flags, message):
    with pytest.raises(ArgumentError, match=message):
        SpeechCtc(**flags)


# ---- whole runs ----


def run(world: Path, output_dir: Path, model: Path | str, *given, **flags) -> tiny.Run:
    once = {"num_train_epochs": 1, "eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": "false"}
    return tiny.run_recipe(
        "--dataset_name", world / "spelt", "--model_name_or_path", model, "--output_dir", output_dir, *given,
        recipe="speech_ctc", **{**once, **flags},
    )  # fmt: skip


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def crnn_run(world, tmp_path_factory) -> tuple[tiny.Run, Path]:
    folder = tmp_path_factory.mktemp("crnn")
    overrides = ("--config_overrides", "hidden_size=32", "num_mel_bins=20", "conv_channels=12")
    return run(world, folder, "builtin:crnn", *overrides, num_train_epochs=16, learning_rate=5e-3), folder


def test_the_recurrent_network_learns_to_spell(crnn_run):
    """From random weights, in seconds; CER is the share of letters that are wrong."""
    finished, folder = crnn_run
    assert finished.exit_code == 0, finished.output
    assert finished.metrics["cer"] < 0.1
    results = json.loads((folder / "results.json").read_text())
    assert set(results["metrics"]) == {"validation", "test"}
    assert {"wer", "cer", "wer_raw", "cer_raw", "substitutions", "deletions", "insertions"} < set(
        results["metrics"]["test"]
    )
    assert results["main_metric"] == "wer"
    assert results["model"]["architecture"] == "CrnnForCTC"
    assert "reloaded with transformers.pipeline: 6 examples differ by at most 0.0e+00" in finished.output


def test_each_prediction_stands_beside_its_transcript(world, crnn_run):
    _, folder = crnn_run
    with (world / "spelt" / "test" / "metadata.csv").open() as file:
        expected = [row["text"] for row in csv.DictReader(file)]
    written = lines(folder / "predictions" / "test.jsonl")
    assert [line["label"] for line in written] == expected
    assert written[3]["audio"] == "test/3.wav"
    assert sum(line["prediction"] == line["label"] for line in written) > len(written) / 2
    assert (folder / "reports" / "worst_utterances_test.html").is_file()
    assert (folder / "reports" / "worst_utterances_validation.html").is_file()


def test_a_user_reloads_it_with_the_pipeline(world, crnn_run):
    """And hears from it what predictions/test.jsonl says."""
    _, folder = crnn_run
    recogniser = pipeline("automatic-speech-recognition", model=str(folder))
    for index, line in enumerate(lines(folder / "predictions" / "test.jsonl")):
        samples, rate = soundfile.read(world / "spelt" / "test" / f"{index}.wav", dtype="float32")
        assert recogniser({"raw": samples, "sampling_rate": rate})["text"] == line["prediction"]


@pytest.mark.parametrize("kind", ["layer_norm", "group_norm", "letters", "wav2vec2_bert"])
def test_encoders_train_evaluate_and_reload(world, tmp_path, kind):
    finished = run(world, tmp_path / "out", world / kind, max_train_samples=16)
    assert finished.exit_code == 0, finished.output
    assert "reloaded with transformers.pipeline" in finished.output
    assert len(lines(tmp_path / "out" / "predictions" / "test.jsonl")) == 12
    processor = Wav2Vec2Processor.from_pretrained(tmp_path / "out")
    assert len(processor.tokenizer) == (32 if kind == "letters" else 6)
    extractor = AutoFeatureExtractor.from_pretrained(tmp_path / "out")
    assert extractor.return_attention_mask == (kind != "group_norm")


def test_the_error_rate_does_not_depend_on_the_batch(world, tmp_path):
    """Pitfall 12: the padding of a batch is neither heard nor read."""
    for kind in ("layer_norm", "group_norm", "masked_group_norm", "crnn"):
        rates = set()
        for size in (1, 5):
            trainer = make_trainer(world, tmp_path, kind, per_device_eval_batch_size=size)
            metrics = trainer.evaluate()
            rates.add((round(metrics["eval_loss"], 4), metrics["eval_cer_raw"]))
        assert len(rates) == 1


def test_a_run_that_streams(world, tmp_path):
    """The vocabulary has to be given; the length of the set is not known."""
    flags = ("--streaming", "true", "--validation_split_name", "test", "--train_sampling_strategy", "random")
    finished = run(world, tmp_path / "out", world / "letters", *flags, max_steps=2, num_train_epochs=3)
    assert finished.exit_code == 0, finished.output
    finished = run(world, tmp_path / "other", world / "layer_norm", *flags, max_steps=2)
    assert finished.exit_code == 2
    assert "--streaming: a vocabulary is made of all training transcripts" in finished.output


def test_the_log_of_a_run_says_what_was_left_out(world, tmp_path):
    """One clip of training is too short for its transcript; one of the test split is, too, and is scored."""
    folder = tmp_path / "clips"
    for split in ("train", "test"):
        rows = []
        for index, text in enumerate(["AB", "BA", "AB", "ABAB" * 30]):
            tiny_speech.write_wav(folder / split / f"{index}.wav", noise(0.5))
            rows.append({"file_name": f"{index}.wav", "text": text})
        tiny.write_rows(folder / split / "metadata.csv", rows)
    finished = tiny.run_recipe(
        "--dataset_name", folder, "--validation_split_name", "test", "--model_name_or_path", world / "layer_norm",
        "--output_dir", tmp_path / "out", recipe="speech_ctc", num_train_epochs=1,
    )  # fmt: skip
    assert finished.exit_code == 0, finished.output
    reason = "1 of 4 clips have transcripts of more characters than frames of sound; they are"
    assert f"train: {reason} left out" in finished.output
    assert f"validation: {reason} scored like any other" in finished.output
    assert np.isfinite(finished.metrics["loss"])


def test_what_a_wrong_flag_says(world, tmp_path):
    finished = run(world, tmp_path / "out", world / "layer_norm", "--decoder", "beam")
    assert finished.exit_code == 2
    assert "--decoder beam needs a language model" in finished.output


def test_a_character_of_its_own_for_the_space_is_refused_by_name(world):
    from sft_hf.errors import DataError

    with pytest.raises(DataError, match='The training transcripts have the character "|" 1 times'):
        loaded(world, "layer_norm", "A|B")
    assert build_tokenizer(["A B"]).word_delimiter_token == "|"
