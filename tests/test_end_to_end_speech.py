"""Whole runs on sound: from the Hub to the Hub and back, where `transformers.pipeline` hears what the evaluation heard."""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import jiwer
import pytest
import tiny
import tiny_speech
import yaml
from datasets import ClassLabel, Value
from huggingface_hub import ModelCard

TOKEN = "hf_nora_may_write_9e27b4"
EVERY_RUN = {".gitattributes", "README.md", "config.json", "model.safetensors", "recipe.yaml", "results.json"}
OF_CTC = {"processor_config.json", "tokenizer_config.json", "vocab.json"}
OF_DECODERS = {"generation_config.json", "processor_config.json", "tokenizer.json", "tokenizer_config.json"}
NUM_TRAIN, NUM_TEST = 96, 13  # an odd number: the last batch of an evaluation is short
QUICK = {"dataloader_num_workers": 0, "per_device_eval_batch_size": 4, "per_device_train_batch_size": 4}
# Evaluation at each epoch, and the best of the models, are in test_contract.
QUICK |= {"eval_strategy": "no", "save_strategy": "no", "load_best_model_at_end": "false"}


# ---- data and models on the Hub ----


KINDS: dict[str, tuple[Callable[..., list], dict]] = {
    "nora/tones": (tiny_speech.tones, {"label": ClassLabel(names=list(tiny_speech.PITCHES))}),
    "nora/spelt": (tiny_speech.spelt_rows, {"text": Value("string")}),
}


def parquet(dataset: str, number: int, *, seed: int) -> bytes:
    """Clips as encoded files, and what each is."""
    make, label = KINDS[dataset]
    return tiny_speech.parquet(make(number, seed=seed), **label)


@pytest.fixture(scope="module", autouse=True)
def repositories(hub, tmp_path_factory):
    """Two datasets and four models of nora, whose token is in HF_TOKEN; torchcodec is not to be had (pitfall 20)."""
    hub.add_user("nora", TOKEN)
    for dataset in KINDS:
        files = {
            "data/train-00000-of-00001.parquet": parquet(dataset, NUM_TRAIN, seed=0),
            "data/test-00000-of-00001.parquet": parquet(dataset, NUM_TEST, seed=1),
        }
        hub.add_repo("dataset", dataset, files)
    folder = tmp_path_factory.mktemp("models")
    tiny_speech.save_wav2vec2(folder / "wav2vec2")
    tiny_speech.save_whisper(folder / "whisper-2s", chunk_length=2)
    tiny_speech.save_whisper(folder / "whisper-1s", chunk_length=1)
    tiny_speech.save_moonshine(folder / "moonshine")
    for model in folder.iterdir():
        hub.add_repo("model", f"nora/{model.name}", tiny.files(model))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setitem(sys.modules, "torchcodec", None)  # an import of it fails, as where it is not installed
        yield


# ---- six runs, each pulled, trained until it knows something, and pushed ----


@dataclass(frozen=True)
class Case:
    """A recipe, what it pulls, its other flags, and what is pushed of it beside EVERY_RUN."""

    recipe: str
    dataset: str
    model: str
    pushed: set[str]
    flags: tuple[object, ...] = ()

    @property
    def metric(self) -> str:
        return "accuracy" if self.recipe == "audio_cls" else "cer"


def of(**values: object) -> tuple[str, ...]:
    """Flags."""
    return tuple(f"--{name}={value}" for name, value in values.items())


SHORT = of(generation_max_length=12)
CLASSIFIERS = {
    "wav2vec2-tones": Case("audio_cls", "nora/tones", "nora/wav2vec2", {"preprocessor_config.json"}),
    "whisper-tones": Case("audio_cls", "nora/tones", "nora/whisper-2s", {"preprocessor_config.json"}),
}
RECOGNISERS = {
    "wav2vec2-ctc": Case(
        *("speech_ctc", "nora/spelt", "nora/wav2vec2", OF_CTC),
        flags=of(freeze_feature_encoder="false", num_train_epochs=8),
    ),
    "crnn-ctc": Case(
        *("speech_ctc", "nora/spelt", "builtin:crnn", OF_CTC),
        flags=("--config_overrides", "hidden_size=32", "num_mel_bins=20", "conv_channels=12", "--num_train_epochs=8"),
    ),
    "whisper-writes": Case(
        *("speech_seq2seq", "nora/spelt", "nora/whisper-1s", OF_DECODERS),
        flags=(*SHORT, *of(num_train_epochs=10)),
    ),
    "moonshine-writes": Case(
        *("speech_seq2seq", "nora/spelt", "nora/moonshine", OF_DECODERS),
        flags=(*SHORT, *of(num_train_epochs=16)),
    ),
}
CASES = {**CLASSIFIERS, **RECOGNISERS}
# The character error rate of one text for all clips is 0.53 at best; Moonshine is slow to find what to listen to.
LARGEST_CER = dict.fromkeys(RECOGNISERS, 0.25) | {"moonshine-writes": 0.45}


def run_case(name: str, folder: Path, *flags: object, **quick: object) -> tiny.Run:
    case = CASES[name]
    pulled = ("--dataset_name", case.dataset, "--model_name_or_path", case.model, "--output_dir", folder)
    given = {**QUICK, "num_train_epochs": 4}
    run = tiny.run_recipe(*pulled, *case.flags, *of(**quick), *flags, recipe=case.recipe, **given)
    assert run.exit_code == 0, run.output
    return run


@pytest.fixture(scope="module")
def pushed(hub, repositories, tmp_path_factory):
    """The finished run of a case by its name; each is trained once."""

    @cache
    def pushed(name: str) -> tiny.Pushed:
        folder, repo_id = tmp_path_factory.mktemp("runs") / name, f"nora/my-{name}"
        run = run_case(name, folder, "--push_to_hub", "--hub_strategy", "end", "--hub_model_id", repo_id)
        return tiny.Pushed(repo_id, run, folder, hub.files("model", repo_id))

    return pushed


@pytest.mark.parametrize("name", CASES)
def test_something_is_learned(name, pushed):
    """One class, one text or nothing for every clip would prove nothing below."""
    metrics = pushed(name).run.metrics
    assert metrics["accuracy"] > 0.9 if name in CLASSIFIERS else metrics["cer"] < LARGEST_CER[name]
    assert pushed(name).results["metrics"]["test"] == pytest.approx(metrics)


@pytest.mark.parametrize("name", RECOGNISERS)
def test_the_written_texts_have_the_scores_of_the_results(name, pushed):
    """Counted from the file alone."""
    lines, metrics = pushed(name).predictions, pushed(name).results["metrics"]["test"]
    texts, recognised = ([line[key] for line in lines] for key in ("label", "prediction"))
    assert texts == [text for text, _ in tiny_speech.spelt_rows(NUM_TEST, seed=1)]
    assert metrics["cer_raw"] == pytest.approx(jiwer.cer(texts, recognised))
    words = jiwer.process_words(texts, recognised)
    assert metrics["wer_raw"] == pytest.approx(words.wer)
    edits = ("substitutions", "deletions", "insertions")
    assert [metrics[edit] for edit in edits] == [getattr(words, edit) for edit in edits]


# ---- pulled back ----


READING = """
import json, soundfile, sys

def read(path):
    samples, sampling_rate = soundfile.read(path, dtype="float32")
    return {"raw": samples, "sampling_rate": sampling_rate}

answers = {}
"""


@pytest.fixture(scope="module")
def pulled(pushed, tmp_path_factory) -> dict[str, list]:
    """What the cards' examples answer for each clip of the test split, in one process that has an empty cache.

    They are given waveforms, since the pipelines read files with ffmpeg, which need not be there. Those of transformers' own
    models come first, and need nothing of sft_hf.
    """
    folder, program = tmp_path_factory.mktemp("pulled"), [READING]
    for dataset, (make, _) in KINDS.items():
        for index, (_, samples) in enumerate(make(NUM_TEST, seed=1)):
            tiny_speech.write_wav(folder / dataset / f"{index}.wav", samples)
    for name in sorted(CASES, key=lambda name: CASES[name].model.startswith("builtin:")):
        *setup, call = pushed(name).example.splitlines()
        assert any("import sft_hf" in line for line in setup) == CASES[name].model.startswith("builtin:")
        call = call.replace('"clip.wav"', f"read(f'{CASES[name].dataset}/{{index}}.wav')")
        program += [*setup, f"answers[{name!r}] = [{call} for index in range({NUM_TEST})]"]
    program += ["answers['modules'] = list(sys.modules)", "print(json.dumps(answers))"]
    return tiny.run_program("\n".join(program), folder)


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_pulled_classifier_predicts_what_the_evaluation_did(name, pushed, pulled):
    best, lines = [answer[0] for answer in pulled[name]], pushed(name).predictions
    assert [answer["label"] for answer in best] == [line["prediction"] for line in lines]
    assert [answer["score"] for answer in best] == pytest.approx([line["score"] for line in lines], abs=1e-4)
    right = sum(line["prediction"] == line["label"] for line in lines)
    assert right / NUM_TEST == pytest.approx(pushed(name).results["metrics"]["test"]["accuracy"])


@pytest.mark.parametrize("name", RECOGNISERS)
def test_the_pulled_recogniser_writes_what_the_evaluation_did(name, pushed, pulled):
    assert [answer["text"] for answer in pulled[name]] == [line["prediction"] for line in pushed(name).predictions]


def test_pitfall_43_a_pulled_whisper_hears_no_more_than_the_longest_clip(pushed):
    """Of the 2 s that it came with 1 s is left, in the model and in the extractor."""
    files = pushed("whisper-tones").files
    assert json.loads(files["config.json"])["max_source_positions"] == 50
    assert json.loads(files["preprocessor_config.json"])["chunk_length"] == 1


def test_pitfall_20_a_user_needs_no_torchcodec(pulled):
    assert "torchcodec" not in pulled["modules"]


# ---- what is pushed ----


@pytest.mark.parametrize("name", CASES)
def test_what_was_pushed_is_what_the_list_allows(name, hub, pushed):
    """No clip, no prediction, no report."""
    result = pushed(name)
    assert set(result.files) == EVERY_RUN | CASES[name].pushed
    assert hub.commits("model", result.repo_id) == ["Fine-tuned with sft_hf", "initial commit"]
    for file in result.files.keys() - {".gitattributes", "recipe.yaml"}:
        assert result.files[file] == (result.folder / file).read_bytes()
    folders = [str(result.folder.parent), os.environ["HF_HOME"], str(Path(__file__).parent)]
    assert named(folders, result.files) == []


def named(folders: list[str], files: dict[str, bytes]) -> list[str]:
    """The files in which one of the folders is named."""
    return [name for name, content in files.items() if any(folder.encode() in content for folder in folders)]


@pytest.mark.parametrize("name", CASES)
def test_the_card_is_valid_and_its_numbers_are_the_results(name, pushed):
    """Pitfall 35: the Hub refuses a card with invalid metadata, and the push with it. Counts of words are no scores."""
    result, case = pushed(name), CASES[name]
    card = ModelCard(result.card)
    card.validate()
    tag = "audio-classification" if name in CLASSIFIERS else "automatic-speech-recognition"
    assert (card.data.pipeline_tag, card.data.library_name) == (tag, "transformers")
    assert card.data.datasets == [case.dataset]
    assert card.data.base_model == (None if case.model.startswith("builtin:") else case.model)
    found = {(entry.dataset_split, entry.metric_name): entry.metric_value for entry in card.data.eval_results}
    assert found == {
        (split, f"{metric} ({split})"): round(value, 5)
        for split, metrics in result.results["metrics"].items()
        for metric, value in metrics.items()
        if isinstance(value, float)
    }
    types = {(entry.metric_name, entry.metric_type) for entry in card.data.eval_results}
    assert (f"{case.metric} (test)", case.metric) in types
    assert {entry.task_type for entry in card.data.eval_results} == {tag}
    assert {entry.dataset_type for entry in card.data.eval_results} == {case.dataset}


def test_the_pushed_recipe_repeats_the_run(pushed, tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(pushed("crnn-ctc").files["recipe.yaml"])
    values = yaml.safe_load(pushed("crnn-ctc").files["recipe.yaml"])
    assert "output_dir" not in values
    assert (values["dataset_name"], values["model_name_or_path"]) == ("nora/spelt", "builtin:crnn")
    flags = ("--config", tmp_path / "recipe.yaml", "--output_dir", tmp_path / "again", "--push_to_hub=false")
    again = tiny.run_recipe(*flags, recipe="speech_ctc", **QUICK, num_train_epochs=8)
    assert again.exit_code == 0, again.output
    assert again.metrics == pytest.approx(pushed("crnn-ctc").run.metrics, abs=1e-4)


def test_push_examples_adds_predictions_and_reports(hub, pushed):
    """The run is complete: it is pushed again, not trained again."""
    for name in ("wav2vec2-tones", "wav2vec2-ctc"):
        repo_id = f"nora/my-{name}-with-examples"
        run = run_case(name, pushed(name).folder, "--push_to_hub", "--push_examples", "--hub_model_id", repo_id)
        assert "nothing is trained again" in run.output
        added = hub.files("model", repo_id).keys() - pushed(name).files.keys()
        pages = {f"reports/worst_utterances_{split}.html" for split in ("validation", "test")}
        assert added == {"predictions/test.jsonl"} | (pages if name in RECOGNISERS else set())


LANGUAGE_MODEL = r"""
\data\
ngram 1=6
ngram 2=1

\1-grams:
-1.0	<unk>
-1.0	<s>	-0.5
-1.0	</s>
-1.0	A	-0.5
-1.0	B	-0.5
-1.0	C	-0.5

\2-grams:
-1.0	A B

\end\
"""


@pytest.mark.parametrize("recipe", ["audio_cls", "speech_ctc", "speech_seq2seq"])
def test_nothing_pushed_names_a_folder_of_this_machine(recipe, hub, tmp_path):
    """Not even with the examples, of local clips, class weights, language model, tokenizer and model."""
    write = tiny_speech.write_tone_folders if recipe == "audio_cls" else tiny_speech.write_spelt
    save = tiny_speech.save_moonshine if recipe == "speech_seq2seq" else tiny_speech.save_wav2vec2
    flags = [
        "--dataset_name",
        write(tmp_path / "data", train=12, test=3),
        "--model_name_or_path",
        save(tmp_path / "model"),
    ]
    if recipe == "audio_cls":
        (tmp_path / "weights.json").write_text(json.dumps(dict.fromkeys(tiny_speech.PITCHES, 1.0)))
        flags += ["--class_weights", tmp_path / "weights.json"]
    elif recipe == "speech_ctc":
        tiny_speech.save_wav2vec2(tmp_path / "letters", vocabulary=True)
        (tmp_path / "words.arpa").write_text(LANGUAGE_MODEL)
        flags += ["--tokenizer_name", tmp_path / "letters", "--decoder", "beam", "--lm_path", tmp_path / "words.arpa"]
    else:
        flags += SHORT
    repo_id = f"nora/local-{recipe}"
    push = ("--push_to_hub", "--push_examples", "--hub_model_id", repo_id)
    run = tiny.run_recipe(*flags, "--output_dir", tmp_path / "run", *push, recipe=recipe, **QUICK, max_steps=1)
    assert run.exit_code == 0, run.output
    files = hub.files("model", repo_id)
    assert {"predictions/test.jsonl", "README.md"} < files.keys()
    assert named([str(tmp_path)], files) == []
    first = json.loads(files["predictions/test.jsonl"].splitlines()[0])
    assert first["audio"] == ("high/2.wav" if recipe == "audio_cls" else "test/0.wav")


# ---- streams ----


@pytest.mark.parametrize("name", ["wav2vec2-tones", "whisper-writes"])
def test_a_stream_of_the_hub_is_trained_on(name, tmp_path, monkeypatch):
    """Clips come encoded from the parquet files, and are decoded as they are read."""
    # datasets waits 5 seconds each time a shuffled stream of parquet files is left.
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)
    flags = ("--streaming", "--validation_split_name", "test", "--train_sampling_strategy", "random", "--max_steps", 4)
    run = run_case(name, tmp_path / "run", *flags)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["training"]["steps"] == 4
    assert results["label_names"] == (list(tiny_speech.PITCHES) if name in CLASSIFIERS else [])
    assert results["metrics"] == {"validation": pytest.approx(run.metrics)}
    assert "reloaded with transformers.pipeline" in run.output
