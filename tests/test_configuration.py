"""The --config file: flags, an env: block that the shell beats, and a message for each way to get it wrong."""

import os
from pathlib import Path

import pytest

import sft_hf
from sft_hf.arguments import DataArguments, FinetuningArguments, ModelArguments
from sft_hf.configuration import apply_environment, config_environment, config_path, read_config
from sft_hf.errors import ArgumentError
from sft_hf.flags import parse_arguments
from sft_hf.tasks.text_classification import TextClassification

RECIPES = Path(__file__).parent.parent / "recipes"


@pytest.fixture
def write(tmp_path):
    """Write a file; returns its path."""

    def write(text: str | bytes) -> str:
        path = tmp_path / "run.yaml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return str(path)

    return write


def error(name: str) -> str:
    with pytest.raises(ArgumentError) as caught:
        read_config(name)
    return str(caught.value)


def test_flags_and_environment_are_told_apart(write):
    config = write("env: {HF_HUB_OFFLINE: 1, TOKENIZERS_PARALLELISM: 'false'}\nlearning_rate: 1e-5\n")
    assert read_config(config) == (
        {"learning_rate": "1e-5"},
        {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
    )
    assert read_config(write("# nothing yet\n")) == ({}, {})
    assert read_config(write("env:\nseed: 1\n")) == ({"seed": 1}, {})


def test_the_environment_is_found_among_the_flags(write):
    config = write("env: {A_VARIABLE: x}")
    assert config_environment(["--learning_rate", "1", "--config", config, "--seed", "2"]) == {"A_VARIABLE": "x"}
    assert config_environment([f"--config={config}"]) == {"A_VARIABLE": "x"}
    assert config_environment(["--learning_rate", "1"]) == {}
    with pytest.raises(ArgumentError, match="--config: expected one argument"):
        config_environment(["--config"])


def test_the_shell_s_variables_win(monkeypatch):
    monkeypatch.setattr(os, "environ", {"IN_BOTH": "shell"})
    assert apply_environment({"IN_BOTH": "file", "IN_FILE": "file"}) is True
    assert os.environ == {"IN_BOTH": "shell", "IN_FILE": "file"}
    assert apply_environment({"IN_BOTH": "file", "IN_FILE": "file"}) is False  # so a process starts itself again once
    assert apply_environment({}) is False


def test_files_that_are_no_configuration(write):
    assert "is not valid YAML: " in error(write("learning_rate: [1"))
    assert "is not valid YAML: " in error(write(b"output_dir: \xff\xfe"))
    assert error(write("- learning_rate")).endswith("run.yaml: expected keys that are flag names, got a list")
    assert error(write("learning_rate")).endswith("run.yaml: expected keys that are flag names, got a str")
    assert error(write("env: [A=1]")).endswith("run.yaml: env: takes NAME: value pairs, got a list")
    assert error(write("env: {HF_HOME: }")).endswith("run.yaml: env: HF_HOME takes a text or a number, got nothing")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "hub_token: !!python/object/apply:os.system ['echo hf_secret']",
            "could not determine a constructor for the tag",
        ),
        ("hub_token: !!python/name:os.system", "could not determine a constructor for the tag"),
        ("hub_token: hf_secret: 1", "mapping values are not allowed here (line 1, column 21)"),
        ("seed: 1\nhub_token: [hf_secret", "expected ',' or ']', but got '<stream end>' (line 2, column 22)"),
        ("token: *hf_secret", "found undefined alias 'hf_...' (line 1, column 8)"),
        ("env: {HF_TOKEN: [hf_secret]}", "HF_TOKEN takes a text or a number, got a list"),
    ],
)
def test_a_file_makes_no_objects_and_a_message_shows_no_token(write, text, message):
    """YAML's own messages quote the line."""
    assert message in error(write(text))
    assert "hf_secret" not in error(write(text))


def test_a_file_that_is_not_there_names_the_recipe_s_own(monkeypatch):
    monkeypatch.setattr("sys.argv", [str(RECIPES / "text_cls.py")])
    assert error("banking") == (
        "--config banking: no such file; this recipe's own are banking77, goemotions, imdb_lstm, sms_spam"
    )
    monkeypatch.setattr("sys.argv", ["somewhere/else.py"])
    assert error("banking") == "--config banking: no such file"


def test_a_name_is_the_recipe_s_configuration_unless_there_is_such_a_file(monkeypatch, tmp_path):
    monkeypatch.setattr("sys.argv", [str(RECIPES / "text_cls.py")])
    monkeypatch.chdir(tmp_path)
    assert config_path("banking77") == RECIPES / "configs" / "text_cls" / "banking77.yaml"
    (tmp_path / "banking77").write_text("seed: 1")
    assert config_path("banking77") == Path("banking77")


def test_an_unknown_key_names_file_and_nearest_flag(write):
    config = write("text_column_name: sms")
    with pytest.raises(ArgumentError) as caught:
        parse_arguments((DataArguments, TextClassification), ["--config", config], defaults={})
    assert str(caught.value) == (
        f"{config}: unknown key 'text_column_name'. Did you mean --text_column_names? --help lists all flags."
    )


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.py")), ids=lambda path: path.stem)
def test_every_named_configuration_is_a_run_of_its_recipe(recipe, monkeypatch):
    calls = []
    monkeypatch.setattr(sft_hf, "finetune", lambda *task, **keywords: calls.append((*task, keywords)), raising=False)
    monkeypatch.setattr("sys.argv", [str(recipe)])
    exec(compile(recipe.read_text(), recipe, "exec"), {"__name__": "__main__"})
    [(task_class, keywords)] = calls
    methods, model_defaults, _ = (keywords.pop(name, ()) for name in ("methods", "model_defaults", "description"))
    configs = sorted((recipe.parent / "configs" / recipe.stem).glob("*.yaml"))
    assert configs
    for config in configs:
        parsed = parse_arguments(
            (DataArguments, ModelArguments, FinetuningArguments, task_class, *methods),
            ["--config", config.stem],
            defaults=keywords,
            model_defaults=model_defaults or None,
        )
        assert parsed.values["output_dir"] == f"runs/{config.stem}"
        assert parsed.layers["dataset_name"] == config.stem
