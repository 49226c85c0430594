"""The --config file: keys are flag names, an `env:` block holds variables for the process. Reads YAML, nothing else.

env: {HF_HUB_OFFLINE: "1"}
learning_rate: 1e-5          # YAML calls this a string; the parser of the flags makes it the number (pitfall 9)
"""

import argparse
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from sft_hf.errors import ArgumentError


def read_json_or_yaml(path: Path, *, flag: str) -> Any:
    """What the file of a flag holds, JSON by its suffix, else YAML; ArgumentError where it cannot be parsed."""
    try:
        return json.loads(path.read_text()) if path.suffix == ".json" else yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ArgumentError(f"{flag} cannot be read: {_what_is_wrong(error)}") from None
    except ValueError as error:
        raise ArgumentError(f"{flag} cannot be read: {error}") from None


def _what_is_wrong(error: yaml.YAMLError) -> str:
    """What the parser says, and the line; not that line itself, which can be the one with a token."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    if mark is None or problem is None:
        return without_tokens(str(error))
    return without_tokens(f"{problem} (line {mark.line + 1}, column {mark.column + 1})")


def without_tokens(text: str) -> str:
    """A message in which no token of the Hub stands, wherever in the flags or the file it was put."""
    return re.sub(r"\bhf_\w+", "hf_...", text)


def config_path(name: str) -> Path:
    """The file `name`, or the recipe's own configuration of that name: `--config banking77`."""
    recipe = Path(sys.argv[0])
    named = recipe.parent / "configs" / recipe.stem / f"{name}.yaml"
    if Path(name).is_file() or not named.is_file():
        return Path(name)
    return named


def read_config(name: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The flags and the variables of a --config file; ArgumentError for one that is missing or malformed."""
    path = config_path(name)
    if not path.is_file():
        there = sorted(
            file.stem for file in (Path(sys.argv[0]).parent / "configs" / Path(sys.argv[0]).stem).glob("*.yaml")
        )
        hint = f"; this recipe's own are {', '.join(there)}" if there else ""
        raise ArgumentError(f"--config {name}: no such file{hint}")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ArgumentError(f"--config {name} is not valid YAML: {_what_is_wrong(error)}") from None
    except UnicodeDecodeError as error:
        raise ArgumentError(f"--config {name} is not valid YAML: {error}") from None
    if not isinstance(content, dict):
        raise ArgumentError(f"--config {name}: expected keys that are flag names, got a {type(content).__name__}")
    environment = content.pop("env", None) or {}
    if not isinstance(environment, dict):
        raise ArgumentError(f"--config {name}: env: takes NAME: value pairs, got a {type(environment).__name__}")
    for key, value in environment.items():
        if not isinstance(value, (str, int, float)):
            there = "nothing" if value is None else f"a {type(value).__name__}"  # the value itself can be a token
            raise ArgumentError(f"--config {name}: env: {key} takes a text or a number, got {there}")
    return content, {str(key): str(value) for key, value in environment.items()}


def config_environment(arguments: Sequence[str]) -> dict[str, str]:
    """The `env:` block of the --config file that `arguments` name; {} without one."""
    finder = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    finder.add_argument("--config")
    try:
        config = finder.parse_known_args(list(arguments))[0].config
    except argparse.ArgumentError as error:
        raise ArgumentError(str(error)) from None
    return read_config(config)[1] if config else {}


def apply_environment(environment: Mapping[str, str]) -> bool:
    """Set the variables that the shell has not set; True if there was one to set.

    The shell's own variables win, as its flags win over the file's keys.
    """
    missing = {name: value for name, value in environment.items() if name not in os.environ}
    os.environ.update(missing)
    return bool(missing)
