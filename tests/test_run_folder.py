"""What is recorded of a run, and from which checkpoint it goes on; whole runs into one folder are in test_finetuning."""

import pytest
import yaml

import sft_hf
from sft_hf.arguments import FinetuningArguments
from sft_hf.checkpoints import write_manifest
from sft_hf.errors import ArgumentError
from sft_hf.flags import Parsed
from sft_hf.run_folder import checkpoint_to_resume, recordable, state_of, write_recipe


def test_no_secret_is_recorded_and_null_only_where_it_takes_a_default_back():
    values = {"seed": 1, "token": "hf_x", "hub_token": "hf_x", "max_length": None, "save_total_limit": None}
    parsed = Parsed((), values, {"save_total_limit": "run.yaml", "seed": "recipe"})
    assert recordable(parsed) == {"seed": 1, "save_total_limit": None}


def test_the_recipe_is_written_in_the_order_of_the_flags_and_says_who_wrote_it(tmp_path):
    values = {"train_file": ["a.csv"], "class_names": "Ärger,Freude", "learning_rate": 5e-5}
    write_recipe(str(tmp_path / "runs" / "a"), Parsed((), values, {}))
    text = (tmp_path / "runs" / "a" / "recipe.yaml").read_text(encoding="utf-8")
    assert text.startswith(f"# sft_hf {sft_hf.__version__}\ntrain_file:\n- a.csv\nclass_names: Ärger,Freude\n")
    assert yaml.safe_load(text) == values


def test_the_global_batch_may_be_cut_another_way_when_a_run_goes_on(tmp_path):
    def state(**values):
        return state_of(tmp_path, Parsed((), {"learning_rate": 1e-3, **values}, {}), "auto")

    write_recipe(str(tmp_path), Parsed((), {"learning_rate": 1e-3, "per_device_train_batch_size": 8}, {}))
    assert state(per_device_train_batch_size=2, gradient_accumulation_steps=4) == "partial"
    with pytest.raises(
        ArgumentError, match=r"--gradient_accumulation_steps 2 \(there: None\), --per_device_train_batch_size 2"
    ):
        state(per_device_train_batch_size=2, gradient_accumulation_steps=2)


def test_batches_by_tokens_are_cut_as_they_were(tmp_path):
    """Their number of examples, which --per_device_train_batch_size does not say, would be another."""
    values = {"tokens_per_batch": 800, "per_device_train_batch_size": 32}
    write_recipe(str(tmp_path), Parsed((), values, {}))
    assert state_of(tmp_path, Parsed((), values, {}), "auto") == "partial"
    for other in ({"per_device_train_batch_size": 16, "gradient_accumulation_steps": 2}, {"tokens_per_batch": 400}):
        with pytest.raises(ArgumentError, match="holds a run with other flags"):
            state_of(tmp_path, Parsed((), {**values, **other}, {}), "auto")


def test_another_number_of_processes_does_not_go_on(tmp_path):
    checkpoint = tmp_path / "checkpoint-5"
    checkpoint.mkdir()
    (checkpoint / "optimizer.pt").touch()
    write_manifest(checkpoint, num_processes=1)
    arguments = FinetuningArguments(output_dir=str(tmp_path), report_to="none")
    assert checkpoint_to_resume(arguments) == str(checkpoint)
    write_manifest(checkpoint, num_processes=2)
    with pytest.raises(ArgumentError, match=r"written by 2 process\(es\), now there are 1"):
        checkpoint_to_resume(arguments)
    arguments.resume = "never"
    assert checkpoint_to_resume(arguments) is None


def test_no_run_goes_on_without_the_states_of_its_optimizer(tmp_path, caplog):
    """The stock Trainer does, without a word, with an optimizer that begins anew."""
    checkpoint = tmp_path / "checkpoint-5"
    checkpoint.mkdir()
    (checkpoint / "model.safetensors").touch()
    write_manifest(checkpoint, num_processes=1)
    arguments = FinetuningArguments(output_dir=str(tmp_path), report_to="none")
    assert checkpoint_to_resume(arguments) is None
    assert "checkpoint-5 has no optimizer (--save_only_model): the run begins anew" in caplog.text
    arguments.resume = str(checkpoint)
    with pytest.raises(ArgumentError, match="no run can go on from it"):
        checkpoint_to_resume(arguments)
