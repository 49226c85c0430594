"""The stages before the Trainer: hold-out, overlap, samples."""

from pathlib import Path

import pytest
import tiny
from datasets import Dataset

from sft_hf.arguments import DataArguments, FinetuningArguments, ModelArguments
from sft_hf.errors import ArgumentError, DataError
from sft_hf.preparation import prepare
from sft_hf.tasks.text_classification import TextClassification


def prepared(tmp_path: Path, splits: dict, task: TextClassification | None = None, **data_args):
    arguments = FinetuningArguments(output_dir=str(tmp_path), report_to="none")
    model_args = ModelArguments(model_name_or_path="builtin:lstm")
    return prepare(task or TextClassification(), DataArguments(**data_args), model_args, arguments, datasets=splits)


def test_batches_by_tokens_need_a_set_that_is_whole(tmp_path):
    flags = {"tokens_per_batch": 800, "train_sampling_strategy": "group_by_length", "max_steps": 4}
    arguments = FinetuningArguments(output_dir=str(tmp_path), report_to="none", **flags)
    rows = Dataset.from_list(tiny.rows(8)).to_iterable_dataset()
    with pytest.raises(
        ArgumentError, match=r"--streaming: --tokens_per_batch 800 .* give --per_device_train_batch_size and"
    ):
        prepare(
            TextClassification(),
            DataArguments(),
            ModelArguments(model_name_or_path="builtin:lstm"),
            arguments,
            datasets={"train": rows, "validation": rows},
        )


def test_groups_stay_on_one_side(tmp_path):
    rows = Dataset.from_list([{**row, "speaker": index // 8} for index, row in enumerate(tiny.rows(96))])
    made = prepared(tmp_path, {"train": rows}, validation_group_column="speaker", validation_fraction=0.25)
    sides = [set(made.rows[split]["speaker"]) for split in ("train", "validation")]
    assert not sides[0] & sides[1]
    assert sides[1]
    with pytest.raises(DataError, match=r"--validation_group_column speeker: the columns are"):
        prepared(tmp_path, {"train": rows}, validation_group_column="speeker")


def test_training_inputs_that_are_also_scored_are_counted_and_dropped_on_demand(tmp_path, caplog):
    train, other = Dataset.from_list(tiny.rows(30)), Dataset.from_list(tiny.rows(30)[:3])
    splits = {"train": train, "validation": other, "test": Dataset.from_list(tiny.rows(12, seed=5))}
    assert len(prepared(tmp_path, splits).rows["train"]) == 30
    assert "3 training inputs also stand in validation" in caplog.text
    assert prepared(tmp_path, splits, drop_overlapping_examples=True).rows["train"]["example_id"][:3] == [3, 4, 5]


def test_samples_are_seeded_and_random(tmp_path):
    """Many datasets are sorted by label: their first rows are of one class."""
    rows = Dataset.from_list(sorted(tiny.rows(90), key=lambda row: row["label"]))
    splits = {"train": rows, "validation": rows}
    first, second = (prepared(tmp_path, splits, max_train_samples=30).rows["train"] for _ in range(2))
    assert first["example_id"][:] == second["example_id"][:]
    assert len(set(first["label"])) == 3
    with pytest.raises(ArgumentError, match="--max_train_samples 0: expected a positive number"):
        prepared(tmp_path, splits, max_train_samples=0)
