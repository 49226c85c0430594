"""What both recognisers share: which clips count, how transcripts travel, and what is compared with the pipeline."""

import io
import json
import logging
import pickle
import random
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import tiny_speech
from datasets import Audio, Dataset, Features, IterableDataset, Value
from transformers import Wav2Vec2FeatureExtractor

from sft_hf.arguments import ModelArguments
from sft_hf.data.labels import TRANSCRIPTION, Labels
from sft_hf.errors import DataError
from sft_hf.recognition import batch_of, padded_labels
from sft_hf.task import Columns
from sft_hf.tasks.speech_ctc import SpeechCtc

COLUMNS = Columns(("audio",), "text")
LABELS = Labels(TRANSCRIPTION, (), "text")
TASK = SpeechCtc()
EXTRACTOR = Wav2Vec2FeatureExtractor(return_attention_mask=True)


@pytest.fixture(autouse=True)
def _log(monkeypatch, caplog):
    monkeypatch.setattr(logging.getLogger("sft_hf"), "propagate", True)
    caplog.set_level(logging.INFO, logger="sft_hf")


def wav(text: str) -> bytes:
    """A clip that says a text, 0.16 s a letter and 0.04 s before."""
    buffer = io.BytesIO()
    soundfile.write(buffer, tiny_speech.spelt(text, random.Random(0)), 16_000, format="WAV")
    return buffer.getvalue()


def rows(*texts: str | None, spoken: str = "ABC") -> Dataset:
    made = {
        "audio": [{"bytes": wav(spoken), "path": f"anna/{row}.wav"} for row in range(len(texts))],
        "text": list(texts),
        "example_id": list(range(len(texts))),
    }
    encoded = {"bytes": Value("binary"), "path": Value("string")}  # datasets' Audio would ask for torchcodec here
    features = Features({"audio": encoded, "text": Value("string"), "example_id": Value("int64")})
    return Dataset.from_dict(made, features=features).cast_column("audio", Audio(decode=False))


def stream(dataset: Dataset) -> IterableDataset:
    return IterableDataset.from_generator(lambda: iter(dataset), features=dataset.features)


class LettersAsIds:
    """The place of each letter in the alphabet."""

    def __call__(self, text: str) -> list[int]:
        return [ord(letter) - ord("A") for letter in text]


class AtMostTwo:
    def __call__(self, ids: list[int], durations: tuple[float, float]) -> str | None:
        return "have more than two letters" if len(ids) > 2 else None


class AboutHalfASecond:
    def __call__(self, ids: list[int], durations: tuple[float, float]) -> str | None:
        shortest, longest = durations
        return "are too short" if shortest < 0.48 else "are too long" if longest > 0.6 else None


class Speller(SpeechCtc):
    """A recogniser that asks for no model."""

    def text_encoder(self, processor, model):
        return LettersAsIds()

    def misfit_rule(self, processor, model):
        return AtMostTwo()

    def check_transcripts(self, texts, processor, model, *, split):
        pass


SPELLER = Speller()


def preprocessed(dataset, split: str):
    selected = SPELLER.select_examples(dataset, COLUMNS, LABELS, split=split)
    return SPELLER.preprocess(selected, COLUMNS, LABELS, EXTRACTOR, None, split=split)


# ---- which clips count ----


def test_the_columns_are_found_by_type_and_name():
    features = Features({"audio": Audio(), "speaker": Value("string"), "transcription": Value("string")})
    assert TASK.columns(features) == Columns(("audio",), "transcription")
    assert SpeechCtc(text_column_name="speaker").columns(features).label == "speaker"


def test_clips_without_a_transcript_are_left_out_with_a_count(caplog):
    kept = TASK.select_examples(rows("A", None, "B"), COLUMNS, LABELS, split="validation")
    assert kept["text"][:] == ["A", "B"]
    assert "validation: 1 of 3 clips have no transcript and are left out" in caplog.text


def test_silence_is_evaluated_and_not_trained_on(caplog):
    """A model that hears words in silence is to be blamed for it."""
    kept = {split: TASK.select_examples(rows("A", " "), COLUMNS, LABELS, split=split) for split in ("train", "test")}
    assert kept["train"]["text"][:] == ["A"]
    assert kept["test"]["text"][:] == ["A", " "]
    assert "train: 1 of 2 clips have no transcript" in caplog.text


@pytest.mark.parametrize("texts", ["no column", (None, None), ("", "")])
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_test_split_without_transcripts_is_predicted(texts, is_streamed, caplog):
    test = rows("A", "B").remove_columns("text") if texts == "no column" else rows(*texts)
    selected = TASK.select_examples(stream(test) if is_streamed else test, COLUMNS, LABELS, split="test")
    assert [row["example_id"] for row in selected] == [0, 1]
    assert "text" not in selected.column_names
    assert "the test split has no transcripts: its predictions are written, nothing is scored" in caplog.text


def test_a_validation_split_needs_its_column():
    with pytest.raises(DataError, match="The validation split has no column 'text'.*Choose with --text_column_name"):
        TASK.select_examples(rows("A").remove_columns("text"), COLUMNS, LABELS, split="validation")


def test_a_streamed_clip_without_a_transcript_is_passed_over():
    selected = TASK.select_examples(stream(rows("A", None, "")), COLUMNS, LABELS, split="train")
    assert [row["text"] for row in selected] == ["A"]


# ---- examples ----


def test_rows_stay_encoded_and_know_their_length():
    """Pitfall 26: nothing is decoded before it is read."""
    dataset = preprocessed(rows("A", "BC"), "train")
    assert sorted(dataset.column_names) == ["audio", "example_id", "labels", "length"]
    assert dataset[1] == {
        "audio": {"bytes": wav("ABC"), "path": "anna/1.wav"},
        "labels": "BC",
        "length": 0.52,
        "example_id": 1,
    }


def test_what_does_not_fit_is_left_out_of_training_alone(caplog):
    """Pitfall 16: filters by length drop clips from evaluation, and with them their errors."""
    found = {split: preprocessed(rows("AB", "ABC", "ABCD"), split)["labels"][:] for split in ("train", "validation")}
    assert found == {"train": ["AB"], "validation": ["AB", "ABC", "ABCD"]}
    assert "train: 2 of 3 clips have more than two letters; they are left out" in caplog.text
    assert "train: 1.0 seconds of sound are left out" in caplog.text
    assert "validation: 2 of 3 clips have more than two letters; they are scored like any other" in caplog.text


def test_what_does_not_fit_is_left_out_of_a_stream_too(caplog):
    found = {
        split: [row["labels"] for row in preprocessed(stream(rows("AB", "ABC")), split)] for split in ("train", "test")
    }
    assert found == {"train": ["AB"], "test": ["AB", "ABC"]}
    assert "train: example 1 is left out: clips have more than two letters" in caplog.text


@pytest.mark.parametrize(
    ("augmentation", "reason"),
    [
        ("none", None),  # 0.52 s
        ("light", "are too long"),  # 0.62 s with the longest silence before it
        ("full", "are too short"),  # 0.473 s at 110 % of the speed
    ],
)
@pytest.mark.parametrize("is_streamed", [False, True])
def test_a_clip_of_training_fits_whatever_augmentation_makes_of_it(
    monkeypatch, caplog, augmentation, reason, is_streamed
):
    monkeypatch.setattr(Speller, "misfit_rule", lambda *_: AboutHalfASecond())
    task, dataset = Speller(augmentation=augmentation), rows("A", "B")
    kept = {}
    for split in ("train", "test"):
        given = stream(dataset) if is_streamed else dataset
        selected = task.select_examples(given, COLUMNS, LABELS, split=split)
        found = task.preprocess(selected, COLUMNS, LABELS, EXTRACTOR, None, split=split)
        kept[split] = [row["labels"] for row in found]
    assert kept == {"train": [] if reason else ["A", "B"], "test": ["A", "B"]}
    said = f"clips {reason} once --augmentation {augmentation} has changed them"
    assert (said in caplog.text) == bool(reason)
    assert "test: 2 of 2" not in caplog.text  # evaluation hears the clips as they are


def test_the_transcript_travels_along_in_evaluation():
    readers = {
        split: SPELLER.load_reader(EXTRACTOR, None, COLUMNS, LABELS, split=split, seed=0)
        for split in ("train", "evaluation")
    }
    row = preprocessed(rows("AC"), "validation")[0]
    train, evaluation = (pickle.loads(pickle.dumps(readers[split]))(row, 0) for split in ("train", "evaluation"))
    assert sorted(train) == ["example_id", "features", "labels"]
    assert sorted(evaluation) == ["example_id", "features", "labels", "text"]
    assert evaluation["labels"] == [0, 2]
    assert evaluation["text"] == "AC"
    assert evaluation["features"]["input_values"].shape == (8320,)
    assert evaluation["features"]["input_values"].dtype == np.float32


def test_a_row_without_a_transcript_has_no_labels():
    read = SPELLER.load_reader(EXTRACTOR, None, COLUMNS, LABELS, split="evaluation", seed=0)
    row = preprocessed(rows(None), "test")[0]
    assert sorted(read(row, 0)) == ["example_id", "features"]


def test_training_draws_by_seed_epoch_and_example():
    """Pitfall 44."""
    task = Speller(augmentation="light")
    row = preprocessed(rows("A"), "train")[0]
    read = [task.load_reader(EXTRACTOR, None, COLUMNS, LABELS, split="train", seed=seed) for seed in (0, 0, 1)]
    first, again, other_seed = (one(row, 3)["features"]["input_values"] for one in read)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other_seed)
    assert not np.array_equal(first, read[0](row, 4)["features"]["input_values"])


def test_labels_are_filled_up_on_the_right():
    assert padded_labels([[5, 6, 7], [], [8]]).tolist() == [[5, 6, 7], [-100] * 3, [8, -100, -100]]
    assert padded_labels([[5, 6], [8]], 9).tolist() == [[5, 6], [8, 9]]
    assert padded_labels([[], []]).shape == (2, 0)


def test_a_batch_of_clips_of_two_lengths():
    examples = [
        {"features": {"input_values": np.ones(size, dtype=np.float32), "attention_mask": np.ones(size, dtype=np.int32)},
         "labels": [1] * size, "text": "A" * size, "example_id": size}
        for size in (2, 3)
    ]  # fmt: skip
    batch = batch_of(EXTRACTOR, examples)
    assert batch["input_values"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["attention_mask"].tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch["labels"].tolist() == [[1, 1, -100], [1, 1, 1]]
    assert (batch["text"], batch["example_id"].tolist()) == (["AA", "AAA"], [2, 3])
    for example in examples:
        del example["labels"], example["text"]
    assert sorted(batch_of(EXTRACTOR, examples)) == ["attention_mask", "example_id", "input_values"]


def test_the_mean_length_of_clips():
    dataset = preprocessed(rows("A", "B"), "train")
    assert SPELLER.seconds_per_example(dataset) == pytest.approx(0.52)
    assert SPELLER.seconds_per_example(preprocessed(stream(rows("A")), "train")) is None


def test_what_a_clip_takes_of_a_batch_by_seconds():
    """In training what the slowest speed, 90 %, and the latest start, by 0.1 s, make of 0.52 s."""
    dataset = preprocessed(rows("A"), "train")
    lengths = replace(SPELLER, augmentation="full").lengths(dataset, None, split="train")
    assert (lengths.values.tolist(), lengths.unit, lengths.flag) == (
        [pytest.approx(0.52 / 0.9 + 0.1)], "seconds", "--max_duration_seconds",
    )  # fmt: skip
    assert replace(SPELLER, augmentation="full").lengths(dataset, None, split="evaluation").values.tolist() == [0.52]


# ---- scores ----


@pytest.mark.parametrize(
    ("normalizer", "wer"), [("none", 1.0), ("basic", 0.5), ("english", 0.0)], ids=["none", "basic", "english"]
)
def test_scores_after_a_normaliser_and_raw(normalizer, wer):
    """ "Colour twenty-one" has two words; basic rules lower the case, English ones write American, in digits."""
    metrics = SpeechCtc(normalizer=normalizer).load_metrics(LABELS, ModelArguments())
    metrics.update(["color 21"], ["Color twenty-one"], example_id=np.array([0]))
    values = metrics.compute()
    assert values["wer_raw"] == 1.0
    if normalizer == "basic":  # the hyphen makes two words: color twenty one
        assert values["wer"] == pytest.approx(2 / 3)
    else:
        assert values["wer"] == wer


def test_the_report_names_the_clips_of_the_worst_utterances(tmp_path):
    dataset = rows("GO HOME", "STOP", "LEFT")
    metrics = SpeechCtc().load_metrics(LABELS, ModelArguments())
    metrics.update(["GO HOME", "STOP", "RIGHT"], dataset["text"][:], example_id=np.array([0, 1, 2]))
    TASK.report_metrics(metrics, dataset, COLUMNS, folder=tmp_path / "reports", split="test")
    page = (tmp_path / "reports" / "worst_utterances_test.html").read_text()
    assert "anna/2.wav" in page
    assert "anna/0.wav" not in page


def test_the_report_of_a_stream_has_numbers_for_names(tmp_path):
    metrics = SpeechCtc().load_metrics(LABELS, ModelArguments())
    metrics.update(["RIGHT"], ["LEFT"], example_id=np.array([7]))
    TASK.report_metrics(metrics, stream(rows("LEFT")), COLUMNS, folder=tmp_path, split="test")
    assert "7" in (tmp_path / "worst_utterances_test.html").read_text()


# ---- what a person reads, and the pipeline ----


def test_a_prediction_is_its_text():
    assert TASK.describe("GO HOME", LABELS, None) == {"prediction": "GO HOME"}
    assert TASK.describe_label({"text": "GO"}, COLUMNS, LABELS, None) == "GO"
    assert TASK.describe_label({}, COLUMNS, LABELS, None) is None


@pytest.mark.parametrize(
    ("predictions", "answers", "difference"),
    [
        (["AB C", "A"], [" AB C", "A "], 0.0),  # Whisper's begin with a space
        (["AB C", "A"], ["AB D", "A"], 1 / 5),
        (["ABC", ""], ["ABC", "AB"], 2 / 3),
        (["", ""], ["", ""], 0.0),
        ([""], ["A"], 1.0),
    ],
)
def test_texts_are_compared_character_by_character(predictions, answers, difference):
    answers = [{"text": text} for text in answers]
    assert TASK.reload_difference(predictions, answers, LABELS) == pytest.approx(difference)


def test_the_pipeline_gets_the_waveform():
    inputs = TASK.pipeline_inputs(rows("A")[0], COLUMNS, EXTRACTOR)
    assert (inputs["raw"].shape, inputs["sampling_rate"]) == ((8320,), 16_000)
    assert json.dumps(TASK.pipeline_options()) == "{}"
