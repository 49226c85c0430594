"""Flags: command line beats YAML beats recipe beats defaults, and a misspelt name is an error in all three."""

import logging
from dataclasses import dataclass, field, fields
from typing import Literal

import pytest
import yaml
from transformers import TrainingArguments

from sft_hf.arguments import DataArguments, FinetuningArguments, ModelArguments
from sft_hf.errors import ArgumentError
from sft_hf.flags import REPLACED, parse_arguments


@dataclass(frozen=True)
class Flags:
    """The flags of a task."""

    class_names: str | None = None
    loss: Literal["auto", "focal"] = "auto"
    focal_gamma: float = field(default=2.0, metadata={"help": "Of the focal loss."})

    def __post_init__(self):
        if self.focal_gamma < 0:
            raise ValueError(f"--focal_gamma {self.focal_gamma}: expected 0 or more")


TYPES = (DataArguments, ModelArguments, FinetuningArguments, Flags)


@pytest.fixture
def write(tmp_path):
    """Write a --config file; returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "run.yaml"
        path.write_text(text)
        return str(path)

    return write


def parse(*arguments, recipe=None, special=None):
    return parse_arguments(TYPES, arguments, defaults=recipe or {}, model_defaults=special)


def error(*arguments, recipe=None):
    with pytest.raises(ArgumentError) as caught:
        parse(*arguments, recipe=recipe)
    return str(caught.value)


# ---- which layer wins ----


def test_the_command_line_beats_yaml_beats_the_recipe_beats_the_defaults(write):
    config = write("learning_rate: 5e-5\nweight_decay: 0.2")
    parsed = parse(
        *("--config", config, "--learning_rate", "2e-5"),
        recipe={"learning_rate": 1e-4, "weight_decay": 0.1, "num_train_epochs": 5},
    )
    training_args = parsed.instances[2]
    assert training_args.learning_rate == 2e-5
    assert training_args.weight_decay == 0.2
    assert training_args.num_train_epochs == 5
    assert training_args.seed == 42
    assert parsed.layers == {"learning_rate": "command line", "weight_decay": config, "num_train_epochs": "recipe"}


def test_the_values_are_those_of_every_flag(write):
    parsed = parse("--config", write("weight_decay: 0.2"), recipe={"output_dir": "runs/a"})
    assert parsed.values["weight_decay"] == 0.2
    assert parsed.values["output_dir"] == "runs/a"
    assert parsed.values["seed"] == 42
    assert parsed.values["focal_gamma"] == 2.0


def test_null_takes_the_default_back(write):
    parsed = parse("--config", write("weight_decay: null\nsave_total_limit:"), recipe={"weight_decay": 0.1})
    assert parsed.instances[2].weight_decay == 0
    assert set(parsed.layers) == {
        "weight_decay",
        "save_total_limit",
    }  # recorded as null, so that a repeat does the same


def test_one_source_of_data_replaces_another_whole(write):
    recipe = {"dataset_name": "nyu-mll/glue", "dataset_config_name": "mrpc", "dataset_revision": "main"}
    data_args = parse("--train_file", "a.csv", "b.csv", recipe=recipe).instances[0]
    assert data_args == DataArguments(train_file=["a.csv", "b.csv"])

    data_args = parse("--dataset_name", "stanfordnlp/imdb", "--config", write("train_file: a.csv")).instances[0]
    assert data_args == DataArguments(dataset_name="stanfordnlp/imdb")

    data_args = parse("--dataset_config_name", "cola", recipe=recipe).instances[0]
    assert (data_args.dataset_name, data_args.dataset_config_name) == ("nyu-mll/glue", "cola")


def test_model_defaults_hold_for_a_named_model_and_where_the_weights_start_random(write):
    recipe = {"learning_rate": 5e-5, "num_train_epochs": 3, "model_name_or_path": "builtin:minilm"}
    special = {"builtin:minilm": {"learning_rate": 1e-4}, "from_scratch": {"learning_rate": 1e-3}}

    def rates(*arguments):
        training_args = parse(*arguments, recipe=recipe, special=special).instances[2]
        return training_args.learning_rate, training_args.num_train_epochs

    assert rates() == (1e-4, 3)
    assert rates("--model_name_or_path", "ORG/MODEL") == (5e-5, 3)
    assert rates("--model_name_or_path", "builtin:lstm") == (1e-3, 3)
    assert rates("--from_scratch") == (1e-3, 3)
    assert rates("--config", write("from_scratch: true")) == (1e-3, 3)
    assert rates("--from_scratch", "--learning_rate", "7e-4") == (7e-4, 3)


def test_defaults_of_the_embedded_run_hold_for_its_pair_of_model_and_data_alone():
    recipe = {"model_name_or_path": "builtin:lstm", "dataset_name": "builtin:docstrings", "learning_rate": 5e-5}
    special = {"from_scratch": {"learning_rate": 1e-3}, ("builtin:lstm", "builtin:docstrings"): {"learning_rate": 8e-3}}

    def rate(*arguments):
        return parse(*arguments, recipe=recipe, special=special).instances[2].learning_rate

    assert rate() == 8e-3
    assert rate("--train_file", "mine.csv") == 1e-3
    assert rate("--model_name_or_path", "ORG/MODEL") == 5e-5


def test_defaults_of_a_pattern_and_of_a_frozen_base():
    """Small convolutional networks want ten times the rate, and a head alone more still."""
    recipe = {"model_name_or_path": "ORG/MODEL", "learning_rate": 5e-5}
    special = {
        "*mobilenet*": {"learning_rate": 5e-4, "weight_decay": 0.1},
        "freeze_base_model": {"learning_rate": 1e-2},
        "from_scratch": {"learning_rate": 1e-3},
    }

    def rates(*arguments):
        training_args = parse(*arguments, recipe=recipe, special=special).instances[2]
        return training_args.learning_rate, training_args.weight_decay

    assert rates() == (5e-5, 0.0)
    for name in ("google/mobilenet_v2_1.0_224", "timm/MobileNetV3_small_100.lamb_in1k", "weights/mobilenet/"):
        assert rates("--model_name_or_path", name) == (5e-4, 0.1)
    assert rates("--model_name_or_path", "mobilenet/vit") == (5e-5, 0.0)  # the last part says what it is
    assert rates("--freeze_base_model") == (1e-2, 0.0)
    assert rates("--model_name_or_path", "google/mobilenet_v2_1.0_224", "--freeze_base_model") == (1e-2, 0.1)
    assert rates("--model_name_or_path", "timm/mobilenetv3_small_100", "--from_scratch") == (1e-3, 0.0)


# ---- types ----


def test_yaml_1e_5_is_a_number(write):
    """Pitfall 9, inside of a mapping too."""
    config = write("learning_rate: 1e-5\nlr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr: 1e-7}")
    assert yaml.safe_load("1e-5") == "1e-5"
    training_args = parse("--config", config).instances[2]
    assert training_args.learning_rate == 1e-5
    assert isinstance(training_args.learning_rate, float)
    assert training_args.lr_scheduler_kwargs == {"min_lr": 1e-7}


def test_booleans_lists_and_mappings_of_yaml(write):
    config = write(
        """
        streaming: true
        dataloader_drop_last: yes
        average_tokens_across_devices: false
        train_file: [a.csv, "b c.csv"]
        class_names: [ham, spam]
        report_to: [tensorboard, trackio]
        config_overrides: {hidden_dropout_prob: 0.2, tie_word_embeddings: false, classifier_dropout: null}
        lr_scheduler_kwargs: {is_cycled: false}
        liger_kernel_config: {rope: true}
        """
    )
    data_args, model_args, training_args, flags = parse("--config", config).instances
    assert data_args.streaming is True
    assert data_args.train_file == ["a.csv", "b c.csv"]
    assert model_args.config_overrides == [
        "hidden_dropout_prob=0.2",
        "tie_word_embeddings=false",
        "classifier_dropout=null",
    ]
    assert training_args.dataloader_drop_last is True
    assert training_args.average_tokens_across_devices is False
    assert training_args.report_to == ["tensorboard", "trackio"]
    assert training_args.lr_scheduler_kwargs == {"is_cycled": False}
    assert training_args.liger_kernel_config == {"rope": True}
    assert flags.class_names == "ham,spam"


def test_booleans_and_mappings_of_the_command_line():
    arguments = ["--streaming", "--from_scratch", "no", "--no_dataloader_pin_memory", "--include_num_input_tokens_seen"]
    mappings = ["--lr_scheduler_kwargs", '{"num_cycles": 2}', "--liger_kernel_config", '{"rope": false}']
    data_args, model_args, training_args, _ = parse(*arguments, "all", *mappings).instances
    assert data_args.streaming is True
    assert model_args.from_scratch is False
    assert training_args.dataloader_pin_memory is False
    assert training_args.include_num_input_tokens_seen == "all"
    assert training_args.lr_scheduler_kwargs == {"num_cycles": 2}
    assert training_args.liger_kernel_config == {"rope": False}


def test_a_flag_that_needs_no_value_is_true_in_yaml(write, monkeypatch):
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")  # TrainingArguments sets it for good
    assert parse("--fsdp").instances[2].fsdp is True
    assert parse("--config", write("fsdp: true")).instances[2].fsdp is True


def test_a_bare_flag_is_true_also_where_its_default_is_none():
    training_args = parse("--hub_private_repo", "--push_to_hub").instances[2]
    assert training_args.hub_private_repo is True
    assert training_args.push_to_hub is True


def test_words_that_yaml_takes_for_booleans(write):
    """`no` and `off` without quotes are False for YAML 1.1; the choices mean the words."""
    training_args = parse("--config", write("save_strategy: no\neval_strategy: no\ncpu_bf16: off")).instances[2]
    assert (training_args.save_strategy, training_args.eval_strategy, training_args.cpu_bf16) == ("no", "no", "off")


def test_a_wrong_type_names_flag_and_layer(write):
    assert error("--learning_rate", "fast") == (
        "command line: argument --learning_rate/--learning-rate: invalid float value: 'fast'"
    )
    assert error("--config", write("max_steps: many")).endswith(
        "run.yaml: argument --max_steps/--max-steps: invalid int value: 'many'"
    )
    assert error(recipe={"streaming": "perhaps"}).startswith("recipe: argument --streaming: Truthy value expected")
    assert "command line: argument --loss: invalid choice: 'hinge' (choose from" in error("--loss", "hinge")
    assert "argument --lr_scheduler_kwargs/--lr-scheduler-kwargs: invalid JSON" in error("--lr_scheduler_kwargs", "{a}")
    assert error("--learning_rate").endswith("expected one argument")


def test_values_that_a_dataclass_refuses():
    assert error("--focal_gamma", "-1") == "Flags: --focal_gamma -1.0: expected 0 or more"
    assert error("--warmup_steps", "-1").startswith("FinetuningArguments: ")


# ---- unknown, shortened and replaced names ----


def test_a_misspelt_name_is_the_same_error_in_each_layer(write):
    """Pitfall 10: argparse alone would read --learning_rat as --learning_rate."""
    hint = "Did you mean --learning_rate? --help lists all flags."
    assert error("--learning_rat", "1") == f"command line: unknown flag --learning_rat. {hint}"
    assert error("--learning-rat=1") == f"command line: unknown flag --learning_rat. {hint}"
    config = write("learning_rat: 1")
    assert error("--config", config) == f"{config}: unknown key 'learning_rat'. {hint}"
    assert error(recipe={"learning_rat": 1}) == f"recipe: unknown key 'learning_rat'. {hint}"
    with pytest.raises(ArgumentError, match="recipe: unknown key 'learning_rat'"):
        parse("--from_scratch", special={"from_scratch": {"learning_rat": 1}})


def test_a_name_that_is_near_to_nothing():
    assert error("--zzz") == "command line: unknown flag --zzz. --help lists all flags."
    assert error("run.yaml") == "command line: unexpected argument 'run.yaml'; flags start with --"


def test_a_replaced_name_says_what_replaces_it_in_each_layer(write):
    """Pitfall 27."""
    for name, replacement in REPLACED.items():
        messages = [error(f"--{name}", "1"), error("--config", write(f"{name}: 1")), error(recipe={name: 1})]
        assert all(message.endswith(f"Use instead: {replacement}.") for message in messages), messages
    assert "--warmup_steps takes a fraction" in error("--warmup_ratio", "0.1")


def test_config_and_help_are_no_keys(write):
    assert "unknown key 'config'" in error("--config", write("config: other.yaml"))
    assert "unknown key 'help'" in error(recipe={"help": True})


# ---- TrainingArguments ----


def test_help_has_every_training_argument_and_the_recipe_s_defaults(capsys):
    with pytest.raises(SystemExit) as caught:
        parse("--help", recipe={"learning_rate": 3e-4})
    assert caught.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    names = [item.name for item in fields(TrainingArguments) if item.init]
    assert len(names) > 100
    assert [name for name in names if f" --{name} " not in text] == []
    assert "(default: 0.0003)" in text


def test_the_recorded_values_repeat_the_run(write):
    """recipe.yaml holds the value of every flag that is not None, an empty list and `no` among them."""
    flags = ["--train_file", "a.csv", "--lr_scheduler_kwargs", '{"num_cycles": 2}', "--save_strategy", "no"]
    values = parse(*flags, recipe={"dataset_name": "builtin:docstrings"}).values
    recorded = {name: value for name, value in values.items() if value is not None}
    assert (recorded["include_for_metrics"], recorded["debug"]) == ([], "")
    again = parse("--config", write(yaml.safe_dump(recorded)), recipe={"dataset_name": "builtin:docstrings"})
    assert again.values == values


def test_secrets_are_not_among_the_values(write):
    parsed = parse("--token", "hf_read", "--config", write("hub_token: hf_write"))
    assert parsed.instances[1].token == "hf_read"
    assert parsed.instances[2].hub_token == "hf_write"
    assert not {"token", "hub_token"} & set(parsed.values)
    assert "hf_read" not in str(parsed.values)
    assert "hf_write" not in str(parsed.values)


def test_resume_from_checkpoint_is_resume(write):
    assert parse("--resume_from_checkpoint", "runs/a/checkpoint-5").instances[2].resume == "runs/a/checkpoint-5"
    config = write("resume_from_checkpoint: runs/a/checkpoint-5")
    assert parse("--config", config, "--resume", "never").instances[2].resume == "never"


def test_columns_are_the_task_s_to_drop_and_a_flag_without_effect_is_said(caplog):
    """Pitfall 28."""
    with caplog.at_level(logging.INFO, logger="sft_hf"):
        training_args = parse("--remove_unused_columns", "true", "--do_train").instances[2]
    assert training_args.remove_unused_columns is False
    assert "command line: --do_train changes nothing: a run always trains" in caplog.text
    assert "--remove_unused_columns changes nothing" in caplog.text
