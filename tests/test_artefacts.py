"""What a run leaves behind, and the check that the saved model is the one that was trained."""

import json

import numpy as np
import pytest
import tiny
import torch

from sft_hf import artefacts
from sft_hf.errors import ReloadError
from sft_hf.task import Columns


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    tiny.save_bert(folder / "bert")
    tiny.write_rows(folder / "train.csv", tiny.rows(96))
    tiny.write_rows(folder / "multi.jsonl", tiny.rows(96, "multi"))
    return folder


def run_in(world, output_dir, *more, file="train.csv"):
    return tiny.run_recipe(
        "--train_file", world / file, "--model_name_or_path", world / "bert", "--output_dir", output_dir, *more
    )


def test_a_run_folder_is_complete(world, tmp_path):
    run_in(world, tmp_path)
    there = {path.name for path in tmp_path.iterdir()}
    assert {
        "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "results.json", "recipe.yaml",
        "README.md", "trainer_state.json", "validation_indices.json",
    } <= there  # fmt: skip
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results["metrics"]) == {"validation"}
    assert {"loss", "accuracy", "balanced_accuracy", "f1_macro", "mcc", "roc_auc", "expected_calibration_error"} <= set(
        results["metrics"]["validation"]
    )
    assert results["data"]["rows"] == {"train": 86, "validation": 10}
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    speed = results["training"]["eval_samples_per_second"]  # there is no test split
    assert speed == round(history[-1]["eval_samples_per_second"], 3) > 0
    assert results["label_names"] == ["animals", "kitchen", "weather"]
    assert results["versions"]["transformers"]


def test_thresholds_of_multi_label_classes_are_saved(world, tmp_path):
    run_in(world, tmp_path, file="multi.jsonl")
    thresholds = json.loads((tmp_path / "config.json").read_text())["thresholds"]
    assert len(thresholds) == 3
    assert json.loads((tmp_path / "results.json").read_text())["thresholds"] == thresholds
    assert "config.thresholds" in (tmp_path / "README.md").read_text()


def test_a_model_that_reloads_as_another_fails_the_run(world, tmp_path, monkeypatch):
    """Pitfall 18: a head that was not saved reloads at random, and nothing says so."""
    save = artefacts.save_model

    def save_another(trainer, prepared, output_dir):
        with torch.no_grad():
            trainer.model.classifier.weight.neg_()
        save(trainer, prepared, output_dir)

    monkeypatch.setattr(artefacts, "save_model", save_another)
    run = run_in(world, tmp_path)
    assert run.exit_code == ReloadError.exit_code == 1
    assert "reloaded with transformers.pipeline, differs from the trainer by" in run.output
    assert not (tmp_path / "results.json").exists()


def test_the_reload_sample_is_spread_over_the_split():
    from datasets import Dataset

    rows = Dataset.from_dict({"text": [str(i) for i in range(99)] + [""], "example_id": list(range(100))})
    sample = artefacts.reload_sample(rows, Columns(("text",), "label"))
    assert [row["example_id"] for row in sample] == np.linspace(0, 99, 16).astype(int).tolist()[
        :-1
    ]  # the last is empty
    assert len(artefacts.reload_sample(rows.select(range(3)), Columns(("text",), "label"))) == 3
