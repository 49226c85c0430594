"""Audio classification, stage by stage and in whole runs: what is heard in training and in evaluation, and what is said."""

import io
import json
import logging
import pickle
import random
from pathlib import Path

import numpy as np
import pytest
import soundfile
import tiny
import tiny_speech
import torch
from datasets import Audio, ClassLabel, Dataset, Features, List, Value
from test_trainer import gradient, relative_difference
from transformers import (
    ASTFeatureExtractor,
    AutoConfig,
    AutoModelForAudioClassification,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
    pipeline,
)

from sft_hf import build_trainer
from sft_hf.arguments import DataArguments, FinetuningArguments, ModelArguments
from sft_hf.data.encoded_audio import EncodedAudio
from sft_hf.data.labels import Labels
from sft_hf.data.sources import from_memory
from sft_hf.errors import ArgumentError, DataError, ModelError
from sft_hf.models.crnn import CrnnConfig, CrnnForAudioClassification, build_feature_extractor
from sft_hf.preparation import prepare
from sft_hf.pretrained import freeze_base_model
from sft_hf.task import Columns
from sft_hf.tasks.audio_classification import (
    AudioClassification,
    fixed_seconds,
    keep_patches,
    with_window,
)

COLUMNS = Columns(("audio",), "label")
NAMES = ("high", "low", "middle")
SINGLE = Labels("single_label_classification", NAMES)
MULTI = Labels("multi_label_classification", NAMES)
NUMBERS = Labels("regression", ("label",))
PROBLEMS = {"single": SINGLE, "multi": MULTI, "numbers": NUMBERS}
ARGUMENTS = FinetuningArguments(output_dir="unused")
HZ = 16_000
QUICK = {"dataloader_num_workers": 0, "recipe": "audio_cls"}


def save_crnn(folder: Path) -> None:
    sizes = {"hidden_size": 16, "conv_channels": 8, "num_mel_bins": 32, "dropout": 0.0, "apply_spec_augment": False}
    CrnnForAudioClassification(CrnnConfig(**sizes)).save_pretrained(folder)
    build_feature_extractor().save_pretrained(folder)


KINDS = {
    "wav2vec2": lambda path: tiny_speech.save_wav2vec2(path, layer_norm=True),
    "wav2vec2 base": lambda path: tiny_speech.save_wav2vec2(path, layer_norm=False),
    "w2v-bert": tiny_speech.save_wav2vec2_bert,
    "whisper": tiny_speech.save_whisper,
    "ast": lambda path: tiny_speech.save_ast(path, max_length=128),
    "crnn": save_crnn,
}


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """A model of each kind, and tones."""
    folder = tmp_path_factory.mktemp("world")
    for name, save in KINDS.items():
        save(folder / name)
    tiny_speech.write_tone_folders(folder / "tones", train=48, test=6)
    return folder


@pytest.fixture(autouse=True)
def _log(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("sft_hf"), "propagate", True)
    caplog.set_level(logging.INFO, logger="sft_hf")


def wav(samples: np.ndarray, path: str = "1.wav") -> dict:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, HZ, format="WAV", subtype="FLOAT")
    return {"bytes": buffer.getvalue(), "path": path}


def sounds(number: int, kind: str = "single", *, seconds: float | None = None) -> Dataset:
    """Tones with a class each, with one or two labels, or with a number; of 0.2 to 0.6 s, or all of one length."""
    made = tiny_speech.tones(number, seed=1)
    if seconds is not None:
        made = [(name, np.resize(samples, round(seconds * HZ))) for name, samples in made]
    names = [name for name, _ in made]
    labels, feature = {
        "single": (names, ClassLabel(names=list(NAMES))),
        "multi": ([sorted({name, NAMES[i % 2]}) for i, name in enumerate(names)], List(Value("string"))),
        "numbers": ([float(NAMES.index(name)) for name in names], Value("float32")),
    }[kind]
    features = Features({"audio": EncodedAudio(decode=False), "label": feature})
    return Dataset.from_dict({"audio": [wav(samples) for _, samples in made], "label": labels}, features=features)


def of_length(*seconds: float) -> Dataset:
    """A tone of each length, in the first two classes by turns."""
    generator = random.Random(0)
    clips = [wav(tiny_speech.tone(440.0, one, generator)) for one in seconds]
    features = Features({"audio": EncodedAudio(decode=False), "label": ClassLabel(names=list(NAMES))})
    return Dataset.from_dict({"audio": clips, "label": [row % 2 for row in range(len(clips))]}, features=features)


def selected(dataset: Dataset, task: AudioClassification, labels: Labels = SINGLE, split: str = "train") -> Dataset:
    source = from_memory({"train": dataset}, DataArguments())
    return task.select_examples(source.splits["train"], COLUMNS, labels, split=split)


def loaded(path: Path, task: AudioClassification | None = None, labels: Labels = SINGLE, train=None, **model_args):
    """Task, processor and model for training clips."""
    task, arguments = task or AudioClassification(), ModelArguments(model_name_or_path=str(path), **model_args)
    train = selected(train or sounds(3), AudioClassification())
    processor = task.load_processor(arguments, train, COLUMNS)
    return task, processor, task.load_model(arguments, labels, processor)


def batches(task, processor, model, rows: Dataset, labels: Labels = SINGLE, *, split: str, size: int) -> list[dict]:
    examples = task.preprocess(
        selected(rows, task, labels, split), COLUMNS, labels, processor, model, split=split, num_workers=None
    )
    read = task.load_reader(processor, model, COLUMNS, labels, split=split, seed=42)
    collate = task.data_collator(processor, model)
    found = [read(row, 0) for row in examples]
    collated = [collate(found[start : start + size]) for start in range(0, len(found), size)]
    return [task.on_device(batch, processor, dtype=torch.float32) for batch in collated]


@torch.no_grad()
def evaluated(task, processor, model, rows: Dataset, labels: Labels = SINGLE, *, size: int) -> np.ndarray:
    """Logits (clips, outputs) in evaluation."""
    loss = task.load_loss(Dataset.from_dict({"labels": [0]}), labels, ARGUMENTS, model)
    model.eval()
    found = []
    for batch in batches(task, processor, model, rows, labels, split="validation", size=size):
        outputs, _ = task.loss_sums(loss, model, batch)
        found.append(task.predict(model, outputs, batch, processor))
    return np.concatenate(found)


def sharpened(model):
    """A new head tells nothing apart."""
    with torch.no_grad():
        for name, value in model.named_parameters():
            if name.startswith(("classifier", "projector")) and value.ndim == 2:
                value.mul_(10)
    return model


def saved(folder: Path, processor, model) -> Path:
    for part in (processor, model):
        part.save_pretrained(folder)
    return folder


def trainer_of(output_dir: Path, dataset: Dataset, model: Path, *, task=None, **flags):
    quick = {"max_steps": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "cpu_bf16": "off"}
    quick |= {"learning_rate": 0.01, "lr_scheduler_type": "constant", "dataloader_num_workers": 0}
    return build_trainer(
        task or AudioClassification(),
        DataArguments(),
        ModelArguments(model_name_or_path=str(model)),
        FinetuningArguments(output_dir=str(output_dir), **{**quick, **flags}),
        datasets={"train": dataset, "validation": dataset},
    )


# ---- columns and rows ----


def test_columns_are_found_or_named():
    features = Features({"sound": Audio(), "label": ClassLabel(names=["a", "b"]), "example_id": Value("int64")})
    assert AudioClassification().columns(features) == Columns(("sound",), "label")
    features = Features({"a": Audio(), "b": Audio(), "kind": Value("string")})
    task = AudioClassification(audio_column_name="b", label_column_name="kind")
    assert task.columns(features) == Columns(("b",), "kind")


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ({"text": Value("string"), "label": Value("int64")}, "No column looks like the audio.*--audio_column_name"),
        ({"audio": Audio(), "file": Value("string")}, "No column looks like the label.*--label_column_name"),
        ({"a": Audio(), "b": Audio(), "label": Value("int64")}, "Several columns could be the audio: 'a'"),
    ],
)
def test_columns_that_are_missing_or_unclear(features, message):
    with pytest.raises(DataError, match=message):
        AudioClassification().columns(Features(features))


def test_preprocess_keeps_clips_encoded_beside_their_labels():
    """The ids are those of the model, whatever ids the split has for its names; lengths are in seconds."""
    rows = of_length(0.2, 0.5).rename_columns({"audio": "sound", "label": "kind"})
    columns, task, labels = Columns(("sound",), "kind"), AudioClassification(), Labels(SINGLE.problem_type, NAMES[::-1])
    rows = from_memory({"train": rows.add_column("other", list("ab"))}, DataArguments()).splits["train"]
    chosen = task.select_examples(rows, columns, labels, split="train")
    examples = task.preprocess(chosen, columns, labels, Wav2Vec2FeatureExtractor(), None, split="train")
    assert set(examples.column_names) == {"audio", "labels", "example_id", "length"}
    assert examples["labels"][:] == [2, 1]
    assert examples["length"][:] == [0.2, 0.5]
    assert examples[1]["audio"] == rows[1]["sound"]


def test_rows_without_a_label_are_left_out_and_a_test_split_without_any_is_kept(caplog):
    rows, task, extractor = sounds(4, "numbers"), AudioClassification(), Wav2Vec2FeatureExtractor()
    rows = rows.add_column("number", [1.0, None, 2.0, 3.0]).remove_columns("label").rename_column("number", "label")
    assert selected(rows, task, NUMBERS)["example_id"][:] == [0, 2, 3]
    assert "train: 1 of 4 rows have no label and are left out" in caplog.text
    unlabelled = selected(rows.remove_columns("label"), task, NUMBERS, split="test")
    examples = task.preprocess(unlabelled, COLUMNS, NUMBERS, extractor, None, split="test")
    assert set(examples.column_names) == {"audio", "example_id", "length"}


def test_a_stream_is_preprocessed_row_by_row():
    task, rows = AudioClassification(max_duration_seconds=1.0), of_length(0.2, 1.5, 0.4)
    stream = from_memory({"train": rows.to_iterable_dataset()}, DataArguments()).splits["train"]
    kept = task.select_examples(stream, COLUMNS, SINGLE, split="train")
    examples = list(task.preprocess(kept, COLUMNS, SINGLE, Wav2Vec2FeatureExtractor(), None, split="train"))
    assert [(example["labels"], example["example_id"]) for example in examples] == [(0, 0), (0, 2)]
    assert examples[0]["audio"] == rows[0]["audio"]


def test_a_hold_out_has_clips_of_every_duration(world, caplog):
    """The flags are of training: what is held out is drawn before."""
    rows = of_length(*[0.2, 0.3, 0.9] * 10)
    prepared = prepare(
        AudioClassification(max_duration_seconds=0.5),
        DataArguments(validation_fraction=0.5),
        ModelArguments(model_name_or_path=str(world / "wav2vec2")),
        ARGUMENTS,
        datasets={"train": rows},
    )
    assert max(prepared.examples["train"]["length"]) <= 0.5
    assert max(prepared.examples["validation"]["length"]) == 0.9
    assert "longer than --max_duration_seconds 0.5 and are left out" in caplog.text


# ---- the length that a model hears ----


def test_whisper_hears_as_many_seconds_as_the_longest_training_clip(world, caplog):
    """Pitfalls 39 and 43: 30 seconds of silence behind every word, and a refusal of anything shorter."""
    for seconds, expected in (((0.3, 0.6), 1), ((0.3, 1.0), 1), ((0.3, 1.01), 2), ((0.3, 9.0), 2)):
        _, extractor, model = loaded(world / "whisper", train=of_length(*seconds))
        assert (extractor.chunk_length, extractor.n_samples, extractor.nb_max_frames) == (
            expected,
            expected * HZ,
            expected * 100,
        )
        assert model.config.max_source_positions == model.encoder.max_source_positions == 50 * expected
        assert model.encoder.embed_positions.weight.shape == (50 * expected, 32)
        assert model(torch.zeros(1, 16, 100 * expected)).logits.shape == (1, 3)
    assert "clips are padded to 1 s, not to 2; --max_length_seconds changes it" in caplog.text


def test_the_first_positions_are_kept_and_stay_frozen(world):
    original = AutoModelForAudioClassification.from_pretrained(world / "whisper").encoder.embed_positions.weight
    for options in ({}, {"from_scratch": True}):
        _, _, model = loaded(world / "whisper", **options)
        torch.testing.assert_close(model.encoder.embed_positions.weight, original[:50])
        assert not model.encoder.embed_positions.weight.requires_grad


def test_what_decides_the_window(world):
    """A given length, else the longest clip that training keeps, else the model's own."""
    whisper = world / "whisper"
    assert loaded(whisper, AudioClassification(max_length_seconds=1.5))[1].chunk_length == 2
    assert loaded(whisper, AudioClassification(max_length_seconds=0.5))[1].chunk_length == 1
    assert loaded(whisper, AudioClassification(max_length_seconds=60))[1].chunk_length == 2
    kept = AudioClassification(max_duration_seconds=0.8)
    assert loaded(whisper, kept, train=of_length(0.3, 1.9))[1].chunk_length == 1
    stream = of_length(0.3).to_iterable_dataset()
    extractor = AudioClassification().load_processor(ModelArguments(model_name_or_path=str(whisper)), stream, COLUMNS)
    assert extractor.chunk_length == 2


def test_a_length_that_is_none():
    for seconds in (0, -1, float("inf"), float("nan")):
        with pytest.raises(
            ArgumentError, match=f"--max_length_seconds {seconds}: expected a number of seconds larger than 0"
        ):
            AudioClassification(max_length_seconds=seconds)


@pytest.mark.parametrize("seconds", [0.05, 0.16, 0.5, 0.77, 1.0, 1.23, 9.99])
def test_ast_hears_every_frame_of_the_longest_training_clip(seconds):
    """Its convolution drops the frames at the end that fill no patch: with patches of 16 frames every 10, up to 9 of them."""
    extractor = with_window(ASTFeatureExtractor(num_mel_bins=32), seconds)
    num_patches = (extractor.max_length - 16) // 10 + 1
    num_frames = 1 + (round(seconds * HZ) - 400) // 160
    assert 10 * (num_patches - 1) + 16 >= num_frames
    assert extractor.max_length == min(1024, round(seconds * 100) + 16)


def test_a_window_never_grows():
    for extractor in (WhisperFeatureExtractor(chunk_length=2), ASTFeatureExtractor(num_mel_bins=32, max_length=200)):
        assert with_window(extractor, 2.0) is extractor
        assert with_window(extractor, float("inf")) is extractor
    assert with_window(ASTFeatureExtractor(num_mel_bins=32, max_length=200), 1.95).max_length == 200
    waveforms = Wav2Vec2FeatureExtractor()
    assert with_window(waveforms, 0.1) is waveforms
    assert fixed_seconds(waveforms) is None
    assert (fixed_seconds(WhisperFeatureExtractor()), fixed_seconds(ASTFeatureExtractor(num_mel_bins=32))) == (
        30.0,
        10.24,
    )


def test_ast_keeps_the_positions_of_the_middle_for_each_band_of_frequency(world, caplog):
    """128 frames in patches of 8 every 6: 21 of them in time, 5 in frequency (32 bins); of 0.5 s, 66 frames, 10 are left."""
    original = AutoModelForAudioClassification.from_pretrained(world / "ast")
    positions = torch.arange(2 + 5 * 21).float()[None, :, None].expand(1, -1, 32)
    embeddings = original.audio_spectrogram_transformer.embeddings
    embeddings.position_embeddings.data.copy_(positions)
    keep_patches(original, 66)
    kept = embeddings.position_embeddings[0, :, 0].tolist()
    assert kept[:2] == [0, 1]
    assert kept[2:12] == [2 + 5 + place for place in range(10)]  # (21 - 10) // 2 = 5 are cut off before
    assert kept[12:22] == [2 + 21 + 5 + place for place in range(10)]
    assert len(kept) == 2 + 5 * 10
    assert (original.config.max_length, embeddings.config.max_length) == (66, 66)
    assert original(torch.zeros(1, 66, 32)).logits.shape == (1, 5)

    _, extractor, model = loaded(world / "ast", train=of_length(0.5))
    assert (extractor.max_length, model.config.max_length) == (66, 66)
    assert model.audio_spectrogram_transformer.embeddings.position_embeddings.requires_grad
    assert "clips are padded to 0.66 s, not to 1.28; --max_length_seconds changes it" in caplog.text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("from_scratch", [False, True])
def test_a_plain_pipeline_reloads_what_was_saved(world, kind, from_scratch, tmp_path):
    task, processor, model = loaded(world / kind, from_scratch=from_scratch)
    classifier = pipeline("audio-classification", model=str(saved(tmp_path, processor, model)), device="cpu")
    rows = sounds(3)
    logits = evaluated(task, processor, model, rows, size=3)
    answers = [classifier(task.pipeline_inputs(row, COLUMNS, processor), **task.pipeline_options()) for row in rows]
    assert task.reload_difference(list(logits), answers, SINGLE) < 1e-5
    assert AutoConfig.from_pretrained(tmp_path).id2label == {0: "high", 1: "low", 2: "middle"}
    written = json.loads((tmp_path / "config.json").read_text())
    extractor = json.loads((tmp_path / "preprocessor_config.json").read_text())
    if kind == "whisper":
        assert (written["max_source_positions"], extractor["chunk_length"]) == (50, 1)
        assert (extractor["n_samples"], extractor["nb_max_frames"]) == (16_000, 100)
    if kind == "ast":  # the longest of the three lasts 0.46 s
        assert written["max_length"] == extractor["max_length"] < 128


# ---- what training and evaluation hear ----


def test_training_hears_a_random_part_and_evaluation_all(world):
    task, processor, model = loaded(world / "wav2vec2", AudioClassification(max_length_seconds=0.3))
    rows = of_length(0.2, 0.5)
    (batch,) = batches(task, processor, model, rows, split="train", size=2)
    assert batch["input_values"].shape == (2, 4800)
    assert batch["attention_mask"].sum(dim=1).tolist() == [3200, 4800]
    (batch,) = batches(task, processor, model, rows, split="validation", size=2)
    assert batch["attention_mask"].sum(dim=1).tolist() == [3200, 8000]
    assert "num_windows" not in batch
    assert batch["labels"].tolist() == [0, 1]
    assert batch["example_id"].tolist() == [0, 1]


def test_training_hears_twenty_seconds_at_most(world):
    task, processor, model = loaded(world / "wav2vec2")
    (batch,) = batches(task, processor, model, of_length(21.0), split="train", size=1)
    assert batch["input_values"].shape == (1, 20 * HZ)


@pytest.mark.parametrize("kind", KINDS)
def test_no_augmentation_makes_a_training_window_longer_than_the_evaluations(world, kind):
    """Slower and shifted, 1 second takes 1.2; an extractor of a fixed length would cut the end off without a word."""
    task, processor, model = loaded(world / kind, AudioClassification(augmentation="full", max_length_seconds=0.5))
    batch = batches(task, processor, model, of_length(0.5, 0.9), split="train", size=2)[0]
    name = model.main_input_name
    sizes = {"input_values": (8000,), "input_features": (24, 32)} | (
        {"input_features": (16, 100)} if kind == "whisper" else {}
    )
    expected = (66, 32) if kind == "ast" else sizes[name]
    assert all(size <= limit for size, limit in zip(batch[name].shape[1:], expected, strict=True))


def test_batches_by_seconds_hold_no_more_whatever_augmentation_makes_of_the_clips(world, tmp_path):
    rows = of_length(*[0.2, 0.3, 0.5, 0.9] * 5)
    task = AudioClassification(augmentation="full", max_length_seconds=0.6)
    flags = {
        "tokens_per_batch": 2,
        "train_sampling_strategy": "group_by_length",
        "max_steps": -1,
        "num_train_epochs": 2,
    }
    trainer = trainer_of(tmp_path, rows, world / "wav2vec2", task=task, **flags)
    seen, prepare = [], trainer._prepare_inputs
    trainer._prepare_inputs = lambda batch: (
        seen.append((batch["example_id"].tolist(), batch["input_values"].numel())) or prepare(batch)
    )
    for run, epochs in ((trainer.train, 2), (trainer.evaluate, 1)):
        seen.clear()
        run()
        assert all(num_samples <= 2 * HZ for _, num_samples in seen)
        assert sorted(key for ids, _ in seen for key in ids) == sorted(list(range(20)) * epochs)
    assert [len(ids) for ids, _ in seen] == [2, 2, 2, 4, 6, 4]  # of 0.9 s, 0.9, 0.9, 0.5, 0.3, 0.2


def test_what_a_clip_takes_of_a_batch_by_seconds(world):
    """In training no more than the part that is heard; None where a model hears windows of one length."""
    clips = Dataset.from_dict({"length": [0.01, 0.5, 0.9]})
    task, processor, _ = loaded(world / "wav2vec2", AudioClassification(max_length_seconds=0.6))
    training = task.lengths(clips, processor, split="train")
    assert (training.values.tolist(), training.flag) == ([0.05, 0.5, 0.6], "--max_length_seconds")
    assert task.lengths(clips, processor, split="evaluation").values.tolist() == [0.05, 0.5, 0.9]
    windows = AudioClassification(max_length_seconds=0.6, average_windows=True)
    assert windows.lengths(clips, processor, split="evaluation") is None
    for kind in ("whisper", "ast"):
        task, processor, _ = loaded(world / kind)
        assert task.lengths(clips, processor, split="train") is None


def test_windows_of_evaluation(world):
    """Of a fixed length always, of others if told so; three windows of 0.3 s cover 0.7 s."""
    task, processor, model = loaded(
        world / "wav2vec2", AudioClassification(max_length_seconds=0.3, average_windows=True)
    )
    rows = of_length(0.7, 0.3, 0.2)
    (batch,) = batches(task, processor, model, rows, split="validation", size=3)
    assert batch["num_windows"].tolist() == [3, 1, 1]
    assert batch["attention_mask"].sum(dim=1).tolist() == [4800] * 4 + [3200]
    task, processor, model = loaded(world / "whisper")
    (batch,) = batches(task, processor, model, of_length(1.0, 2.5), split="validation", size=2)
    assert batch["num_windows"].tolist() == [1, 3]
    assert batch["input_features"].shape == (4, 16, 100)


def test_a_fixed_window_is_heard_whole_whatever_training_crops(world):
    """--max_length_seconds 1.5 trains on parts of 1.5 s in a window of 2; what the pipeline hears of 1.9 s, evaluation hears too."""
    task, processor, model = loaded(world / "whisper", AudioClassification(max_length_seconds=1.5))
    rows = of_length(1.9)
    (batch,) = batches(task, processor, model, rows, split="validation", size=1)
    assert "num_windows" not in batch
    (seen,) = task.pipeline_inputs(rows[0], COLUMNS, processor)
    assert len(seen["raw"]) == round(1.9 * HZ)
    averaged = AudioClassification(max_length_seconds=1.5, average_windows=True)
    assert [len(seen["raw"]) for seen in averaged.pipeline_inputs(rows[0], COLUMNS, processor)] == [24_000, 24_000]


@pytest.mark.parametrize("problem", PROBLEMS)
@pytest.mark.parametrize("kind", ["wav2vec2 base", "whisper", "ast"])
def test_averaged_windows_are_the_mean_of_the_pipelines_answers(world, kind, problem, tmp_path):
    labels = PROBLEMS[problem]
    task = AudioClassification(max_length_seconds=0.3, average_windows=True)
    task, processor, model = loaded(world / kind, task, labels)
    sharpened(model)
    classifier = pipeline("audio-classification", model=str(saved(tmp_path, processor, model)), device="cpu")
    rows = sounds(4, problem)
    logits = evaluated(task, processor, model, rows, labels, size=4)
    answers = [classifier(task.pipeline_inputs(row, COLUMNS, processor), **task.pipeline_options()) for row in rows]
    assert max(map(len, answers)) == 2
    assert task.reload_difference(list(logits), answers, labels) < 1e-5
    assert task.reload_difference(list(logits[::-1]), answers, labels) > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_no_score_depends_on_the_clips_beside_it(world, kind):
    """Without an attention mask, or under group normalisation, padding would be heard: clips of one length go together."""
    task, processor, model = loaded(world / kind)
    sharpened(model)
    rows = sounds(7)
    one_by_one = evaluated(task, processor, model, rows, size=1)
    assert np.ptp(one_by_one, axis=0).min() > 1e-3
    for size in (3, 7):
        np.testing.assert_allclose(evaluated(task, processor, model, rows, size=size), one_by_one, atol=1e-5)


def test_a_long_clip_never_reaches_the_model_at_once(world):
    """An hour in windows of a second is 3,600 of them; the batch size of the evaluation bounds the forward pass."""
    task, processor, model = loaded(world / "whisper")
    heard, forward = [], model.forward
    model.forward = lambda **inputs: (heard.append(len(inputs["input_features"])), forward(**inputs))[1]
    evaluated(task, processor, model, of_length(6.5, 0.5), size=2)
    assert heard == [2, 2, 2, 2]  # 7 windows and 1


def test_a_long_clip_that_is_heard_whole_is_warned_of(world, caplog):
    rows = of_length(121.0)
    task, processor, model = loaded(world / "wav2vec2")
    for split, expected in (("train", 0), ("test", 1)):
        chosen = selected(rows, task, split=split)
        task.preprocess(chosen, COLUMNS, SINGLE, processor, model, split=split)
        assert caplog.text.count("heard whole") == expected
    assert "test: the longest clip lasts 121 s and is heard whole, which takes memory; --average_windows" in caplog.text
    task, processor, model = loaded(world / "whisper")
    task.preprocess(selected(rows, task, split="test"), COLUMNS, SINGLE, processor, model, split="test")
    assert caplog.text.count("heard whole") == 1


@pytest.mark.parametrize("kind", KINDS)
def test_clips_of_milliseconds(world, kind, tmp_path):
    """The convolutions of wav2vec2 need 25 ms: shorter clips get silence behind them, in training, evaluation and reload check."""
    masks = {"config_overrides": ["mask_time_prob=0.1", *(["apply_spec_augment=true"] if kind == "crnn" else [])]}
    masks = {} if kind == "ast" else masks
    task, processor, model = loaded(world / kind, **masks)
    rows = of_length(0.005, 0.0001)
    loss = task.load_loss(Dataset.from_dict({"labels": [0]}), SINGLE, ARGUMENTS, model)
    (batch,) = batches(task, processor, model, rows, split="train", size=2)
    _, sums = task.loss_sums(loss, model.train(), batch)
    assert torch.isfinite(sums["items"])
    logits = evaluated(task, processor, model, rows, size=2)
    classifier = pipeline("audio-classification", model=str(saved(tmp_path, processor, model)), device="cpu")
    answers = [classifier(task.pipeline_inputs(row, COLUMNS, processor), **task.pipeline_options()) for row in rows]
    assert task.reload_difference(list(logits), answers, SINGLE) < 1e-5


def test_the_evaluation_is_never_augmented(world):
    task, processor, model = loaded(world / "wav2vec2", AudioClassification(augmentation="full"))
    plain, _, _ = loaded(world / "wav2vec2")
    rows = sounds(2)
    (given,), (expected,) = (batches(one, processor, model, rows, split="validation", size=2) for one in (task, plain))
    assert torch.equal(given["input_values"], expected["input_values"])
    (given,), (expected,) = (batches(one, processor, model, rows, split="train", size=2) for one in (task, plain))
    assert given["input_values"].shape != expected["input_values"].shape


def test_the_collator_pickles_and_makes_targets(world):
    """Pitfall 24: a lambda does not pickle, and loader workers die of it."""
    task, processor, model = loaded(world / "wav2vec2")
    collate = pickle.loads(pickle.dumps(task.data_collator(processor, model)))
    window = {"input_values": np.zeros(5, np.float32), "attention_mask": np.ones(5, np.int32)}
    examples = [{"windows": [window], "labels": label, "example_id": 9, "length": 1.0} for label in (1, 2)]
    batch = collate(examples)
    assert set(batch) == {"input_values", "attention_mask", "labels", "example_id"}
    assert (batch["labels"].dtype, batch["labels"].tolist()) == (torch.int64, [1, 2])
    assert "labels" not in collate([{**example, "labels": None} for example in examples])
    model.config.problem_type = "multi_label_classification"
    targets = task.data_collator(processor, model)([{**example, "labels": [1, 0]} for example in examples])["labels"]
    assert (targets.dtype, targets.tolist()) == (torch.float32, [[1, 0], [1, 0]])
    for split in ("train", "validation"):
        pickle.dumps(task.load_reader(processor, model, COLUMNS, SINGLE, split=split, seed=1))


# ---- models ----


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_head_fits_the_labels_and_the_loss_starts_where_it_should(world, kind, problem):
    """Pitfall 3: ln 3, ln 2 for each label, or the mean of the squares; and the problem is said, not inferred."""
    labels = PROBLEMS[problem]
    task, processor, model = loaded(world / kind, labels=labels)
    model.eval()
    with torch.no_grad():
        (head,) = [x for x in model.modules() if isinstance(x, torch.nn.Linear) and x.out_features == labels.num_labels]
        head.weight.mul_(0.01)
    assert model.config.problem_type == labels.problem_type
    assert model.config.id2label == labels.id2label
    (batch,) = batches(task, processor, model, sounds(6, problem), labels, split="validation", size=6)
    loss = task.load_loss(Dataset.from_dict({"labels": [0]}), labels, ARGUMENTS, model)
    _, sums = task.loss_sums(loss, model, batch)
    expected = {"single": np.log(3), "multi": np.log(2), "numbers": (4 + 1 + 0) / 3}[problem]
    denominator = float(task.loss_denominators(loss, batch)["items"])
    assert sums["items"].item() / denominator == pytest.approx(expected, abs=0.05)


@pytest.mark.parametrize(
    ("kind", "head"),
    [
        ("wav2vec2", {"projector", "classifier"}),
        ("w2v-bert", {"projector", "classifier"}),
        ("crnn", {"classifier"}),
        ("whisper", {"projector", "classifier"}),
        ("ast", {"classifier"}),
    ],
)
def test_a_frozen_base_model_leaves_the_head(world, kind, head):
    _, _, model = loaded(world / kind)
    freeze_base_model(model)
    trained = {name.partition(".")[0] for name, value in model.named_parameters() if value.requires_grad}
    assert trained == head


def test_a_frozen_feature_encoder(world):
    task = AudioClassification(freeze_feature_encoder=True)
    for kind in ("wav2vec2", "wav2vec2 base"):
        _, _, model = loaded(world / kind, task)
        frozen = {name.split(".")[1] for name, value in model.named_parameters() if not value.requires_grad}
        assert frozen == {"feature_extractor"}
    for kind in ("whisper", "ast", "w2v-bert", "crnn"):
        with pytest.raises(
            ModelError, match="--freeze_feature_encoder: .* reads no waveform by convolutions of its own"
        ):
            loaded(world / kind, task)


def test_the_recurrent_baseline_starts_from_nothing(caplog):
    """builtin:crnn has no files: its extractor pads waveforms and says where."""
    _, extractor, model = loaded("builtin:crnn", config_overrides=["hidden_size=16"])
    assert (type(model).__name__, model.config.num_labels, model.config.hidden_size) == (
        "CrnnForAudioClassification",
        3,
        16,
    )
    assert (extractor.sampling_rate, extractor.do_normalize, extractor.return_attention_mask) == (HZ, False, True)
    assert "train: 1.1 seconds of sound, the longest clip 0.5 s" in caplog.text


# ---- training ----


GRADIENTS = {
    "one class": ("single", {"class_weights": "balanced"}, {"label_smoothing_factor": 0.1}),
    "several labels": ("multi", {"loss": "focal"}, {}),
    "numbers": ("numbers", {"loss": "huber"}, {}),
}


@pytest.mark.parametrize(
    ("kind", "name"),
    [(kind, "one class") for kind in KINDS] + [("wav2vec2", "several labels"), ("whisper", "numbers")],
)
def test_pitfall_1_a_global_batch_has_one_gradient_however_it_is_cut(kind, name, world, tmp_path):
    """Pitfall 2 too. Clips without a mask are of one length, since the model hears what a batch of others is padded with."""
    problem, options, flags = GRADIENTS[name]
    rows = sounds(4, problem, seconds=0.25 if kind == "wav2vec2 base" else None)
    sgd = {"learning_rate": 1.0, "optim": "sgd", "max_grad_norm": 0.0, "task": AudioClassification(**options), **flags}
    whole, cut = (
        gradient(
            trainer_of(
                tmp_path,
                rows,
                world / kind,
                **sgd,
                per_device_train_batch_size=size,
                gradient_accumulation_steps=4 // size,
            )
        )
        for size in (4, 2)
    )
    assert float(whole.norm()) > 0
    assert relative_difference(cut, whole) < 1e-5


def test_pitfall_44_a_resumed_run_and_one_with_workers_end_with_the_same_weights(world, tmp_path):
    """Augmented and cropped, bit for bit; step 2 of 4 is inside the second of the epochs of two steps, the last one short."""
    task = AudioClassification(augmentation="full", max_length_seconds=0.3)

    def trainer(**more):
        flags = {"per_device_train_batch_size": 4, "max_steps": 4, "task": task, **more}
        return trainer_of(tmp_path, sounds(7), world / "wav2vec2", **flags)

    whole = trainer(save_strategy="steps", save_steps=3)
    whole.train()
    with_workers = trainer(dataloader_num_workers=2)
    with_workers.train()
    resumed = trainer()
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert resumed.state.global_step == 4
    fresh = trainer()
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, with_workers.model.state_dict()[name]), name
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    same = [torch.equal(value, fresh.model.state_dict()[name]) for name, value in whole.model.state_dict().items()]
    assert not all(same)


def test_evaluation_does_not_depend_on_the_batch_size(world, tmp_path):
    losses = [
        trainer_of(tmp_path, sounds(7), world / "wav2vec2 base", per_device_eval_batch_size=size).evaluate()[
            "eval_loss"
        ]
        for size in (1, 3, 7)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


# ---- whole runs ----


def run(world: Path, model: str, folder: Path, *flags: object, **quick) -> tiny.Run:
    given = ("--dataset_name", world / "tones", "--model_name_or_path", world / model, "--output_dir", folder)
    return tiny.run_recipe(*given, *flags, **{**QUICK, "num_train_epochs": 6, **quick})


@pytest.mark.parametrize(
    ("kind", "window"), [("wav2vec2", None), ("whisper", "padded to 1 s"), ("ast", "padded to 0.")]
)
def test_a_run_learns_and_its_model_reloads(world, kind, window, tmp_path):
    """From pitches to their names, in seconds; without --load_best_model_at_end, which would take the first perfect epoch."""
    result = run(world, kind, tmp_path, "--load_best_model_at_end", "false")
    assert result.exit_code == 0, result.output
    assert result.metrics["accuracy"] == 1
    assert result.metrics["loss"] < 0.6
    assert "reloaded with transformers.pipeline: 5 examples differ by at most" in result.output
    assert "train: 17.2 seconds of sound, the longest clip 0.6 s" in result.output
    assert window is None or window in result.output
    lines = [json.loads(line) for line in (tmp_path / "predictions" / "test.jsonl").read_text().splitlines()]
    assert len(lines) == 6
    assert all(line["prediction"] == line["label"] == line["audio"].partition("/")[0] for line in lines)
    classifier = pipeline("audio-classification", model=str(tmp_path), device="cpu")
    samples, _ = soundfile.read(world / "tones" / "test" / "low" / "0.wav", dtype="float32")
    assert classifier(samples)[0]["label"] == "low"


@pytest.mark.parametrize(
    ("kind", "problem", "metric"), [("whisper", "multi", "f1_macro"), ("wav2vec2 base", "regression", "rmse")]
)
def test_a_run_with_several_labels_and_one_with_numbers(world, kind, problem, metric, tmp_path):
    tiny_speech.write_tone_rows(tmp_path / "train.csv" if problem != "multi" else tmp_path / "train.jsonl", 24, problem)
    (file,) = (path for path in tmp_path.iterdir() if path.is_file())
    result = tiny.run_recipe(
        *("--train_file", file, "--model_name_or_path", world / kind, "--output_dir", tmp_path / "run"),
        *("--average_windows", "--max_length_seconds", 0.3, "--augmentation", "full", "--freeze_base_model"),
        **{**QUICK, "num_train_epochs": 1},
    )
    assert result.exit_code == 0, result.output
    assert metric in result.metrics
    assert "reloaded with transformers.pipeline" in result.output


def test_a_stream_is_trained_on(world, tmp_path):
    flags = ("--streaming", "--validation_split_name", "test", "--max_steps", 2, "--train_sampling_strategy", "random")
    steps = {"save_strategy": "steps", "eval_strategy": "steps", "save_steps": 1, "eval_steps": 1}
    result = run(world, "wav2vec2", tmp_path, *flags, "--augmentation", "full", **steps)
    assert result.exit_code == 0, result.output
    assert "reloaded with transformers.pipeline" in result.output


def test_clips_that_cannot_be_decoded_are_left_out_if_told_so(world, tmp_path):
    folder = tiny_speech.write_tone_folders(tmp_path / "data", train=12, test=3)
    (folder / "train" / "low" / "text.wav").write_text("not found")
    result = run(world, "wav2vec2", tmp_path / "run", "--dataset_name", folder, num_train_epochs=1)
    assert result.exit_code == 2
    assert "train: clips that cannot be decoded: 1 of 13: row " in result.output
    assert "low/text.wav" in result.output
    skipping = ("--dataset_name", folder, "--on_bad_example", "skip")
    result = run(world, "wav2vec2", tmp_path / "skipping", *skipping, num_train_epochs=1)
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / "skipping" / "results.json").read_text())["data"]["rows"]
    assert (rows["train"] + rows["validation"], rows["test"]) == (12, 3)
