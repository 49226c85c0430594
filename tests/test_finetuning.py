"""The pipeline around a task: hold-out, overlap, samples, streams, the run's folder, resuming, signals."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from sft_hf import finetuning
from sft_hf.checkpoints import last_whole


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny.save_bert(folder / "bert")
    tiny.write_rows(folder / "train.jsonl", tiny.rows(96))
    tiny.write_rows(folder / "validation.jsonl", tiny.rows(24, seed=2))
    tiny.write_rows(folder / "test.jsonl", tiny.rows(24, seed=1))
    return folder


def base(world: Path, output_dir: Path, *more: object) -> list[object]:
    return [
        "--train_file", world / "train.jsonl", "--model_name_or_path", world / "bert", "--output_dir", output_dir, *more
    ]  # fmt: skip


# ---- splits ----


def test_a_hold_out_is_stratified_and_its_rows_are_recorded(world, tmp_path):
    run = tiny.run_recipe(*base(world, tmp_path / "run"))
    recorded = json.loads((tmp_path / "run" / "validation_indices.json").read_text())
    assert len(recorded["rows"]) == 10
    assert "no validation split: 10 of 96 rows are held out (seed 42)" in run.output
    labels = [tiny.rows(96)[row]["label"] for row in recorded["rows"]]
    assert sorted(labels.count(name) for name in tiny.TOPICS) == [3, 3, 4]


def test_an_unlabelled_test_split_gets_predictions_and_no_score(world, tmp_path):
    rows = [{"text": row["text"]} for row in tiny.rows(9, seed=3)]
    tiny.write_rows(tmp_path / "test.jsonl", rows)
    run = tiny.run_recipe(*base(world, tmp_path / "run", "--test_file", tmp_path / "test.jsonl"))
    assert run.exit_code == 0, run.output
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert "test" not in results["metrics"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "predictions" / "test.jsonl").read_text().splitlines()]
    assert [line["text"] for line in lines] == [row["text"] for row in rows]
    assert "label" not in lines[0]


# ---- streams ----


def test_a_stream_is_trained_without_its_length(world, tmp_path):
    run = tiny.run_recipe(
        *base(world, tmp_path / "run", "--validation_file", world / "validation.jsonl", "--streaming", "true"),
        "--class_names", "animals,kitchen,weather", "--train_sampling_strategy", "random",
        "--eval_strategy", "steps", "--eval_steps", "30", "--save_strategy", "steps", "--save_steps", "30",
        max_steps=60,
    )  # fmt: skip
    assert run.exit_code == 0, run.output
    assert json.loads((tmp_path / "run" / "results.json").read_text())["training"]["steps"] == 60
    assert run.metrics["accuracy"] > 0.8


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train_sampling_strategy", "random"], "give --max_steps"),
        (["--max_steps", "5", "--train_sampling_strategy", "random"], "name a split with --validation_split_name"),
        (["--max_steps", "5", "--validation_file", "VALIDATION"], "give --train_sampling_strategy random"),
        (
            ["--max_steps", "5", "--validation_file", "VALIDATION", "--train_sampling_strategy", "random"],
            "--class_names",
        ),
        (
            ["--max_steps", "5", "--validation_file", "VALIDATION", "--train_sampling_strategy", "random",
             "--class_names", "animals,kitchen,weather", "--class_weights", "balanced"],
            "--class_weights balanced counts the whole training set",
        ),
    ],
)  # fmt: skip
def test_what_needs_the_whole_set_is_refused_for_a_stream(world, tmp_path, flags, message):
    flags = [str(world / "validation.jsonl") if flag == "VALIDATION" else flag for flag in flags]
    run = tiny.run_recipe(*base(world, tmp_path / "run", "--streaming", "true"), *flags)
    assert run.exit_code == 2
    assert message in run.output


# ---- the run's folder ----


def test_a_complete_run_is_not_trained_again(world, tmp_path):
    first = tiny.run_recipe(*base(world, tmp_path / "run"))
    changed = (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns
    second = tiny.run_recipe(*base(world, tmp_path / "run"))
    assert second.metrics == first.metrics
    assert "holds this run, complete" in second.output
    assert (tmp_path / "run" / "model.safetensors").stat().st_mtime_ns == changed


def test_the_folder_of_another_run_is_an_error(world, tmp_path):
    tiny.run_recipe(*base(world, tmp_path / "run"))
    other = tiny.run_recipe(*base(world, tmp_path / "run", "--seed", "7"))
    assert other.exit_code == 2
    assert "holds a run with other flags: --seed 7 (there: 42)" in other.output
    never = tiny.run_recipe(*base(world, tmp_path / "run", "--resume", "never"))
    assert never.exit_code == 2
    assert "--resume never" in never.output


def test_a_folder_with_somebodys_model_is_not_touched(world, tmp_path):
    run = tiny.run_recipe(*base(world, world / "bert"))
    assert run.exit_code == 2
    assert "holds something that is not a run of sft_hf (config.json" in run.output
    assert not (world / "bert" / "recipe.yaml").exists()


def test_resume_of_something_else_is_an_error(world, tmp_path):
    run = tiny.run_recipe(*base(world, tmp_path / "run", "--resume", tmp_path / "nothing"))
    assert run.exit_code == 2
    assert "expected auto, never or the folder of a whole checkpoint" in run.output


def test_early_stopping_and_the_best_model(world, tmp_path):
    """With a rate of zero nothing gets better after the first evaluation."""
    run = tiny.run_recipe(
        *base(world, tmp_path / "run", "--early_stopping_patience", "1"), learning_rate=0.0, num_train_epochs=5
    )
    assert run.exit_code == 0, run.output
    training = json.loads((tmp_path / "run" / "results.json").read_text())["training"]
    assert training["epochs"] == 2
    assert training["best_checkpoint"] == f"checkpoint-{training['steps'] // 2}"


def test_sigterm_writes_a_checkpoint_and_the_same_command_goes_on(world, tmp_path):
    """The resumed run ends with the weights of the undisturbed one, bit for bit."""
    flags = base(world, tmp_path / "cut", "--logging_steps", "1")
    command = [sys.executable, str(tiny.RECIPE), *tiny.flags(*flags, num_train_epochs=16)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "'loss'" in line and "'epoch': '1" in line:
            process.send_signal(signal.SIGTERM)
            break
    lines += process.stdout.readlines()
    assert process.wait(timeout=60) == 143, "".join(lines)
    assert "Stopped by SIGTERM; the checkpoint" in "".join(lines)
    step = json.loads((last_whole(tmp_path / "cut") / "trainer_state.json").read_text())["global_step"]
    assert 0 < step < 96
    resumed = tiny.run_recipe(*flags, num_train_epochs=16)
    assert resumed.exit_code == 0, resumed.output
    assert "going on from" in resumed.output
    whole = tiny.run_recipe(*base(world, tmp_path / "whole", "--logging_steps", "1"), num_train_epochs=16)
    assert whole.metrics == resumed.metrics
    cut, undisturbed = (load_file(tmp_path / name / "model.safetensors") for name in ("cut", "whole"))
    assert all(torch.equal(cut[name], undisturbed[name]) for name in undisturbed)


def test_an_unexpected_failure_is_not_exit_code_0(world, tmp_path, monkeypatch):
    """Pitfall 32: some toolkits exit 0 when training failed."""

    def fail(*args, **kwargs):
        raise RuntimeError("the optimizer exploded")

    monkeypatch.setattr(torch.optim.AdamW, "step", fail)
    with pytest.raises(RuntimeError, match="exploded"):
        tiny.run_recipe(*base(world, tmp_path / "run"))
    assert not (tmp_path / "run" / "results.json").exists()


def test_a_metric_that_is_not_finite_is_said_and_left_out(caplog):
    metrics = {"eval_loss": float("nan"), "eval_accuracy": 0.5, "eval_runtime": 1.0, "epoch": 1.0}
    assert finetuning._plain(metrics, "eval") == {"accuracy": 0.5}
    assert "eval: not finite, and left out of the results: loss" in caplog.text


def test_an_unknown_best_metric_is_an_error_before_training(world, tmp_path):
    run = tiny.run_recipe(*base(world, tmp_path / "run", "--metric_for_best_model", "f1"))
    assert run.exit_code == 2
    assert "--metric_for_best_model f1: single_label_classification has accuracy, balanced_accuracy" in run.output


def test_the_first_error_comes_before_the_data(world, tmp_path):
    started = time.monotonic()
    run = tiny.run_recipe(
        "--train_file", world / "train.jsonl", "--model_name_or_path", "./missing", "--output_dir", tmp_path / "r"
    )
    assert run.exit_code == 2
    assert "--model_name_or_path ./missing: no such folder" in run.output
    assert time.monotonic() - started < 5
