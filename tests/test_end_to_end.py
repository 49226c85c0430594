"""Whole runs: from a dataset and a model on the Hub to a model on the Hub, and what must not happen on the way."""

import json
import os
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny
import yaml
from huggingface_hub import HfApi, ModelCard, snapshot_download
from transformers import pipeline
from typer.testing import CliRunner

from sft_hf.cli import app

# Distinctive, so that a search for it in files and logs finds it and nothing else.
TOKEN, READ_TOKEN = "hf_carol_may_write_5b0c9e", "hf_carol_may_read_71d2af"
ALLOWED = {
    ".gitattributes",
    "README.md",
    "config.json",
    "model.safetensors",
    "recipe.yaml",
    "results.json",
    "tokenizer.json",
    "tokenizer_config.json",
}
CARD = "---\nlicense: apache-2.0\n---\n# A tiny BERT\n"


@pytest.fixture(scope="module", autouse=True)
def repositories(hub):
    """A private dataset and a private model of carol, whose token is in HF_TOKEN and in no flag."""
    hub.add_user("carol", TOKEN)
    hub.add_user("carol", READ_TOKEN, can_write=False)
    data = {"train.csv": tiny.table(tiny.rows(96), ".csv"), "test.csv": tiny.table(tiny.rows(30, seed=1), ".csv")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_TOKEN", TOKEN)
        revisions = {
            "dataset": hub.add_repo("dataset", "carol/topics", data, private=True),
            "model": hub.add_repo("model", "carol/bert", {**tiny.bert(), "README.md": CARD}, private=True),
        }
        yield revisions


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr("sft_hf.hub.time.sleep", lambda seconds: None)


FROM_HUB = ("--dataset_name", "carol/topics", "--model_name_or_path", "carol/bert")


@dataclass(frozen=True)
class Pushed:
    """A finished run, its folder, and what arrived on the Hub."""

    run: tiny.Run
    folder: Path
    files: dict[str, bytes]

    @property
    def results(self) -> dict:
        return json.loads((self.folder / "results.json").read_text())


@pytest.fixture(scope="module")
def pushed(hub, repositories, tmp_path_factory) -> Pushed:
    """The run that most tests look at: trained until it knows the topics, then pushed."""
    folder = tmp_path_factory.mktemp("runs") / "topics"
    flags = ("--output_dir", folder, "--push_to_hub", "--hub_strategy", "end")
    run = tiny.run_recipe(*FROM_HUB, *flags, num_train_epochs=6)
    assert run.exit_code == 0, run.output
    return Pushed(run, folder, hub.files("model", "carol/topics"))


def predictions(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions" / "test.jsonl").read_text().splitlines()]


# From the Hub to the Hub


def test_the_topics_are_learned(pushed):
    assert pushed.run.metrics["accuracy"] >= 0.9
    assert pushed.results["metrics"]["test"] == pytest.approx(pushed.run.metrics)


def test_what_was_pushed_is_what_the_list_allows(hub, pushed):
    assert set(pushed.files) == ALLOWED
    assert hub.commits("model", "carol/topics") == ["Fine-tuned with sft_hf", "initial commit"]
    for name in ALLOWED - {".gitattributes", "recipe.yaml"}:
        assert pushed.files[name] == (pushed.folder / name).read_bytes()


def test_the_pulled_model_predicts_what_the_run_did(pushed, tmp_path):
    """As a user would: a machine that has never seen it, and nothing of sft_hf."""
    pulled = snapshot_download("carol/topics", cache_dir=tmp_path)
    classifier = pipeline("text-classification", model=pulled, device="cpu")
    lines = predictions(pushed.folder)
    answers = classifier([line["text"] for line in lines], truncation=True)
    assert [answer["label"] for answer in answers] == [line["prediction"] for line in lines]
    assert [answer["score"] for answer in answers] == pytest.approx([line["score"] for line in lines], abs=1e-5)
    right = sum(line["prediction"] == line["label"] for line in lines)
    assert right / len(lines) == pytest.approx(pushed.results["metrics"]["test"]["accuracy"])


def test_the_results_say_which_commits_went_in(pushed, repositories):
    assert pushed.results["data"]["revision"] == repositories["dataset"]
    assert pushed.results["model"]["revision"] == repositories["model"]
    assert (pushed.results["data"]["name"], pushed.results["model"]["name"]) == ("carol/topics", "carol/bert")
    assert pushed.results["label_names"] == ["animals", "kitchen", "weather"]


def test_the_card_is_valid_and_its_numbers_are_the_results(pushed):
    """Pitfall 35: the Hub refuses a card with invalid metadata, and the push with it."""
    card = ModelCard(pushed.files["README.md"].decode())
    card.validate()
    assert (card.data.base_model, card.data.datasets) == ("carol/bert", ["carol/topics"])
    assert (card.data.license, card.data.pipeline_tag) == ("apache-2.0", "text-classification")
    found = {(entry.dataset_split, entry.metric_name): entry.metric_value for entry in card.data.eval_results}
    expected = {
        (split, f"{name} ({split})"): round(value, 5)
        for split, metrics in pushed.results["metrics"].items()
        for name, value in metrics.items()
    }
    assert found == expected
    assert {entry.dataset_type for entry in card.data.eval_results} == {"carol/topics"}


def test_pitfall_40_the_token_is_in_no_file_and_in_no_log(hub, pushed):
    """training_args.bin of the Trainer holds it in clear; here it comes from HF_TOKEN, which nothing may write down."""
    local = {path: path.read_bytes() for path in pushed.folder.rglob("*") if path.is_file()}
    assert {"training_args.bin", "recipe.yaml", "results.json"} <= {path.name for path in local}
    assert [name for name, content in {**local, **pushed.files}.items() if TOKEN.encode() in content] == []
    assert TOKEN not in pushed.run.output
    assert [request.path for request in hub.requests if TOKEN.encode() in request.body] == []


def test_nothing_pushed_names_a_folder_of_this_machine(pushed):
    folders = [str(pushed.folder.parent).encode(), os.environ["HF_HOME"].encode(), str(Path(__file__).parent).encode()]
    assert [name for name, content in pushed.files.items() if any(folder in content for folder in folders)] == []


def test_the_pushed_recipe_repeats_the_run(pushed, tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(pushed.files["recipe.yaml"])
    values = yaml.safe_load(pushed.files["recipe.yaml"])
    assert "output_dir" not in values
    again = tiny.run_recipe(
        "--config", tmp_path / "recipe.yaml", "--output_dir", tmp_path / "again", "--push_to_hub=false"
    )
    assert again.exit_code == 0, again.output


# Tokens in flags


def test_pitfall_40_a_token_in_a_flag_is_written_nowhere_either(hub, repo_name, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    flags = ("--token", TOKEN, "--hub_token", TOKEN, "--push_to_hub", "--hub_model_id", f"carol/{repo_name}")
    run = tiny.run_recipe(*FROM_HUB, *flags, "--hub_strategy", "all_checkpoints", "--output_dir", tmp_path, max_steps=2)
    assert run.exit_code == 0, run.output
    local = {str(path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    everything = {**local, **hub.files("model", f"carol/{repo_name}"), "output": run.output.encode()}
    assert "checkpoint-2/optimizer.pt" in everything
    assert [name for name, content in everything.items() if TOKEN.encode() in content] == []


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (READ_TOKEN, r"the token may not write there (HTTP 403)"),
        ("hf_nobody", "the token may not write there (HTTP 401)"),
        (None, "there is no token"),
    ],
)
def test_a_token_that_may_not_write_ends_the_run_before_it_begins(hub, tmp_path, monkeypatch, token, message):
    monkeypatch.delenv("HF_TOKEN")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    before = len(hub.requests)
    run = tiny.run_recipe(*FROM_HUB, "--output_dir", tmp_path / "run", "--push_to_hub", "--hub_model_id", "carol/new")
    assert run.exit_code == 2
    assert message in run.output
    assert not (tmp_path / "run").exists()
    assert [request.path for request in hub.requests[before:] if "/resolve/" in request.path] == []


# Pushes that fail


def test_a_push_that_fails_at_the_end_is_exit_code_3_and_comes_later(hub, repo_name, tmp_path):
    repo_id, folder = f"carol/{repo_name}", tmp_path / "run"
    hub.fail("POST", "/commit/main", status=503, times=1000)
    flags = ("--push_to_hub", "--hub_model_id", repo_id, "--hub_private_repo=true", "--output_dir", folder)
    run = tiny.run_recipe(*FROM_HUB, *flags, max_steps=2)
    assert run.exit_code == 3
    assert f"The run is complete in {folder}" in run.output
    assert f"sft-hf push {folder} --hub_model_id {repo_id}" in run.output
    assert {name for name in ALLOWED if name != ".gitattributes"} <= set(tiny.files(folder))
    assert hub.commits("model", repo_id) == ["initial commit"]

    hub.clear_failures()
    later = CliRunner().invoke(app, ["push", str(folder), "--hub_model_id", repo_id])
    assert later.exit_code == 0, later.output
    assert set(hub.files("model", repo_id)) == ALLOWED
    assert HfApi().model_info(repo_id).private


def test_the_same_command_pushes_a_complete_run_without_training_it_again(hub, repo_name, tmp_path):
    flags = (*FROM_HUB, "--output_dir", tmp_path / "run")
    first = tiny.run_recipe(*flags, max_steps=2)
    again = tiny.run_recipe(*flags, "--push_to_hub", "--hub_model_id", f"carol/{repo_name}", max_steps=2)
    assert again.exit_code == 0
    assert again.metrics == pytest.approx(first.metrics)
    assert "nothing is trained again" in again.output
    assert set(hub.files("model", f"carol/{repo_name}")) == ALLOWED


# Pushes during training


def test_every_save_is_pushed_and_one_that_fails_costs_nothing(hub, repo_name, tmp_path):
    repo_id = f"carol/{repo_name}"
    flags = ("--push_to_hub", "--hub_model_id", repo_id, "--hub_strategy", "every_save", "--hub_always_push")
    flags += ("--save_total_limit", "3")  # none is deleted while it waits to be pushed
    hub.fail("POST", "/commit/main", status=503, times=5)  # all tries of the first push
    run = tiny.run_recipe(*FROM_HUB, *flags, "--output_dir", tmp_path, num_train_epochs=3)
    assert run.exit_code == 0, run.output
    assert "the run goes on and pushes at its end" in run.output
    last, second, first, initial = hub.commits("model", repo_id)
    assert (last, initial) == ("Fine-tuned with sft_hf", "initial commit")
    assert all(title.startswith("Training in progress, step ") for title in (first, second))
    assert set(hub.files("model", repo_id)) == ALLOWED


# Without the Hub


def test_a_run_from_the_warm_cache_needs_no_hub(hub, pushed, tmp_path):
    """In a process of its own: the clients read HF_HUB_OFFLINE when they are imported."""
    before = len(hub.requests)
    run = tiny.run_recipe_process(*FROM_HUB, "--output_dir", tmp_path / "run", env={"HF_HUB_OFFLINE": "1"}, max_steps=2)
    assert run.exit_code == 0, run.output
    assert len(hub.requests) == before
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["model"]["revision"] == pushed.results["model"]["revision"]
    assert results["data"]["rows"] == pushed.results["data"]["rows"]


# Metrics of evaluate


def test_a_metric_of_evaluate_by_its_path_is_reported_and_not_named_in_public(hub, repo_name, tmp_path):
    """Pitfall 21: by path nothing is downloaded."""
    script = """
        import datasets
        import evaluate

        class Hits(evaluate.Metric):
            def _info(self):
                features = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
                return evaluate.MetricInfo(
                    description="", citation="", inputs_description="", features=datasets.Features(features)
                )

            def _compute(self, predictions, references):
                return {"hits": sum(p == r for p, r in zip(predictions, references))}
    """
    (tmp_path / "hits.py").write_text(textwrap.dedent(script))
    repo_id = f"carol/{repo_name}"
    run = tiny.run_recipe(
        *FROM_HUB,
        *("--metrics", tmp_path / "hits.py", "--output_dir", tmp_path / "run"),
        *("--push_to_hub", "--hub_model_id", repo_id),
        max_steps=2,
    )
    assert run.exit_code == 0, run.output
    assert run.metrics["hits"] == round(run.metrics["accuracy"] * 30)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["metrics"]["test"]["hits"] == run.metrics["hits"]
    assert [name for name, content in hub.files("model", repo_id).items() if str(tmp_path).encode() in content] == []


# Every problem, and a decoder


@pytest.mark.parametrize(
    ("kind", "model", "problem_type", "metric"),
    [
        ("multi", "bert", "multi_label_classification", "f1_micro"),
        ("regression", "decoder", "regression", "r2"),
        ("single", "decoder", "single_label_classification", "accuracy"),
    ],
)
def test_local_files_and_a_local_model_of_every_kind(tmp_path, kind, model, problem_type, metric):
    """The reload check of each run compared transformers.pipeline with the trainer; decoders have no padding token."""
    train = tiny.write_rows(tmp_path / "train.jsonl", tiny.rows(48, kind))
    test = tiny.write_rows(tmp_path / "test.jsonl", tiny.rows(12, kind, seed=1))
    save = {"bert": tiny.save_bert, "decoder": tiny.save_decoder}[model]
    flags = ("--train_file", train, "--test_file", test, "--model_name_or_path", save(tmp_path / model))
    run = tiny.run_recipe(*flags, "--output_dir", tmp_path / "run", max_steps=4)
    assert run.exit_code == 0, run.output
    assert metric in run.metrics
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["problem_type"] == problem_type
    ModelCard.load(tmp_path / "run" / "README.md").validate()
    assert len(predictions(tmp_path / "run")) == 12
