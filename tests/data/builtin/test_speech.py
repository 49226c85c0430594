"""Built-in speech: every speaker in one split, clips that hold what their labels say, the same each time."""

import sys
from collections import Counter
from io import BytesIO

import numpy as np
import pytest
from datasets import Audio, ClassLabel, Value

from sft_hf.data.builtin import builtin_dataset, speech
from sft_hf.errors import DataError

SPLITS = ["train", "validation", "test"]
NAMES = ["spoken_digits", "voice_commands"]


def beeps(utterances, *, name):
    """Stands in for eSpeak where what it says is not looked at: a millisecond each."""
    return (np.full(16, 1000, dtype=np.int16) for _ in utterances)


@pytest.fixture(scope="module")
def whole():
    """The datasets in their full size, without the seconds of speech."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speech, "_say", beeps)
        return {name: builtin_dataset(name) for name in NAMES}


@pytest.fixture(scope="module")
def heard():
    """The datasets as they are spoken, by fewer speakers."""
    pytest.importorskip("espeakng_loader", reason="espeakng-loader, of the extra `demo`, speaks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speech, "SPEAKERS", {split: speakers[:1] for split, speakers in speech.SPEAKERS.items()})
        return {name: builtin_dataset(name) for name in NAMES}


def read(clip: dict) -> np.ndarray:
    import soundfile

    samples, sampling_rate = soundfile.read(BytesIO(clip["bytes"]), dtype="int16")
    assert sampling_rate == 16_000
    return samples


@pytest.mark.parametrize(
    ("name", "column", "feature", "sizes"),
    [
        ("spoken_digits", "label", ClassLabel(names=speech.DIGITS), [1200, 200, 200]),
        ("voice_commands", "text", Value("string"), [1800, 150, 200]),
    ],
)
def test_splits_and_columns(whole, name, column, feature, sizes):
    dataset = whole[name]
    assert list(dataset) == SPLITS
    assert [len(rows) for rows in dataset.values()] == sizes
    for rows in dataset.values():
        audio = Audio(sampling_rate=16_000, decode=False)
        assert rows.features == {"audio": audio, column: feature, "speaker": Value("string")}
        assert len({clip["path"] for clip in rows["audio"]}) == len(rows)


def test_pitfall_20_a_row_is_read_without_torchcodec(whole, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec", None)
    row = whole["spoken_digits"]["train"][0]
    assert row["audio"]["bytes"].startswith(b"fLaC")
    assert row["audio"]["path"].endswith(".flac")


@pytest.mark.parametrize("name", NAMES)
def test_no_voice_is_in_two_splits(whole, name):
    """Nor does another accent make it another one."""
    speakers = [set(rows["speaker"]) for rows in whole[name].values()]
    assert [len(names) for names in speakers] == [30, 5, 10]
    voices = [{speaker.partition("+")[2] for speaker in names} for names in speakers]
    assert "" not in set.union(*voices)
    assert sum(len(names) for names in voices) == len(set.union(*voices))


def test_every_digit_is_said_equally_often_and_by_everyone(whole):
    for rows, repeats in zip(whole["spoken_digits"].values(), (4, 4, 2), strict=True):
        said = Counter(zip(rows["speaker"], rows["label"], strict=True))
        assert set(said.values()) == {repeats}
        assert len(said) == 10 * len(set(rows["speaker"]))


@pytest.mark.parametrize(("name", "column"), [("spoken_digits", "label"), ("voice_commands", "text")])
def test_file_names_tell_what_is_said_and_by_whom(whole, name, column):
    """five_en+Denis_132_46_51.flac: rate, pitch and range."""
    for rows in whole[name].values():
        for row in rows:
            text = speech.DIGITS[row["label"]] if column == "label" else row["text"]
            start, rate, pitch, melody = row["audio"]["path"].removesuffix(".flac").rsplit("_", 3)
            assert start == f"{text.replace(' ', '_')}_{row['speaker']}"
            assert 120 <= int(rate) <= 170
            assert 40 <= int(pitch) <= 60
            assert 40 <= int(melody) <= 65


@pytest.mark.parametrize("name", NAMES)
def test_rows_are_in_no_order(whole, name):
    assert len(set(whole[name]["train"][:30]["speaker"])) > 12


def test_phrases_have_two_to_six_of_sixty_words_all_of_them_said_in_train(whole):
    texts = {split: rows["text"] for split, rows in whole["voice_commands"].items()}
    assert {len(text.split()) for said in texts.values() for text in said} == {2, 3, 4, 5, 6}
    words = {split: {word for text in said for word in text.split()} for split, said in texts.items()}
    assert len(words["train"]) == 60
    assert words["validation"] | words["test"] <= words["train"]
    assert all(text == text.lower() for text in texts["train"])


def test_four_fifths_of_the_other_clips_say_what_no_training_clip_does(whole):
    train, *others = (list(rows["text"]) for rows in whole["voice_commands"].values())
    known = set(train)
    for texts in others:
        assert sum(text not in known for text in texts) == 0.8 * len(texts)


def test_a_speaker_says_no_command_twice(whole):
    for rows in whole["voice_commands"].values():
        assert len(set(zip(rows["speaker"], rows["text"], strict=True))) == len(rows)


# ---- what is heard ----


@pytest.mark.parametrize(("name", "seconds"), [("spoken_digits", (0.35, 1.3)), ("voice_commands", (0.8, 3.3))])
def test_clips_are_as_long_and_as_loud_as_speech_is(heard, name, seconds):
    for rows in heard[name].values():
        for clip in rows["audio"]:
            samples = read(clip).astype(np.float64) / 2**15
            assert seconds[0] < len(samples) / 16_000 < seconds[1]
            assert 0.01 < np.sqrt(np.square(samples).mean()) < 0.2
            assert np.abs(samples).max() < 0.99


def test_silence_of_a_twentieth_to_a_quarter_of_a_second_is_around_a_clip(heard):
    silences = []
    for clip in heard["spoken_digits"]["train"]["audio"]:
        samples = read(clip)
        loud = np.flatnonzero(samples)
        silences.append((loud[0] / 16_000, (len(samples) - 1 - loud[-1]) / 16_000))
    # eSpeak begins with a breath of silence itself.
    assert 0.05 <= np.min(silences) < 0.1
    assert 0.2 < np.max(silences) < 0.32


def test_sound_reaches_up_to_what_16_khz_can_hold_and_is_strongest_where_voices_are(heard):
    samples = np.concatenate([read(clip) for clip in heard["voice_commands"]["test"]["audio"]]).astype(np.float64)
    power = np.abs(np.fft.rfft(samples)) ** 2
    frequencies = np.fft.rfftfreq(len(samples), 1 / 16_000)
    assert power[(frequencies > 100) & (frequencies < 3400)].sum() > 0.8 * power.sum()
    assert power[frequencies > 4000].sum() > 1e-3 * power.sum()


def test_longer_phrases_take_longer(heard):
    rows = heard["voice_commands"]["train"]
    seconds = {number: [] for number in range(2, 7)}
    for clip, text in zip(rows["audio"], rows["text"], strict=True):
        seconds[len(text.split())].append(len(read(clip)) / 16_000)
    assert np.mean(seconds[2]) < np.mean(seconds[4]) < np.mean(seconds[6])


def test_the_same_each_time(heard, capfd):
    """Also when something else was said before."""
    pytest.importorskip("espeakng_loader", reason="espeakng-loader, of the extra `demo`, speaks")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(speech, "SPEAKERS", {split: speakers[:1] for split, speakers in speech.SPEAKERS.items()})
        again = builtin_dataset("spoken_digits")
    for split in SPLITS:
        assert again[split]["audio"] == heard["spoken_digits"][split]["audio"]
        assert again[split]._fingerprint == heard["spoken_digits"][split]._fingerprint
    assert capfd.readouterr() == ("", "")


# ---- errors ----


@pytest.mark.parametrize("name", NAMES)
def test_without_espeakng_loader(monkeypatch, name):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    message = (
        rf"builtin:{name} is spoken by the package espeakng-loader, .* \(pip install espeakng-loader, or .* `demo`\)"
    )
    with pytest.raises(DataError, match=message):
        builtin_dataset(name)


def test_a_voice_that_a_version_of_espeak_lacks(monkeypatch):
    pytest.importorskip("espeakng_loader", reason="espeakng-loader, of the extra `demo`, speaks")
    monkeypatch.setattr(speech, "SPEAKERS", {split: ["en-us+nobody"] for split in SPLITS})
    message = r"builtin:spoken_digits: eSpeak NG ended with 1: eSpeak NG has no voice en-us\+nobody$"
    with pytest.raises(DataError, match=message):
        builtin_dataset("spoken_digits")
