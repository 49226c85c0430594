"""Clips from their column to a batch: found, checked, read in part, augmented, padded as the feature extractor does."""

import io
import json
import logging
import pickle
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import tiny_speech
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    ASTFeatureExtractor,
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForAudioClassification,
    Data2VecAudioConfig,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from sft_hf import clips
from sft_hf.arguments import DataArguments
from sft_hf.audio.augmentation import WAVEFORM_AUGMENTATIONS, spec_augment
from sft_hf.clips import (
    RATE,
    SECONDS,
    ReadClip,
    as_hours,
    collated,
    extracted,
    extractor_of,
    file_name,
    freeze_feature_encoder,
    hears_padding,
    longest_seconds,
    masked,
    parts_of_one_length,
    read_clip,
    say_sampling_rates,
    seconds_of,
    with_room_for_masks,
)
from sft_hf.data.order import KeyedByEpoch, ReadExamples, Shuffled
from sft_hf.data.sources import load_splits
from sft_hf.errors import ArgumentError, DataError, ModelError
from sft_hf.task import Columns
from sft_hf.tasks.audio_classification import AudioClassification

COLUMNS = Columns(("audio",), "label")
SKIP = AudioClassification(on_bad_example="skip")
HZ = 16_000


@pytest.fixture(autouse=True)
def _log(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("sft_hf"), "propagate", True)
    caplog.set_level(logging.INFO, logger="sft_hf")


def encoded(waveform: np.ndarray | float = 0.1, *, sampling_rate: int = HZ, file_format: str = "WAV") -> bytes:
    """A waveform, or a tone of so many seconds."""
    if isinstance(waveform, float):
        waveform = tiny_speech.tone(440.0, waveform, random.Random(0), sampling_rate=sampling_rate)
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, sampling_rate, format=file_format)
    return buffer.getvalue()


BAD = {
    "truncated.flac": encoded(1.0, file_format="FLAC")[:-4000],
    "text.wav": b"not found",
    "empty.wav": b"",
    "silent.wav": encoded(np.zeros(0, dtype=np.float32)),
}


def in_memory(*contents: bytes) -> Dataset:
    audio = [{"bytes": content, "path": f"{row}.wav"} for row, content in enumerate(contents)]
    return Dataset.from_dict({"audio": audio, "example_id": list(range(len(contents)))})


def as_files(folder: Path, contents: dict[str, bytes]) -> Dataset:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    paths = [str(folder / name) for name in contents]
    return Dataset.from_dict({"audio": paths, "example_id": list(range(len(paths)))})


def lasting(task, dataset, columns, *, split):
    """The clips that decode and, in training, are neither too short nor too long."""
    return task.of_durations(task.decodable(dataset, columns, split=split), columns, split=split)


# ---- what cannot be decoded ----


def test_clips_that_decode_stay_encoded():
    contents = [encoded(0.1), encoded(0.25, sampling_rate=8000, file_format="FLAC")]
    dataset = AudioClassification().decodable(in_memory(*contents), COLUMNS, split="train")
    assert [row["audio"]["bytes"] for row in dataset] == contents
    assert dataset[SECONDS][:] == [0.1, 0.25]
    assert dataset[RATE][:] == [16_000, 8_000]


def test_clips_that_do_not_end_the_run_with_their_number_and_names(tmp_path):
    dataset = as_files(tmp_path, {"good.wav": encoded(), **BAD})
    with pytest.raises(DataError) as raised:
        AudioClassification().decodable(dataset, COLUMNS, split="validation")
    message = str(raised.value)
    assert message.startswith("validation: clips that cannot be decoded: 4 of 5: row 1: ")
    assert all(str(tmp_path / name) in message for name in BAD)
    assert message.endswith("Mend or remove them, or leave them out with --on_bad_example skip.")


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_clips_that_do_not_are_left_out_with_a_warning(tmp_path, caplog, split):
    """In evaluation too, since there is nothing to predict from; but never without a word."""
    dataset = SKIP.decodable(as_files(tmp_path, {**BAD, "good.wav": encoded()}), COLUMNS, split=split)
    assert dataset["example_id"][:] == [4]
    (warning,) = (record for record in caplog.records if record.levelname == "WARNING")
    assert f"{split}: clips that cannot be decoded: 4 of 5: row 0: {tmp_path / 'truncated.flac'}" in warning.message
    assert warning.message.endswith("they are left out")


def test_a_clip_that_is_missing_in_its_row():
    rows = {"audio": [{"bytes": encoded(), "path": None}, None], "example_id": [0, 1]}
    with pytest.raises(DataError, match="1 of 2: row 1: there is no clip: neither bytes nor a path"):
        AudioClassification().decodable(Dataset.from_dict(rows), COLUMNS, split="train")


def test_a_file_that_was_mended_is_looked_at_again(tmp_path):
    """The rows, paths, are the same: what datasets keeps of the first check would be found again."""
    (tmp_path / "a.wav").write_bytes(b"")
    rows = [{"audio": "a.wav", "label": "x"}, {"audio": "a.wav", "label": "y"}]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def check() -> Dataset:
        arguments = DataArguments(train_file=[str(tmp_path / "train.jsonl")])
        source = load_splits(arguments, cache_dir=str(tmp_path / "cache"))
        return AudioClassification().decodable(source.splits["train"], COLUMNS, split="train")

    with pytest.raises(DataError, match=r"a\.wav is empty"):
        check()
    (tmp_path / "a.wav").write_bytes(encoded())
    assert len(check()) == 2


def test_a_stream_is_checked_as_it_is_read(caplog):
    stream = in_memory(encoded(), b"text", encoded()).to_iterable_dataset()
    kept = pickle.loads(pickle.dumps(SKIP.decodable(stream, COLUMNS, split="train")))
    assert [row["example_id"] for row in kept] == [0, 2]
    assert "left out: 1.wav cannot be decoded" in caplog.text
    whole = AudioClassification().decodable(stream, COLUMNS, split="train")
    with pytest.raises(DataError, match=r"example 1: 1\.wav cannot be decoded.* --on_bad_example skip leaves such"):
        [read_clip(row, sampling_rate=HZ) for row in whole]
    with pytest.raises(DataError, match=r"example 1: 1\.wav cannot be decoded.* --on_bad_example skip leaves such"):
        [seconds_of(row) for row in whole]


def test_a_split_without_the_column_says_what_it_has():
    dataset = in_memory(encoded()).rename_column("audio", "sound")
    with pytest.raises(
        DataError,
        match="The test split has no column 'audio'; it has sound, example_id. Choose with --audio_column_name",
    ):
        AudioClassification().decodable(dataset, COLUMNS, split="test")


def test_a_column_of_the_user_is_not_written_over():
    dataset = in_memory(encoded()).add_column(SECONDS, [7.0])
    with pytest.raises(DataError, match=f"The train split has a column {SECONDS}, .* rename or remove it"):
        AudioClassification().decodable(dataset, COLUMNS, split="train")


# ---- durations ----


BETWEEN = AudioClassification(min_duration_seconds=0.2, max_duration_seconds=1.0)
LASTING = [encoded(seconds) for seconds in (0.1, 0.2, 1.0, 1.5)]


def test_durations_are_those_of_training_alone_and_the_log_says_how_much_is_lost(caplog):
    train = lasting(BETWEEN, in_memory(*LASTING), COLUMNS, split="train")
    assert train["example_id"][:] == [1, 2]
    assert (
        "train: 2 of 4 clips (1.6 seconds of 2.8 seconds) are shorter than --min_duration_seconds 0.2 or longer than "
        "--max_duration_seconds 1.0 and are left out" in caplog.text
    )
    for split in ("validation", "test"):
        assert len(lasting(BETWEEN, in_memory(*LASTING), COLUMNS, split=split)) == 4


def test_durations_of_a_stream(caplog):
    stream = in_memory(*LASTING).to_iterable_dataset()
    train = pickle.loads(pickle.dumps(lasting(BETWEEN, stream, COLUMNS, split="train")))
    assert [row["example_id"] for row in train] == [1, 2]
    assert len(list(lasting(BETWEEN, stream, COLUMNS, split="test"))) == 4
    no_end = lasting(AudioClassification(min_duration_seconds=0.5), stream, COLUMNS, split="train")
    assert [row["example_id"] for row in no_end] == [2, 3]
    bad = in_memory(b"text").to_iterable_dataset()
    with pytest.raises(DataError, match="example 0: .*--on_bad_example skip"):
        list(lasting(BETWEEN, bad, COLUMNS, split="train"))


def test_durations_that_leave_nothing():
    task = AudioClassification(min_duration_seconds=60)
    with pytest.raises(
        DataError, match="train: all of the 4 clips are shorter than --min_duration_seconds 60 or longer"
    ):
        lasting(task, in_memory(*LASTING), COLUMNS, split="train")


@pytest.mark.parametrize(("shortest", "longest"), [(-1, None), (2, 1), (1, 1), (0, 0)])
def test_durations_that_are_none(shortest, longest):
    """Said before anything is loaded."""
    with pytest.raises(
        ArgumentError, match=f"--min_duration_seconds {shortest} --max_duration_seconds {longest}: expec"
    ):
        AudioClassification(min_duration_seconds=shortest, max_duration_seconds=longest)


def test_clips_that_are_too_short_for_any_model_are_counted(caplog):
    AudioClassification().decodable(in_memory(encoded(0.005), encoded(0.05)), COLUMNS, split="test")
    assert "test: 1 of 2 clips are shorter than 0.05 s and get silence behind them" in caplog.text


def test_what_is_said_of_the_training_clips(caplog):
    """What a telephone leaves out, no resampling brings back."""
    contents = [encoded(1.0, sampling_rate=rate) for rate in (8_000, 8_000, 16_000, 44_100)]
    train = AudioClassification().decodable(in_memory(*contents), COLUMNS, split="train")
    say_sampling_rates(train, Wav2Vec2FeatureExtractor())
    assert [record.message for record in caplog.records] == [
        "train: 4.0 seconds of sound, the longest clip 1.0 s",
        "2 clips have 8000 Hz and are resampled to the model's 16000; what is above 4000 Hz is missing in them",
        "1 clips have 44100 Hz and are resampled to the model's 16000",
    ]
    assert longest_seconds(train) == 1.0
    assert longest_seconds(train.to_iterable_dataset()) is None
    say_sampling_rates(train.to_iterable_dataset(), Wav2Vec2FeatureExtractor())


@pytest.mark.parametrize(
    ("seconds", "expected"), [(12, "12.0 seconds"), (60, "1.0 minutes"), (5400, "1.5 hours"), (3.5e6, "972.2 hours")]
)
def test_hours(seconds, expected):
    assert as_hours(seconds) == expected


# ---- rows ----


def test_equal_files_have_equal_keys(tmp_path):
    contents = {"a.wav": encoded(0.1), "b.wav": encoded(0.2), "c.wav": encoded(0.1)}
    dataset = AudioClassification().decodable(as_files(tmp_path, contents), COLUMNS, split="train")
    first, other, same = AudioClassification().example_keys(dataset, COLUMNS)
    assert first == same != other


def test_a_row_for_a_person_and_for_the_pipeline():
    stereo = np.stack([np.full(800, 0.5), np.zeros(800)], axis=1).astype(np.float32)
    row = {"audio": {"bytes": encoded(stereo, sampling_rate=8000), "path": "/home/me/digits/zero/1.wav"}}
    task, extractor = AudioClassification(), Wav2Vec2FeatureExtractor()
    assert task.describe_inputs(row, COLUMNS) == {"audio": "zero/1.wav"}
    (seen,) = task.pipeline_inputs(row, COLUMNS, extractor)
    assert (seen["sampling_rate"], seen["raw"].shape, seen["raw"].dtype) == (16_000, (1600,), np.float32)
    assert seen["raw"][400:1200] == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize(
    ("clip", "expected"),
    [
        ({"bytes": b"", "path": "zip://zero/1.flac::/home/me/digits.zip"}, "zero/1.flac"),
        ({"bytes": b"", "path": "1.flac"}, "1.flac"),
        ({"bytes": b"", "path": None}, None),
        (None, None),
    ],
)
def test_file_names(clip, expected):
    assert file_name(clip) == expected


# ---- reading ----


EXTRACTORS = {
    "wav2vec2 with a mask": lambda path: tiny_speech.save_wav2vec2(path, layer_norm=True),
    "wav2vec2 without": lambda path: tiny_speech.save_wav2vec2(path, layer_norm=False),
    "whisper": tiny_speech.save_whisper,
    "ast": tiny_speech.save_ast,
    "speech2text": tiny_speech.save_speech2text,
    "w2v-bert": tiny_speech.save_wav2vec2_bert,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """One of each kind."""
    folder = tmp_path_factory.mktemp("models")
    for name, save in EXTRACTORS.items():
        save(folder / name)
    return folder


@pytest.fixture(scope="module")
def extractors(models) -> dict:
    return {name: AutoFeatureExtractor.from_pretrained(models / name) for name in EXTRACTORS}


def row_of(waveform: np.ndarray, example_id: int = 3) -> dict:
    """A preprocessed row; as float so that a decoded part has the very samples."""
    buffer = io.BytesIO()
    soundfile.write(buffer, waveform, HZ, format="WAV", subtype="FLOAT")
    clip = {"bytes": buffer.getvalue(), "path": "a.wav"}
    return {"audio": clip, "length": len(waveform) / HZ, "example_id": example_id}


def counting(seconds: float) -> np.ndarray:
    """A waveform of which each sample tells its place."""
    return (np.arange(round(seconds * HZ)) / HZ / 100).astype(np.float32)


PLAIN = Wav2Vec2FeatureExtractor(do_normalize=False)


def read(row: dict, epoch: int = 0, *, policy: str = "none", seed: int = 42, **part: float) -> np.ndarray:
    reader = ReadClip(PLAIN, WAVEFORM_AUGMENTATIONS[policy], False, seed)
    return reader(row, epoch, **part)["input_values"]


def test_a_clip_is_heard_whole_unless_told_otherwise():
    waveform = counting(2.0)
    np.testing.assert_array_equal(read(row_of(waveform)), waveform)
    np.testing.assert_array_equal(read(row_of(waveform), longest_seconds=2.0), waveform)
    np.testing.assert_array_equal(read(row_of(waveform), longest_seconds=5.0), waveform)


def test_of_a_long_clip_a_random_part_is_decoded_and_nothing_else(monkeypatch):
    waveform, decoded = counting(10.0), []

    def decode(clip, **part):
        decoded.append(part)
        return clips_decode(clip, **part)

    clips_decode = clips.decode
    monkeypatch.setattr(clips, "decode", decode)
    parts = [read(row_of(waveform), epoch, longest_seconds=1.0) for epoch in range(20)]
    assert all(part["seconds"] == 1.0 and part["start_seconds"] <= 9 for part in decoded)
    starts = [round(float(part[0]) * HZ * 100) for part in parts]
    for part, start in zip(parts, starts, strict=True):
        np.testing.assert_array_equal(part, waveform[start : start + HZ])
    assert len(set(starts)) == 20
    assert min(starts) < 2 * HZ
    assert max(starts) > 7 * HZ


@pytest.mark.parametrize("seconds", [1.0, 1.02, 1.2, 10.0])
def test_no_speed_makes_a_part_longer_or_a_long_clip_shorter_than_a_window(seconds):
    """At 110 % a window needs 1.1 times as much of the clip; at 90 % a second takes 1.11."""
    waveform = tiny_speech.tone(440.0, seconds, random.Random(0))
    sizes = [len(read(row_of(waveform), epoch, policy="full", longest_seconds=1.0)) for epoch in range(30)]
    assert max(sizes) == HZ
    assert min(sizes) >= min(HZ, round(seconds * HZ / 1.1) - 1)
    if seconds >= 1.1:
        assert set(sizes) == {HZ}


@pytest.mark.parametrize("num_workers", [0, 2])
def test_pitfall_44_what_is_read_is_a_function_of_seed_epoch_and_id(num_workers):
    """Whatever worker reads it, and whatever was read before."""
    rows = Dataset.from_list([row_of(tiny_speech.tone(440.0, 0.4, random.Random(i)), i) for i in range(4)])
    reader = ReadPart(ReadClip(PLAIN, WAVEFORM_AUGMENTATIONS["full"], False, 42))
    sampler = KeyedByEpoch(Shuffled(len(rows), seed=1))
    loader = DataLoader(ReadExamples(rows, reader), sampler=sampler, collate_fn=list, num_workers=num_workers)
    for epoch in (0, 2):
        sampler.set_epoch(epoch)
        for (example,) in loader:
            np.testing.assert_array_equal(example["features"], reader(rows[example["id"]], epoch)["features"])
    first = reader(rows[0], 0)["features"]
    others = [reader(rows[0], 1), ReadPart(ReadClip(PLAIN, WAVEFORM_AUGMENTATIONS["full"], False, 43))(rows[0], 0)]
    others.append(reader({**rows[0], "example_id": 1}, 0))
    assert not any(np.array_equal(first, other["features"]) for other in others)


class ReadPart:
    """Picklable."""

    def __init__(self, read: ReadClip):
        self.read = read

    def __call__(self, row: dict, epoch: int) -> dict:
        return {"id": row["example_id"], "features": self.read(row, epoch, longest_seconds=0.3)["input_values"]}


def test_a_clip_that_went_bad_says_which():
    row = {
        "audio": {"bytes": encoded(1.0, file_format="FLAC")[:-4000], "path": "a.flac"},
        "example_id": 17,
        "length": 1.0,
    }
    for part in ({}, {"longest_seconds": 0.9}):
        with pytest.raises(DataError, match=r"example 17: a\.flac .* --on_bad_example skip leaves such clips out"):
            [read(row, epoch, **part) for epoch in range(10)]


# ---- SpecAugment ----


KEY = {"seed": 1, "epoch": 0, "example_id": 0}


@pytest.mark.parametrize(
    ("name", "frames", "bins"), [("whisper", 30, 16), ("ast", 28, 32), ("speech2text", 28, 16), ("w2v-bert", 28, 16)]
)
def test_masks_are_drawn_on_the_frames_of_sound_alone(extractors, name, frames, bins):
    """0.3 s: 30 steps of 10 ms, or the 28 whose window of 25 ms is within; Whisper and AST put silence behind them."""
    waveform = tiny_speech.tone(440.0, 0.3, random.Random(0))
    features = extracted(extractors[name], waveform)
    (feature,) = (value for name, value in features.items() if name.startswith("input"))
    changed = masked(extractors[name], features, num_samples=len(waveform), **KEY)
    (found,) = (value for name, value in changed.items() if name.startswith("input"))
    assert found.shape == feature.shape
    by_frame, plain = (x.T if name == "whisper" else x.reshape(-1, bins) for x in (found, feature))
    np.testing.assert_array_equal(by_frame[frames:], plain[frames:])
    expected = spec_augment(plain[:frames], layout="frames_bins", **KEY)
    np.testing.assert_array_equal(by_frame[:frames], expected)
    assert not np.array_equal(found, feature)


def test_a_reader_masks_if_told_so(extractors):
    waveform = tiny_speech.tone(440.0, 0.5, random.Random(0))
    readers = [ReadClip(extractors["ast"], WAVEFORM_AUGMENTATIONS["none"], masks, 42) for masks in (False, True)]
    plain, changed = (reader(row_of(waveform), 0)["input_values"] for reader in readers)
    assert plain.shape == changed.shape
    assert not np.array_equal(plain, changed)


def test_models_that_mask_for_themselves_say_so(extractors):
    task = AudioClassification(spec_augment=True)
    with pytest.raises(ArgumentError, match="--spec_augment: the model reads waveforms and masks its own features"):
        task.training_reader(extractors["wav2vec2 with a mask"], seed=1)
    for name in ("whisper", "ast", "w2v-bert"):
        assert task.training_reader(extractors[name], seed=1).spec_augment


# ---- features and batches ----


def waveforms(number: int = 5) -> list[np.ndarray]:
    """Of 0.2 to 0.6 s, with an odd and an even number of frames."""
    return [samples for _, samples in tiny_speech.tones(number, seed=4)]


@pytest.mark.parametrize("name", EXTRACTORS)
def test_a_batch_is_what_the_extractor_makes_of_a_list(extractors, name):
    """Except that waveforms without a mask are normalised before they are padded, as in the pipeline, not with their padding."""
    extractor, given = extractors[name], waveforms()
    options = {} if name in ("whisper", "ast") else {"padding": True}
    expected = extractor(given, sampling_rate=HZ, return_tensors="pt", **options)
    if name == "wav2vec2 without":
        alone = [extractor(one, sampling_rate=HZ) for one in given]
        expected = extractor.pad({"input_values": [one["input_values"][0] for one in alone]}, return_tensors="pt")
    batch = collated(extractor, [extracted(extractor, one) for one in given])
    assert set(batch) == set(expected)
    for key, value in expected.items():
        assert batch[key].dtype == value.dtype, key
        torch.testing.assert_close(batch[key], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_clips_of_one_length_are_not_padded(extractors, name):
    one = waveforms(1)[0]
    features = extracted(extractors[name], one)
    batch = collated(extractors[name], [features, features])
    for key, value in features.items():
        np.testing.assert_array_equal(batch[key][1].numpy(), value)


@pytest.mark.parametrize("name", EXTRACTORS)
@pytest.mark.parametrize("num_samples", [1, 80, 799])
def test_a_very_short_clip_has_features(extractors, name, num_samples):
    noise = np.random.default_rng(0).standard_normal(num_samples).astype(np.float32)
    features = extracted(extractors[name], noise)
    assert all(np.isfinite(value).all() for value in features.values())
    if name.startswith("wav2vec2"):
        assert features["input_values"].shape == (800,)


def test_parts_of_processors_are_found(models):
    from transformers import WhisperProcessor

    processor = WhisperProcessor.from_pretrained(models / "whisper")
    assert extractor_of(processor) is processor.feature_extractor
    assert extractor_of(processor.feature_extractor) is processor.feature_extractor


def test_features_take_the_dtype_of_the_model():
    batch = {"input_features": torch.ones(1, 2), "attention_mask": torch.ones(1, 2, dtype=torch.int32)}
    given = AudioClassification().on_device(batch, None, dtype=torch.bfloat16)
    assert given["input_features"].dtype == torch.bfloat16
    assert given["attention_mask"] is batch["attention_mask"]


# ---- models that hear padding ----


def test_whose_padding_is_heard():
    group, layer = (SimpleNamespace(model_type="wav2vec2", feat_extract_norm=norm) for norm in ("group", "layer"))
    other, moonshine = (SimpleNamespace(model_type=kind) for kind in ("sew-d", "moonshine"))
    masked, plain = (Wav2Vec2FeatureExtractor(return_attention_mask=mask) for mask in (True, False))
    assert [hears_padding(masked, layer), hears_padding(masked, other)] == [False, False]
    assert [hears_padding(masked, group), hears_padding(plain, group), hears_padding(plain, layer)] == [True] * 3
    assert hears_padding(masked, moonshine)
    for extractor in (WhisperFeatureExtractor(), ASTFeatureExtractor(num_mel_bins=32)):
        assert not hears_padding(extractor, other)


@pytest.mark.parametrize(
    ("num_samples", "num_clips", "expected"),
    [
        (None, 4, [[1, 2, 3, 4]]),
        ([3, 3, 1, 3], 4, [[1, 2], [3], [4]]),  # neighbours alone, since the order stays
        ([3, 3, 3, 3], 4, [[1, 2, 3, 4]]),
        (None, 3, [[1, 2, 3], [4]]),  # four windows of three clips
        ([2, 2, 2, 1], 2, [[1, 2], [3], [4]]),
    ],
)
def test_neighbours_of_one_length_go_together_without_padding(num_samples, num_clips, expected):
    inputs = {"input_values": torch.tensor([[1.0, 0, 0], [2, 0, 0], [3, 0, 0], [4, 0, 0]])}
    inputs["attention_mask"] = torch.ones(4, 3, dtype=torch.long)
    batch = {**inputs, "example_id": torch.arange(num_clips)}
    if num_samples:
        batch["num_samples"] = torch.tensor(num_samples)
    parts = list(parts_of_one_length(inputs, batch))
    assert [part["input_values"][:, 0].tolist() for part in parts] == expected
    lengths = iter(num_samples or [3] * 4)
    for part in parts:
        assert {next(lengths) for _ in part["input_values"]} == {part["input_values"].shape[1]}
        assert part["attention_mask"].shape == part["input_values"].shape


# ---- models that mask ----


def masking(path: Path, *, layer_norm: bool = True):
    config = AutoConfig.from_pretrained(path, mask_time_prob=0.05)
    return AutoModelForAudioClassification.from_config(config)


def test_a_batch_of_short_clips_gets_room_for_the_masks(models):
    """10 frames of strides 8, 8, 5 and kernels 16, 8, 5: 9 * 5 + 5 = 50, 49 * 8 + 8 = 400, 399 * 8 + 16 = 3,208 samples."""
    model = masking(models / "wav2vec2 with a mask").train()
    batch = {"input_values": torch.randn(2, 1600), "attention_mask": torch.ones(2, 1600, dtype=torch.int32)}
    with pytest.raises(ValueError, match="`mask_length` has to be smaller than `sequence_length`"):
        model(**batch)
    padded = with_room_for_masks(model, {**batch, "labels": torch.tensor([1, 0])})
    assert padded["input_values"].shape == padded["attention_mask"].shape == (2, 3208)
    assert not padded["input_values"][:, 1600:].any()
    assert not padded["attention_mask"][:, 1600:].any()
    assert padded["labels"].tolist() == [1, 0]
    assert model(**{name: padded[name] for name in batch}).logits.shape == (2, 2)
    one_frame_less = {"input_values": torch.randn(2, 3207)}
    with pytest.raises(ValueError, match="`mask_length` has to be smaller"):
        model(**one_frame_less)
    assert with_room_for_masks(model, {"input_values": torch.randn(2, 3208)})["input_values"].shape == (2, 3208)


def test_so_does_one_of_spectrograms(models):
    model = masking(models / "w2v-bert").train()
    batch = {"input_features": torch.randn(2, 4, 32), "attention_mask": torch.ones(2, 4, dtype=torch.int32)}
    padded = with_room_for_masks(model, batch)
    assert (padded["input_features"].shape, padded["attention_mask"].shape) == ((2, 10, 32), (2, 10))
    assert model(**padded).logits.shape == (2, 2)


@pytest.mark.parametrize("config", [Wav2Vec2Config(), Data2VecAudioConfig()])
def test_room_for_the_masks_of_real_models(config):
    """Their ten frames of 20 ms, each with a window of 25."""

    class Model:
        pass

    model = Model()
    model.config = config
    batch = with_room_for_masks(model, {"input_values": torch.zeros(1, 10)})
    assert batch["input_values"].shape == (1, 9 * 320 + 400)


def test_a_model_that_masks_nothing_gets_no_room(models):
    for name in ("wav2vec2 with a mask", "whisper", "ast"):  # saved with a probability of 0, or with no masks at all
        model = AutoModelForAudioClassification.from_config(AutoConfig.from_pretrained(models / name))
        batch = {"input_values": torch.zeros(1, 900)}
        assert with_room_for_masks(model, batch) is batch


def test_freezing_what_a_model_does_not_have(models):
    model = AutoModelForAudioClassification.from_config(AutoConfig.from_pretrained(models / "wav2vec2 without"))
    freeze_feature_encoder(model)
    frozen = {name for name, value in model.named_parameters() if not value.requires_grad}
    assert frozen == {name for name, _ in model.named_parameters() if ".feature_extractor." in name} != set()
    ast = AutoModelForAudioClassification.from_config(AutoConfig.from_pretrained(models / "ast"))
    with pytest.raises(
        ModelError, match="--freeze_feature_encoder: ASTForAudioClassification reads no waveform by conv"
    ):
        freeze_feature_encoder(ast)
